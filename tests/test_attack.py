"""`create`, `Attack` and `execute`: errors, keys, survivors, batches, restarts."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import Attack, Stage, execute
from lagrangian_jax.attacks.arrays import example_keys
from lagrangian_jax.attacks.inputs import check_inputs

SHAPE = (4, 4, 3)


@pytest.fixture
def batch():
    rng = np.random.default_rng(3)
    return rng.uniform(size=(6, *SHAPE)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)


@pytest.fixture
def logits_fn(linear_network):
    return linear_network(SHAPE)[0]


class TestCreate:
    def test_names_are_those_that_can_be_created(self):
        assert {"none", "lagrangian", "pgd_linf", "pgd_l2", "ddn", "autoattack"} <= set(lj.attacks.names())
        assert list(lj.attacks.names()) == sorted(lj.attacks.names())

    def test_parameters_are_the_defaults_and_what_was_given(self):
        attack = lj.attacks.create("pgd_linf", bound=4 / 255)
        assert attack.name == "pgd_linf"
        assert dict(attack.parameters) == {
            "bound": 4 / 255,
            "steps": 40,
            "step_size": None,
            "random_start": False,
            "keep": "last",
        }

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"unknown attack 'pgd_l3'; did you mean 'pgd_l2'\? Valid: .*fgsm"):
            lj.attacks.create("pgd_l3")

    def test_unknown_parameter(self):
        with pytest.raises(ValueError, match=r"'pgd_linf': 'epsilon'; did you mean 'bound'\? Valid: bound, steps"):
            lj.attacks.create("pgd_linf", epsilon=0.1)
        with pytest.raises(
            ValueError, match=r"parameter of attack 'lagrangian': 'multipler'; did you mean 'multiplier'\?"
        ):
            lj.attacks.create("lagrangian", multipler=2.0)
        with pytest.raises(ValueError, match="Valid: none"):
            lj.attacks.create("none", bound=1.0)

    @pytest.mark.parametrize("name", ["apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square", "autoattack"])
    def test_the_bound_of_linf_is_not_taken_for_l2(self, name):
        with pytest.raises(ValueError, match=f"attack '{name}': bound must be given with norm='l2', as 1.0"):
            lj.attacks.create(name, norm="l2")
        lj.attacks.create(name, norm="l2", bound=0.5)

    def test_restarts_that_would_all_be_the_same(self):
        with pytest.raises(ValueError, match="attack 'pgd_l2': restarts would all be the same; give random_start=True"):
            lj.attacks.create("pgd_l2", restarts=5)
        with pytest.raises(ValueError, match=r"attack 'lagrangian': .* give init_std above 0"):
            lj.attacks.create("lagrangian", init_std=0.0, restarts=5)
        assert len(lj.attacks.create("gabor", random_start=False, restarts=5).stages) == 5  # kernels of its own a run

    def test_restarts_need_a_random_part(self):
        with pytest.raises(ValueError, match="parameter of attack 'deepfool': 'restarts'"):
            lj.attacks.create("deepfool", restarts=2)
        assert lj.attacks.create("lagrangian", restarts=2).survivors

    @pytest.mark.parametrize(
        ("name", "parameter", "value", "expected"),
        [
            ("pgd_linf", "bound", -0.1, "a number from 0 to 1, as 8/255"),
            ("pgd_linf", "bound", float("nan"), "a number from 0 to 1, as 8/255"),
            ("pgd_linf", "bound", "8/255", "a number from 0 to 1, as 8/255"),
            ("pgd_linf", "bound", None, "a number from 0 to 1, as 8/255"),
            ("pgd_linf", "bound", True, "a number from 0 to 1, as 8/255"),
            ("pgd_linf", "bound", 8, "a number from 0 to 1, as 8/255"),  # of 255
            ("autoattack", "bound", 8, "a number from 0 to 1, as 8/255"),
            ("msd", "bound_linf", 8, "a number from 0 to 1, as 8/255"),
            ("pgd_l2", "bound", -1.0, "a number, 0 or larger"),
            ("pgd_l2", "steps", 0, "an integer, 1 or larger"),
            ("pgd_l2", "steps", 2.5, "an integer, 1 or larger"),
            ("pgd_l2", "steps", True, "an integer, 1 or larger"),
            ("pgd_l2", "step_size", 0.0, "a positive number"),
            ("pgd_l2", "step_size", -1.0, "a positive number"),
            ("pgd_l2", "restarts", 0, "an integer, 1 or larger"),
            ("pgd_l2", "keep", "first", "'last' or 'best'"),
            ("autoattack", "norm", "l1", "'linf' or 'l2'"),
            ("lagrangian", "kappa", float("nan"), "a number, or inf"),
            ("lagrangian", "kappa", -float("inf"), "a number, or inf"),
            ("lagrangian", "kappa", True, "a number, or inf"),
            ("gaussian_noise", "variance", -1.0, "a number, 0 or larger"),
            ("msd", "bound_l1", -1.0, "a number, 0 or larger"),
            ("msd", "step_size_l2", 0.0, "a positive number"),
            ("ddn", "gamma", 1.0, "a number between 0 and 1"),
            ("ddn", "levels", 1, "an integer, 2 or larger, or None"),
            ("ddn", "max_norm", 0.0, "a positive number, or None"),
            ("carlini_wagner", "search_steps", 0, "an integer, 1 or larger"),
            ("carlini_wagner", "initial_const", 0.0, "a positive number"),
            ("deepfool", "overshoot", -0.1, "a number, 0 or larger"),
            ("deepfool", "classes", 1, "an integer, 2 or larger"),
            ("augmented_lagrangian", "distance", "l2", "a distance"),
            ("gaussian_blur", "kernel_size", 4, "an odd integer, 1 or larger"),
            ("msd", "coordinates", (20, 5), "two integers, 1 or larger, in order"),
            ("recolor", "resolution", (16, 32), "three integers, 2 or larger"),
            ("recolor", "resolution", (16, 32, 1), "three integers, 2 or larger"),
        ],
    )
    def test_values_out_of_range(self, name, parameter, value, expected):
        message = re.escape(f"attack {name!r}: {parameter} must be {expected}") + ".*; got " + re.escape(repr(value))
        with pytest.raises(ValueError, match=message):
            lj.attacks.create(name, **{parameter: value})

    def test_numbers_of_numpy_are_numbers(self):
        for kappa in (np.float32(1), np.float64("inf"), 1):
            assert lj.attacks.create("lagrangian", kappa=kappa).parameters["kappa"] == kappa

    def test_scalars_in_arrays_are_numbers(self):
        assert lj.attacks.create("pgd_l2", bound=jnp.float32(0.5)).parameters["bound"] == 0.5
        assert lj.attacks.create("pgd_l2", steps=np.array(3)).parameters["steps"] == 3
        with pytest.raises(ValueError, match=r"bound must be a number, 0 or larger; got -1\.0"):
            lj.attacks.create("pgd_l2", bound=jnp.float32(-1))

    @pytest.mark.parametrize(("name", "parameter"), [("pgd_l2", "steps"), ("elastic", "sigma"), ("square", "share")])
    def test_what_a_program_is_built_from_cannot_be_traced(self, name, parameter):
        with pytest.raises(ValueError, match=f"attack '{name}': {parameter} must be .*; got .*Tracer"):
            jax.eval_shape(lambda value: lj.attacks.create(name, **{parameter: value}), 1.0)

    @pytest.mark.parametrize("name", lj.attacks.names())
    def test_every_parameter_is_checked(self, name):
        function = lj.attacks.ATTACKS.get(name) or lj.attacks.STAGED[name]
        parameters = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        given = {"distance": len} if "distance" in parameters else {}
        for parameter in parameters:
            for value in ("x", float("nan"), [3]):
                with pytest.raises(ValueError, match=f"^attack '{name}': {parameter} must be .*; got "):
                    lj.attacks.create(name, **given | {parameter: value})

    @pytest.mark.parametrize(("name", "others"), [("pgd_l2", {}), ("autoattack", {"norm": "l2"}), ("fog", {})])
    def test_other_bounds_than_those_of_linf_may_be_large(self, name, others):
        assert lj.attacks.create(name, bound=8, **others).parameters["bound"] == 8


class TestInputs:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x[0], y), r"images: expected shape \(B, H, W, C\), got \(4, 4, 3\)"),
            (
                lambda x, y: ((x * 255).astype(np.uint8), y),
                r"images: expected float32 in \[0, 1\], got uint8; images.astype\('float32'\) / 255$",
            ),
            (
                lambda x, y: (x.astype(np.float64), y),  # in [0, 1] already
                r"images: expected float32 in \[0, 1\], got float64; images.astype\('float32'\)$",
            ),
            (lambda x, y: (x * 255, y), r"images: expected values in \[0, 1\], got .* to 2"),
            (lambda x, y: (x - 0.5, y), r"images: expected values in \[0, 1\], got -0"),
            (lambda x, y: (np.where(x == x[0, 0, 0, 0], np.nan, x), y), "images: expected values .* nan"),
            (lambda x, y: (x, y[:4]), r"labels: expected shape \(6,\) .* got \(4,\)"),
            (lambda x, y: (x, np.eye(3)[y]), r"labels: expected shape \(6,\) .* got \(6, 3\)"),
            (lambda x, y: (x, y.astype(np.float32)), "labels: expected integers, got float32"),
            (lambda x, y: (x, y + 1), r"labels: expected values in \[0, 3\), got 1 to 3"),
            (lambda x, y: (x, y - 1), r"labels: expected values in \[0, 3\), got -1 to 1"),
        ],
    )
    def test_images_and_labels(self, key, logits_fn, batch, change, message):
        with pytest.raises(ValueError, match=message):
            lj.attacks.create("fgsm")(key, logits_fn, *change(*batch))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda z: z[0], r"logits_fn: expected logits of shape \(6, classes\), got \(3,\)"),
            (lambda z: z[:3], r"logits_fn: expected logits of shape \(6, classes\), got \(3, 3\)"),
            (lambda z: (z, z), "logits_fn: expected logits of shape .* got tuple"),
            (lambda z: z[:, :1], r"logits_fn: expected logits of at least 2 classes, got shape \(6, 1\)"),
            (jax.nn.softmax, "logits_fn: its rows lie in .* as probabilities do; return logits"),
        ],
    )
    def test_network(self, key, logits_fn, batch, change, message):
        images, labels = batch
        with pytest.raises(ValueError, match=message):
            lj.attacks.create("fgsm")(key, lambda x: change(logits_fn(x)), images, labels * 0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x[0], y), r"images: expected shape \(B, H, W, C\), got \(4, 4, 3\)"),
            (lambda x, y: ((x * 255).astype(np.uint8), y), "images: expected float32 .* got uint8"),
            (
                lambda x, y: (np.zeros((6, 3, 8, 8), np.float32), y),
                r"images: shape \(6, 3, 8, 8\) looks like \(B, C, H, W\); transpose to \(B, H, W, C\)",
            ),
            (lambda x, y: (jnp.asarray(x, jnp.bfloat16), y), r"float32 .* got bfloat16; images.astype\('float32'\)\s"),
            (lambda x, y: (x, y[:, None]), r"labels: expected shape \(6,\) .* got \(6, 1\)"),
            (lambda x, y: (x, y.astype(np.float32)), "labels: expected integers, got float32"),
        ],
    )
    def test_shapes_and_types_inside_jit(self, key, logits_fn, batch, change, message):
        """There, pixels from 0 to 255 would come back black and white, and bfloat16 would round to beyond the bound."""
        attack = lj.attacks.create("pgd_linf", steps=2)
        with pytest.raises(ValueError, match=message):
            jax.jit(lambda images, labels: attack(key, logits_fn, images, labels))(*change(*batch))

    def test_network_inside_jit(self, key, logits_fn, batch):
        attack = lj.attacks.create("fgsm")
        with pytest.raises(ValueError, match=r"logits_fn: expected logits of shape \(6, classes\), got \(3,\)"):
            jax.jit(lambda images, labels: attack(key, lambda x: logits_fn(x)[0], images, labels))(*batch)

    def test_logits_are_float32_whatever_the_network_computes_in(self, key, logits_fn, batch):
        def half(images):
            return logits_fn(images).astype(jnp.bfloat16)

        def stage(keys, logits_fn, images, labels):
            assert logits_fn(images).dtype == jnp.float32
            return images

        toy = Attack("toy", {}, (Stage(stage),))
        for call in (toy, jax.jit(toy, static_argnums=1)):
            call(key, half, *batch)
        for name in ("deepfool", "augmented_lagrangian"):  # whose own types once depended on those of the logits
            attack = jax.jit(lj.attacks.create(name, steps=5), static_argnums=1)
            assert attack(key, half, *batch).dtype == jnp.float32

    @pytest.mark.parametrize(
        "change",
        [
            jax.nn.log_softmax,
            jax.nn.sigmoid,
            lambda z: jnp.where(jnp.arange(len(z))[:, None] == 0, jax.nn.softmax(z), z),
            lambda z: z - z.mean(-1, keepdims=True) + 1 / 3,  # rows that sum to one
        ],
    )
    def test_logits_that_resemble_probabilities_pass(self, logits_fn, batch, change):
        check_inputs(lambda x: change(logits_fn(x)), *batch)

    def test_lists_and_other_integers_are_taken(self, key, logits_fn, batch):
        images, labels = batch
        expected = lj.attacks.create("fgsm")(key, logits_fn, images, labels)
        for given in (labels.tolist(), labels.astype(np.uint8), jnp.asarray(labels)):
            result = lj.attacks.create("fgsm")(key, logits_fn, images, given)
            np.testing.assert_array_equal(result, expected)

    @pytest.mark.parametrize("name", ["pgd_linf", "lagrangian", "ddn"])
    def test_an_empty_batch_comes_back(self, key, logits_fn, batch, name):
        images, labels = batch
        assert lj.attacks.create(name)(key, logits_fn, images[:0], labels[:0]).shape == (0, *SHAPE)

    def test_one_key_or_one_an_example(self, key, logits_fn, batch):
        attack = lj.attacks.create("pgd_l2", steps=2, random_start=True)
        expected = attack(key, logits_fn, *batch)
        np.testing.assert_array_equal(attack(example_keys(key, 6), logits_fn, *batch), expected)
        with pytest.raises(ValueError, match=r"expected one key, or 6 keys for 6 images; got keys of shape \(5,\)"):
            attack(jax.random.split(key, 5), logits_fn, *batch)
        with pytest.raises(ValueError, match=r"key: expected a key of jax.random, such as jax.random.key\(0\); got 0"):
            attack(0, logits_fn, *batch)

    def test_constants_inside_jit_and_traced_weights(self, key, linear_network, batch):
        """A network whose weights are traced is attacked within the trace, as in a loss that is differentiated."""
        logits_fn, weights, biases = linear_network(SHAPE)
        images, labels = batch
        attack = lj.attacks.create("pgd_l2", bound=0.3, steps=3)
        expected = attack(key, logits_fn, images, labels)
        np.testing.assert_allclose(jax.jit(lambda: attack(key, logits_fn, images, labels))(), expected, atol=1e-6)

        def loss(weights):
            adversarial = attack(key, lambda x: x.reshape(len(x), -1) @ weights + biases[None], images, labels)
            return jnp.sum(adversarial), adversarial

        _, adversarial = jax.grad(loss, has_aux=True)(jnp.asarray(weights))
        np.testing.assert_allclose(adversarial, expected, atol=1e-6)

    @pytest.mark.parametrize("options", [{}, {"random_start": True, "restarts": 2}])
    @pytest.mark.parametrize("transform", [jax.vmap, lambda attack: jax.jit(jax.vmap(attack))])
    def test_a_curve_over_bounds_is_one_program(self, key, logits_fn, batch, transform, options):
        def attacked(bound):
            return lj.attacks.create("pgd_l2", bound=bound, steps=3, **options)(key, logits_fn, *batch)

        bounds = np.array([0.0, 0.1, 0.3], np.float32)
        curve = transform(attacked)(bounds)
        np.testing.assert_allclose(curve, [attacked(float(bound)) for bound in bounds], atol=1e-6)


# A toy whose every result is known: pixel 0 of example n is n / 100, the network gives class 1 if pixel 1 is set, and
# the stage with argument t sets it in examples below t.
def toy_images(count):
    images = np.zeros((count, 1, 1, 2), np.float32)
    images[..., 0] = np.arange(count).reshape(-1, 1, 1) / 100
    return images


def toy_stage(keys, logits_fn, images, labels, threshold):
    fooled = images[..., 0] < threshold / 100 - 0.005
    return jnp.stack([images[..., 0], jnp.where(fooled, 1.0, 0.25)], axis=-1)


def toy_logits(images):
    return jnp.stack([0.5 - images[:, 0, 0, 1], images[:, 0, 0, 1] - 0.5], axis=-1)


def toy_attack(*thresholds, **options):
    stages = tuple(Stage(toy_stage, (np.float32(threshold),)) for threshold in thresholds)
    return Attack("toy", {}, stages, **options)


def run_toy(attack, count, batch_sizes=None, misclassified=()):
    images, labels = toy_images(count), np.zeros(count, np.int32)
    labels[list(misclassified)] = 1
    sizes = []

    def predict(images):
        return jnp.argmax(toy_logits(jnp.asarray(images)), axis=-1)

    def run(function, keys, images, labels, *arguments):
        assert len(keys) == len(images) == len(labels)
        sizes.append(len(images))
        adversarial = function(keys, toy_logits, jnp.asarray(images), labels, *arguments)
        return adversarial, predict(adversarial)

    keys = jax.random.split(jax.random.key(0), count)
    return execute(attack, run, predict, keys, images, labels, batch_sizes), sizes


class TestExecute:
    @pytest.mark.parametrize("batch_sizes", [None, [20], [4], [3, 7], [2, 8, 100]])
    def test_stages_see_the_examples_that_still_hold(self, batch_sizes):
        execution, sizes = run_toy(toy_attack(5, 12, 8, survivors=True), 20, batch_sizes, misclassified=[0, 19])
        assert execution.attacked == (18, 14, 7)  # 1 to 18, 5 to 18, 12 to 18
        assert set(sizes) <= set(batch_sizes or [1, 5, 20])
        expected = toy_images(20)
        expected[1:12, ..., 1] = 1  # whatever was misclassified or never fooled keeps its clean image
        np.testing.assert_array_equal(execution.adversarial, expected)
        np.testing.assert_array_equal(execution.predictions, (expected[:, 0, 0, 1] == 1).astype(int))

    def test_failures_can_keep_the_last_image(self):
        execution, _ = run_toy(toy_attack(5, 8, survivors=True, keep_failures=True), 10, [4])
        np.testing.assert_array_equal(execution.adversarial[:, 0, 0, 1], [1] * 8 + [0.25] * 2)
        assert execution.attacked == (10, 5)

    def test_a_plain_attack_runs_on_all(self):
        execution, sizes = run_toy(toy_attack(5), 10, [4], misclassified=[0, 9])
        np.testing.assert_array_equal(execution.adversarial[:, 0, 0, 1], [1] * 5 + [0.25] * 5)
        np.testing.assert_array_equal(execution.predictions, [1] * 5 + [0] * 5)
        assert execution.attacked == (10,)
        assert sizes == [4, 4, 4]  # the last is padded

    def test_no_stage_runs_when_nothing_holds(self):
        execution, sizes = run_toy(toy_attack(8, 8, 8, survivors=True), 8)
        assert execution.attacked == (8, 0, 0)
        assert sizes == [8]

    @pytest.mark.parametrize("attack", [toy_attack(3), toy_attack(3, 4, survivors=True)])
    def test_no_examples(self, attack):
        execution, sizes = run_toy(attack, 0)
        assert execution.adversarial.shape == (0, 1, 1, 2)
        assert execution.predictions.shape == (0,)
        assert set(execution.attacked) == {0}
        assert sizes == []

    def test_small_remainders_are_not_padded_to_the_largest_size(self):
        for count, expected in {105: [100, 4, 4], 24: [25], 55: [100], 50: [25, 25], 30: [25, 4, 4]}.items():
            assert run_toy(toy_attack(0), count, [4, 25, 100])[1] == expected

    def test_the_input_is_not_changed(self, key):
        images = toy_images(4)
        toy_attack(4)(key, toy_logits, images, np.zeros(4, np.int32))
        np.testing.assert_array_equal(images, toy_images(4))

    @pytest.mark.parametrize("options", [{}, {"survivors": True}, {"survivors": True, "keep_failures": True}])
    def test_inside_jit_the_survivors_are_a_mask(self, key, options):
        attack = toy_attack(*((3, 6, 4) if options else (3,)), **options)
        images, labels = toy_images(9), np.array([0] * 8 + [1], np.int32)
        traced = jax.jit(lambda images, labels: attack(key, toy_logits, images, labels))(images, labels)
        np.testing.assert_array_equal(traced, attack(key, toy_logits, images, labels))

    def test_stages_of_one_function_are_a_loop_inside_jit(self, key):
        """However many stages there are, the program holds the network the same number of times."""
        attacks = [lj.attacks.create("pgd_l0", max_pixels=2, restarts=restarts, steps=3) for restarts in (2, 6)]
        images = jnp.full((2, 4, 4, 3), 0.5)

        def logits_fn(images):
            return jnp.stack([jnp.sum(jnp.sinh(images), (1, 2, 3)) - 20, jnp.zeros(2)], axis=-1)

        programs = [
            jax.jit(attack, static_argnums=1).lower(key, logits_fn, images, jnp.zeros(2, int)) for attack in attacks
        ]
        few, many = (program.as_text().count("sinh") for program in programs)
        assert few == many > 0

    @pytest.mark.parametrize("jit", [False, True])
    def test_what_is_not_a_number_fools(self, key, jit):
        """As in an evaluation; `argmax` would give class 0."""
        images, labels = jnp.full((4, 2, 2, 1), 0.5), jnp.array([0, 1, 0, 1])

        def logits_fn(images):
            clean = jnp.all(images == 0.5, axis=(1, 2, 3))[:, None]
            return jnp.where(clean, 9.0 * jax.nn.one_hot(labels[: len(images)], 2), jnp.nan) + 0 * images.sum()

        brighter = Stage(lambda keys, logits_fn, images, labels: images + 0.1)
        attack = Attack("brighter", {}, (brighter,), survivors=True)  # returns the clean image where it fails
        run = jax.jit(attack, static_argnums=1) if jit else attack
        assert np.all(np.asarray(run(key, logits_fn, images, labels)) != 0.5)


class TestRestarts:
    @pytest.fixture
    def hard(self, linear_network):
        """A network with many bumps, where a run from one random start often fails."""
        weights = linear_network(SHAPE)[1]
        return lambda x: jnp.sin(4 * x.reshape(len(x), -1) @ weights) + jnp.array([[0.2, 0.0, 0.0]])

    @pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2", "lagrangian"])
    def test_restarts_fool_no_fewer(self, key, hard, name):
        rng = np.random.default_rng(4)
        images = rng.uniform(size=(64, *SHAPE)).astype(np.float32)
        labels = np.asarray(jnp.argmax(hard(images), axis=-1), np.int32)
        options = {"steps": 1, "step_size": 0.01}
        if name != "lagrangian":
            options |= {"random_start": True, "bound": {"pgd_linf": 0.02, "pgd_l2": 0.15}[name]}
        fooled, images_of = {}, {}
        for restarts in (1, 4):
            attack = lj.attacks.create(name, restarts=restarts, **options)
            images_of[restarts] = attack(key, hard, images, labels)
            fooled[restarts] = np.asarray(jnp.argmax(hard(images_of[restarts]), axis=-1) != labels)
        assert fooled[4].sum() > fooled[1].sum()
        assert (fooled[4] >= fooled[1]).all()
        # What the first run fools is not run again.
        np.testing.assert_allclose(images_of[4][fooled[1]], images_of[1][fooled[1]], atol=1e-6)

    def test_inside_jit(self, key, hard, batch):
        images, labels = batch
        attack = lj.attacks.create("pgd_l2", bound=0.2, steps=2, step_size=0.05, random_start=True, restarts=3)
        traced = jax.jit(lambda images, labels: attack(key, hard, images, labels))(images, labels)
        np.testing.assert_allclose(traced, attack(key, hard, images, labels), atol=1e-5)
