"""FGSM, MI-FGSM, PGD, MPGD, the Lagrangian attack, corruptions: closed forms, properties, recorded trajectories."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import gradient
from lagrangian_jax.attacks.arrays import example_keys, l2_norm, linf_norm
from lagrangian_jax.attacks.lagrangian import lagrangian_with_state
from lagrangian_jax.losses import cross_entropy

SHAPE = (4, 4, 3)
BOUNDED = {  # name: parameters, and the norm that the bound is in
    "fgsm": ({}, linf_norm),
    "mi_fgsm": ({"steps": 4}, linf_norm),
    "pgd_linf": ({"steps": 4, "step_size": 0.05}, linf_norm),
    "pgd_linf from a random start": ({"steps": 4, "step_size": 0.004, "random_start": True}, linf_norm),
    "pgd_linf keeping the best": ({"steps": 4, "step_size": 0.004, "random_start": True, "keep": "best"}, linf_norm),
    "pgd_l2": ({"steps": 4, "step_size": 0.2}, l2_norm),
    "pgd_l2 from a random start": ({"steps": 4, "step_size": 0.2, "random_start": True}, l2_norm),
    "mpgd": ({"steps": 4, "step_size": 0.05}, linf_norm),
}
UNBOUNDED = {"lagrangian": {}, "lagrangian keeping the best": {"keep": "best"}}
RANDOM = [name for name in BOUNDED if "random" in name] + list(UNBOUNDED)

bounded = pytest.mark.parametrize("case", BOUNDED)
every = pytest.mark.parametrize("case", [*BOUNDED, *UNBOUNDED])


def create(case, **parameters):
    name, options = case.split()[0], BOUNDED[case][0] if case in BOUNDED else UNBOUNDED[case]
    return lj.attacks.create(name, **({**options, **parameters} if case in BOUNDED else options))


@pytest.fixture
def images():
    """Random, black, white and constant images."""
    rng = np.random.default_rng(1)
    plain = np.stack([np.full(SHAPE, value, np.float32) for value in (0.0, 1.0, 0.5)])
    return np.concatenate([rng.uniform(size=(5, *SHAPE)).astype(np.float32), plain])


@pytest.fixture
def labels():
    """Labels that include both ends of the range."""
    return np.array([0, 1, 2, 0, 2, 1, 0, 2], np.int32)


@pytest.fixture
def two_classes(linear_network):
    """A linear network of two classes: the gradient of any loss is along one known direction."""
    logits_fn, weights, _ = linear_network(SHAPE, classes=2)
    images = np.random.default_rng(2).uniform(0.4, 0.6, size=(6, *SHAPE)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1], np.int32)
    ascent = (weights[:, 1] - weights[:, 0]) * np.where(labels == 0, 1, -1)[:, None]
    return logits_fn, images, labels, ascent.reshape(images.shape)


def flat_norm(x):
    return np.sqrt((x.reshape(len(x), -1) ** 2).sum(-1)).reshape(-1, 1, 1, 1)


class TestClosedForms:
    @pytest.mark.parametrize("case", ["fgsm", "mi_fgsm", "pgd_linf"])
    def test_linf_attacks_end_in_the_corner_of_the_ball(self, key, two_classes, case):
        logits_fn, images, labels, ascent = two_classes
        adversarial = create(case, bound=0.1)(key, logits_fn, images, labels)
        np.testing.assert_allclose(adversarial, images + 0.1 * np.sign(ascent), atol=1e-6)

    def test_linf_attack_is_clipped_to_the_box(self, key, two_classes):
        logits_fn, images, labels, ascent = two_classes
        adversarial = create("pgd_linf", bound=0.9, steps=30)(key, logits_fn, images, labels)
        np.testing.assert_allclose(adversarial, ascent > 0, atol=1e-6)

    def test_l2_attack_ends_where_the_ball_is_furthest(self, key, two_classes):
        logits_fn, images, labels, ascent = two_classes
        adversarial = create("pgd_l2", bound=0.5)(key, logits_fn, images, labels)
        np.testing.assert_allclose(adversarial, images + 0.5 * ascent / flat_norm(ascent), atol=1e-6)

    def test_l2_steps_are_short_where_the_gradient_is_below_the_floor(self, key, two_classes):
        logits_fn, images, labels, ascent = two_classes
        weak = 1e-8  # the gradient is then 0.5e-8 * ascent, up to second order
        adversarial = create("pgd_l2", bound=0.5)(key, lambda x: weak * logits_fn(x), images, labels)
        np.testing.assert_allclose(adversarial - images, 4 * 0.2 * 0.5 * weak / 1e-6 * ascent, rtol=1e-2, atol=1e-6)

    def test_mpgd_steps_in_proportion_to_the_gradient(self, key, two_classes):
        logits_fn, images, labels, ascent = two_classes
        adversarial = create("mpgd", bound=0.3, step_size=0.02)(key, logits_fn, images, labels)
        unit = ascent / np.abs(ascent).max((1, 2, 3), keepdims=True)
        np.testing.assert_allclose(adversarial, images + 4 * 0.02 * unit, atol=1e-5)

    def test_mi_fgsm_velocity(self, key):
        """Against a float64 loop, on a curved loss where the momentum matters, and with gradients below and above 1."""
        images, labels = np.full((1, 1, 1, 2), 0.5, np.float32), np.array([0])

        def logits_fn(x):
            return jnp.stack([jnp.zeros(len(x)), 0.1 * jnp.sum(jnp.sin(x * 20), axis=(1, 2, 3))], axis=-1)

        perturbation, velocity, iterates, sizes = np.zeros(2), np.zeros(2), [], []
        for _ in range(5):
            at = 20 * (0.5 + perturbation)
            iterates.append((np.sin(at).sum(), perturbation))
            g = 2 * np.cos(at) / (1 + np.exp(-0.1 * np.sin(at).sum()))
            sizes.append(np.abs(g).sum())
            velocity = 0.9 * velocity + g / np.abs(g).sum()
            perturbation = np.clip(perturbation + 0.06 * np.sign(velocity), -0.3, 0.3)
        assert min(sizes) < 1 < max(sizes)
        attack = lj.attacks.create("mi_fgsm", bound=0.3, steps=5, momentum=0.9)
        np.testing.assert_allclose(attack(key, logits_fn, images, labels).ravel(), 0.5 + perturbation, atol=1e-5)
        best = max(iterates, key=lambda iterate: iterate[0])[1]
        assert np.sin(20 * (0.5 + perturbation)).sum() < np.sin(20 * (0.5 + best)).sum()
        attack = lj.attacks.create("mi_fgsm", bound=0.3, steps=5, momentum=0.9, keep="best")
        np.testing.assert_allclose(attack(key, logits_fn, images, labels).ravel(), 0.5 + best, atol=1e-5)

    @pytest.mark.parametrize("name", ["fgsm", "mi_fgsm"])
    def test_the_random_starts_of_the_fast_gradient_sign_methods(self, key, name):
        """On a flat loss nothing moves: what comes back is the start, another one for each key."""
        images, labels = np.full((2, 4, 4, 3), 0.5, np.float32), np.zeros(2, int)
        attack = lj.attacks.create(name, bound=0.1, random_start=True)
        start = attack(key, lambda x: 0 * x[:, 0, 0], images, labels) - images
        assert 0.08 < np.abs(start).max() <= 0.1
        assert np.abs(start[0] - start[1]).max() > 0.05
        assert np.abs(start + images - attack(jax.random.key(1), lambda x: 0 * x[:, 0, 0], images, labels)).max() > 0.05
        assert lj.attacks.create(name, random_start=True, restarts=3).survivors

    def test_lagrangian_steps_on_a_linear_network(self, key, two_classes):
        """From zero, gradient and perturbation stay parallel: each step moves the most changed pixel by its size."""
        logits_fn, images, labels, ascent = two_classes
        attack = lj.attacks.create("lagrangian", init_std=0.0, step_size=0.05, kappa=float("inf"))
        sizes = 0.05 * 0.1 ** (np.arange(5) / 5)
        unit = ascent / np.abs(ascent).max((1, 2, 3), keepdims=True)
        np.testing.assert_allclose(attack(key, logits_fn, images, labels), images + sizes.sum() * unit, atol=1e-5)

    def test_lagrangian_shrinks_what_is_fooled_beyond_kappa(self, key, two_classes):
        """Above kappa only the norm has a gradient: the perturbation shrinks along itself, whatever the multiplier."""
        _, images, _, _ = two_classes
        labels = np.zeros(len(images), np.int32)

        def fooled(x):
            return jnp.array([[-10.0, 0.0]]) + 0 * x[:, 0, 0, :1]

        noise = lj.attacks.create("lagrangian", steps=1, init_std=0.01, step_size=1e-9)(key, fooled, images, labels)
        start = np.asarray(noise - images)
        adversarial = lj.attacks.create("lagrangian", steps=1, init_std=0.01, step_size=0.005)(
            key, fooled, images, labels
        )
        expected = start * (1 - 0.005 / np.abs(start).max((1, 2, 3), keepdims=True))
        np.testing.assert_allclose(adversarial - images, expected, atol=1e-6)

    def test_one_multiplier_an_example(self, key, two_classes):
        logits_fn, images, labels, _ = two_classes
        several = lagrangian_with_state(
            key, gradient.stateless(logits_fn), (), images, labels, multiplier=jnp.arange(6.0)
        )[0]
        for row in (0, 5):
            single = lagrangian_with_state(
                key, gradient.stateless(logits_fn), (), images, labels, multiplier=float(row)
            )[0]
            np.testing.assert_allclose(several[row], single[row], atol=1e-6)


class TestProperties:
    @pytest.mark.parametrize("case", RANDOM)
    def test_random_parts_follow_the_key(self, key, linear_network, images, labels, case):
        logits_fn, attack = linear_network(SHAPE)[0], create(case)
        first, same = (attack(key, logits_fn, images, labels) for _ in range(2))
        other = attack(jax.random.key(1), logits_fn, images, labels)
        np.testing.assert_array_equal(first, same)
        assert (np.abs(first - other).max((1, 2, 3)) > 0).sum() >= 5  # corners may coincide
        for kind in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0, impl="rbg")):
            np.testing.assert_array_equal(first, attack(kind, logits_fn, images, labels))

    def test_random_starts_fill_the_ball(self, key):
        images, bound = jnp.full((400, *SHAPE), 0.5), 0.3
        keys = example_keys(key, 400)
        linf = gradient.linf_start(keys, images, bound)
        assert linf_norm(linf).max() <= bound
        assert abs(float(jnp.std(linf)) - bound / 3**0.5) < 0.003
        l2 = gradient.l2_start(keys, images, bound)
        assert l2_norm(l2).max() <= bound + 1e-6
        # The radius of a uniform point is bound * U^(1/48), whose mean is bound * 48/49.
        assert abs(float(l2_norm(l2).mean()) - bound * 48 / 49) < 0.002
        assert abs(float(l2.mean())) < 0.001

    @pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2", "mpgd"])
    def test_keeping_the_best_is_never_weaker(self, key, linear_network, images, labels, name):
        """The steps are so long that the last iterate often overshoots."""
        weights = linear_network(SHAPE)[1]

        def curved(x):
            return jnp.sin(9 * x.reshape(len(x), -1) @ weights)

        losses = {}
        for keep in ("last", "best"):
            attack = lj.attacks.create(name, bound=0.2, steps=7, step_size=0.15, keep=keep)
            losses[keep] = cross_entropy(curved(attack(key, curved, images, labels)), labels)
        assert (losses["best"] >= losses["last"] - 1e-6).all()
        assert (losses["best"] > losses["last"] + 1e-3).any()

    @pytest.mark.parametrize("kappa", [1.0, 0.0])
    def test_the_best_lagrangian_iterate(self, key, linear_network, images, labels, kappa):
        """Fools whenever the last one does, then with no larger norm."""
        logits_fn = linear_network(SHAPE)[0]
        attacks = [lj.attacks.create("lagrangian", kappa=kappa, keep=keep) for keep in ("last", "best")]
        last, best = (attack(key, logits_fn, images, labels) for attack in attacks)
        fooled = [jnp.argmax(logits_fn(x), axis=-1) != labels for x in (last, best)]
        assert (fooled[1] >= fooled[0]).all()
        norms = [l2_norm(x - images) for x in (last, best)]
        assert (norms[1] <= norms[0] + 1e-6)[fooled[0]].all()

    def test_bounds_and_step_sizes_an_example(self, key, linear_network, images, labels):
        """As instance-adaptive training needs it: each example as if it were alone, with its own bound."""
        logits_fn = linear_network(SHAPE)[0]
        bounds = np.linspace(0, 0.2, len(images)).astype(np.float32)
        for norm in ("linf", "l2"):
            run = functools.partial(gradient.pgd, key, gradient.stateless(logits_fn), (), images, labels)
            together = run(norm=norm, bound=bounds, steps=3, step_size=bounds / 2)[0]
            for row in (0, 4):
                alone = run(norm=norm, bound=float(bounds[row]), steps=3, step_size=float(bounds[row]) / 2)[0]
                np.testing.assert_allclose(together[row], alone[row], atol=1e-6)


class TestCorruptions:
    def test_none(self, key, images, labels, linear_network):
        np.testing.assert_array_equal(lj.attacks.create("none")(key, linear_network(SHAPE)[0], images, labels), images)

    def test_noise_has_its_variance_and_is_not_clipped(self, key, linear_network):
        images, labels = np.full((200, *SHAPE), 0.9, np.float32), np.zeros(200, np.int32)
        noise = lj.attacks.create("gaussian_noise")(key, linear_network(SHAPE)[0], images, labels) - images
        assert abs(noise.mean()) < 0.01
        assert abs(noise.var() - 0.05) < 0.002
        assert (images + noise).max() > 1

    def test_noise_switches(self, key, images, labels, linear_network):
        logits_fn = linear_network(SHAPE)[0]
        noisy = lj.attacks.create("gaussian_noise")(key, logits_fn, images, labels)
        clipped = lj.attacks.create("gaussian_noise", clip=True)(key, logits_fn, images, labels)
        np.testing.assert_allclose(clipped, np.clip(noisy, 0, 1), atol=1e-7)
        nothing = lj.attacks.create("gaussian_noise", variance=0.0)(key, logits_fn, images, labels)
        np.testing.assert_array_equal(nothing, images)

    def test_noise_of_the_paper_has_the_norm_of_table_7(self, key):
        noise = lj.attacks.create("gaussian_noise")(
            key, lambda x: x[:, 0, 0, :], np.zeros((64, 32, 32, 3), np.float32), np.zeros(64, np.int32)
        )
        assert abs(float(l2_norm(noise).mean()) - 12.39) < 0.05

    @pytest.mark.parametrize("padding", ["zero", "reflect"])
    def test_blur_is_the_separable_gaussian(self, key, images, labels, linear_network, padding):
        taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * 0.8**2))
        taps /= taps.sum()
        mode = {"zero": "constant", "reflect": "reflect"}[padding]
        padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
        expected = sum(taps[i] * taps[j] * padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3))
        attack = lj.attacks.create("gaussian_blur", kernel_size=3, sigma=0.8, padding=padding)
        np.testing.assert_allclose(attack(key, linear_network(SHAPE)[0], images, labels), expected, atol=1e-6)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"kernel_size": 4}, "odd"),
            ({"kernel_size": -1}, "odd"),
            ({"sigma": 0}, "a positive number"),
            ({"padding": "edge"}, "'zero' or 'reflect'"),
        ],
    )
    def test_blur_refuses(self, key, images, labels, linear_network, parameters, message):
        with pytest.raises(ValueError, match=message):
            lj.attacks.create("gaussian_blur", **parameters)(key, linear_network(SHAPE)[0], images, labels)

    def test_recorded_blur(self, key, original):
        recorded = np.load(original / "components" / "gaussian_blur_noise.npz")
        blurred = lj.attacks.create("gaussian_blur")(
            key, lambda x: x[:, 0, 0, :], recorded["images"], np.zeros(4, np.int32)
        )
        np.testing.assert_allclose(blurred, recorded["blurred_zero_padding_as_torchgeometry_0p1p2"], atol=1e-6)


def assert_nearly_all_close(actual, desired):
    """Within 1e-4, except for the few pixels behind a ReLU whose input is nearly zero and may round to either side."""
    difference = np.abs(actual - desired)
    assert (difference > 1e-4).mean() < 2e-3
    assert difference.max() < 1e-2


class TestRecordedTrajectories:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_pgd(self, key, original, network_a, norm):
        recorded = np.load(original / "components" / "pgd_trajectories.npz")
        images, labels = jnp.asarray(recorded["images"]), jnp.asarray(recorded["labels"])
        bound, step_size = float(recorded[f"{norm}_eps"]), float(recorded[f"{norm}_eps_iter"])

        @jax.jit
        def perturbation(steps):
            forward = gradient.stateless(network_a)
            options = dict(norm=norm, bound=bound, steps=steps, step_size=step_size)
            return gradient.pgd(key, forward, (), images, labels, **options)[0] - images

        for steps, expected in zip(recorded["recorded_after_steps"], recorded[f"{norm}_delta_after_step"], strict=True):
            difference = np.abs(perturbation(steps) - expected)
            if norm == "l2":
                assert difference.max() < 1e-4, steps
            else:  # a sign is a discrete choice: where a gradient is all but zero it may differ
                assert (difference > 1e-5).mean() < (1e-3 if steps <= 10 else 0.02), steps

    @pytest.fixture
    def recorded(self, original, monkeypatch):
        """The recorded Lagrangian attack; attacks in the test start from its first perturbation."""
        recorded = np.load(original / "components" / "lagrangian_attack.npz")
        module = importlib.import_module("lagrangian_jax.attacks.lagrangian")
        monkeypatch.setattr(module, "normal", lambda keys, shape: jnp.asarray(recorded["delta_init"]) / 0.01)
        return recorded

    def test_lagrangian_in_eval_mode(self, key, recorded, network_a):
        images, labels = jnp.asarray(recorded["images"]), jnp.asarray(recorded["labels"])

        def forward(images, state):  # the state collects what the network sees
            seen, i = state
            return network_a(images), (seen.at[i].set(images), i + 1)

        seen = jnp.zeros((5, *images.shape))
        run = jax.jit(lambda: lagrangian_with_state(key, forward, (seen, 0), images, labels))
        adversarial, (seen, forwards) = run()
        assert forwards == 5
        np.testing.assert_allclose(seen[0] - images, recorded["delta_init"], atol=1e-6)
        for i in range(1, 5):
            assert_nearly_all_close(seen[i] - images, recorded["eval_delta_after_step"][i - 1])
        assert_nearly_all_close(adversarial, recorded["eval_adv_images"])

    def test_lagrangian_in_train_mode_and_two_training_steps(self, key, recorded, original):
        """Batch statistics pass through the five forward passes of the attack, in order.

        The recorded statistics "after the attack" are views of the network's own buffers, so they show them after the
        two training steps that the recording goes on with; so does the linear weight "after the first step".
        """
        network = lj.models.create("resnet18", num_classes=10, width=16)
        variables = lj.interop.load(original / "model_a.safetensors", network)
        images, labels = jnp.asarray(recorded["images"]), jnp.asarray(recorded["labels"])
        statistics = variables["batch_stats"]
        np.testing.assert_allclose(statistics["bn1"]["mean"], recorded["train_bn1_running_mean_before"], atol=1e-6)

        def apply(params, images, statistics):
            variables = {"params": params, "batch_stats": statistics}
            logits, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
            return logits, updated["batch_stats"]

        @jax.jit
        def attack(params, statistics):
            def forward(images, state):
                statistics, seen, i = state
                logits, statistics = apply(params, images, statistics)
                return logits, (statistics, seen.at[i].set(images), i + 1)

            state = (statistics, jnp.zeros((5, *images.shape)), 0)
            return lagrangian_with_state(key, forward, state, images, labels)

        adversarial, (statistics, seen, _) = attack(variables["params"], statistics)
        for i in range(1, 5):
            assert_nearly_all_close(seen[i] - images, recorded["train_delta_after_step"][i - 1])
        assert_nearly_all_close(adversarial, recorded["train_adv_images"])

        optimiser = optax.chain(optax.add_decayed_weights(2e-4), optax.trace(0.9), optax.scale(-0.1))

        @jax.jit
        def train_step(params, statistics, momentum):
            def loss(params):
                logits, updated = apply(params, jnp.asarray(recorded["train_adv_images"]), statistics)
                return cross_entropy(logits, labels).mean(), (logits, updated)

            (value, (logits, statistics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, momentum = optimiser.update(grads, momentum, params)
            return optax.apply_updates(params, updates), statistics, momentum, value, logits

        params, momentum = variables["params"], optimiser.init(variables["params"])
        params, statistics, momentum, value, logits = train_step(params, statistics, momentum)
        np.testing.assert_allclose(value, recorded["trainstep_loss"], atol=1e-5)
        np.testing.assert_allclose(logits, recorded["trainstep_logits"], atol=1e-4)
        params, statistics, momentum, value, _ = train_step(params, statistics, momentum)
        np.testing.assert_allclose(value, recorded["trainstep2_loss_same_adv"], atol=1e-5)
        np.testing.assert_allclose(params["linear"]["kernel"].T, recorded["trainstep2_linear_weight_after"], atol=1e-5)
        first, last = statistics["bn1"], statistics["layer4_1"]["bn2"]
        np.testing.assert_allclose(first["mean"], recorded["train_bn1_running_mean_after_attack"], atol=1e-5)
        np.testing.assert_allclose(first["var"], recorded["train_bn1_running_var_after_attack"], atol=1e-5)
        np.testing.assert_allclose(last["mean"], recorded["train_layer4_1_bn2_running_mean_after_attack"], atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("attack", "file"),
        [
            (("lagrangian", {}), "lag"),
            (("pgd_l2", {"bound": 1.0}), "l2_pgd40"),
            (("pgd_l2", {"bound": 0.5}), "l2_pgd40_eps0p5"),
            (("pgd_linf", {"bound": 0.0314}), "linf_pgd40"),
            (("pgd_linf", {"bound": 16 / 255}), "linf_pgd40_16"),
            (("gaussian_noise", {}), "gaussian_noise"),
            (("gaussian_blur", {}), "gaussian_blur"),
        ],
    )
    def test_robust_accuracy(self, key, golden, network_a, cifar10_test, attack, file):
        recorded = np.load(golden / "model_a_test0-127" / f"{file}.npz")
        images, labels = cifar10_test(128)
        run = jax.jit(lambda x, y: lj.attacks.create(attack[0], **attack[1])(key, network_a, x, y))
        adversarial = run(images, labels)
        predictions = jnp.argmax(jax.jit(network_a)(adversarial), axis=-1)
        random = file in ("lag", "gaussian_noise")
        robust, expected = (predictions == labels).mean(), 1 - recorded["success"].mean()
        assert robust <= expected + (0.05 if random else 0.01)
        assert robust >= expected - 0.05
        np.testing.assert_allclose(
            l2_norm(adversarial - images).mean(), recorded["l2"].mean(), rtol=0.05 if random else 0.02
        )
