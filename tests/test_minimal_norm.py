"""DDN, DeepFool, Carlini-Wagner, ALMA and MSD: closed forms, properties, recorded results."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks.arrays import l2_norm
from lagrangian_jax.attacks.carlini_wagner import carlini_wagner
from lagrangian_jax.attacks.gradient import stateless
from lagrangian_jax.attacks.msd import msd_with_state, project_l1, top_k_direction

SHAPE = (4, 4, 3)
ATTACKS = {  # parameters that are quick, and how far over the smallest norm the result may be
    "ddn": ({"steps": 100, "levels": None}, 1.1),
    "deepfool": ({}, 1.021),
    "carlini_wagner": ({"steps": 200}, 1.05),
    "augmented_lagrangian": ({"steps": 200, "smoothing": 0.5}, 1.05),
}
every = pytest.mark.parametrize("name", ATTACKS)


def create(name, **parameters):
    return lj.attacks.create(name, **{**ATTACKS[name][0], **parameters})


@pytest.fixture
def problem(linear_network):
    """A linear network, images inside the box, the labels that it gives them, and their distances to its boundary."""
    logits_fn, weights, _ = linear_network(SHAPE, classes=4)
    rng = np.random.default_rng(5)
    images = rng.uniform(0.4, 0.6, size=(100, *SHAPE)).astype(np.float32)
    logits = np.asarray(logits_fn(images), np.float64)
    labels = logits.argmax(-1).astype(np.int32)
    gaps = np.take_along_axis(logits, labels[:, None], -1) - logits
    steepness = np.linalg.norm(weights[:, labels].T[:, :, None] - weights[None], axis=1)
    distances = np.where(gaps > 0, gaps / np.where(gaps > 0, steepness, 1), np.inf).min(-1)
    chosen = np.flatnonzero((distances > 0.1) & (distances < 1.0))[:8]  # not too near for steps, nor outside the box
    assert len(chosen) == 8
    return logits_fn, images[chosen], labels[chosen], distances[chosen]


def norms_of(adversarial, images):
    return np.asarray(l2_norm(jnp.asarray(adversarial) - images))


class TestMinimalNorm:
    @every
    def test_the_boundary_of_a_linear_network_is_found(self, key, problem, name):
        logits_fn, images, labels, distances = problem
        adversarial = create(name)(key, logits_fn, images, labels)
        assert (jnp.argmax(logits_fn(adversarial), axis=-1) != labels).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        norms = norms_of(adversarial, images)
        assert (norms >= distances * 0.999).all()
        assert (norms <= distances * ATTACKS[name][1] + 1e-3).all()

    def test_ddn_levels(self, key, problem):
        logits_fn, images, labels, _ = problem
        coarse = create("ddn", levels=16)(key, logits_fn, images, labels)
        np.testing.assert_allclose(coarse * 15, np.round(coarse * 15), atol=1e-5)
        assert (jnp.argmax(logits_fn(coarse), axis=-1) != labels).all()

    def test_ddn_max_norm(self, key, problem):
        logits_fn, images, labels, distances = problem
        free = create("ddn")(key, logits_fn, images, labels)
        limit = float(np.median(distances))
        shrunk = create("ddn", max_norm=limit)(key, logits_fn, images, labels)
        expected = np.minimum(norms_of(free, images), limit)
        np.testing.assert_allclose(norms_of(shrunk, images), expected, rtol=1e-5)

    def test_ddn_moves_on_where_the_gradient_is_zero(self, key):
        """A plateau around the image: only noise leads away from it."""
        images, labels = np.full((3, *SHAPE), 0.5, np.float32), np.zeros(3, np.int32)

        def plateau(x):
            beyond = jnp.maximum(jnp.sum(jnp.square(x - 0.5), axis=(1, 2, 3)) - 0.25, 0)
            return jnp.stack([jnp.full(len(x), 0.1), beyond, -jnp.ones(len(x))], axis=-1)

        adversarial = create("ddn")(key, plateau, images, labels)
        assert (jnp.argmax(plateau(adversarial), axis=-1) == 1).all()

    def test_carlini_wagner_margin(self, key, problem):
        logits_fn, images, labels, _ = problem
        plain = create("carlini_wagner")(key, logits_fn, images, labels)
        confident = create("carlini_wagner", kappa=1.0)(key, logits_fn, images, labels)
        assert (lj.losses.margin(logits_fn(confident), labels) > 1).all()
        assert (norms_of(confident, images) > norms_of(plain, images)).all()

    @pytest.mark.parametrize(("early", "passes"), [(True, 11), (False, 100)])
    def test_carlini_wagner_aborts_after_a_tenth_of_the_steps_without_progress(self, key, early, passes):
        images, labels, seen = jnp.full((2, *SHAPE), 0.5), jnp.array([0, 0]), []

        def flat(x):
            jax.debug.callback(lambda: seen.append(1))
            return jnp.zeros((len(x), 3)).at[:, 0].set(1.0)

        carlini_wagner(key, flat, images, labels, steps=100, search_steps=1, abort_early=early)
        jax.effects_barrier()
        assert len(seen) == 1 + passes  # one more for the prediction on the clean images

    def test_carlini_wagner_abort_costs_little(self, key, problem):
        logits_fn, images, labels, _ = problem
        norms = [
            norms_of(create("carlini_wagner", abort_early=early)(key, logits_fn, images, labels), images)
            for early in (False, True)
        ]
        assert (norms[1] <= norms[0] * 1.02).all()

    @pytest.mark.parametrize(("classes", "distance"), [(2, 0.2), (3, 0.1), (1000, 0.1)])
    def test_deepfool_considers_so_many_classes(self, key, classes, distance):
        """The runner-up on the clean image has the farther boundary; with two classes it is the only one considered."""
        directions = np.zeros((48, 3), np.float32)
        directions[0, 1], directions[1, 2] = 0.5, 3.0
        images, labels = np.full((2, *SHAPE), 0.5, np.float32), np.zeros(2, np.int32)

        def logits_fn(x):
            return (x - 0.5).reshape(len(x), -1) @ directions + jnp.array([[0, -0.1, -0.3]])

        adversarial = create("deepfool", classes=classes)(key, logits_fn, images, labels)
        np.testing.assert_allclose(norms_of(adversarial, images), 1.02 * distance, atol=1e-3)

    def test_augmented_lagrangian_takes_other_distances(self, key, problem):
        """The l1 distance is minimised by few changed coordinates."""
        logits_fn, images, labels, _ = problem
        sums = {}
        for name, parameters in {
            "l2": {},
            "l1": {"distance": lambda x, other: jnp.sum(jnp.abs(other - x), axis=(1, 2, 3)), "init_distance": 0.5},
        }.items():
            adversarial = create("augmented_lagrangian", **parameters)(key, logits_fn, images, labels)
            assert (jnp.argmax(logits_fn(adversarial), axis=-1) != labels).all()
            sums[name] = np.abs(adversarial - images).sum((1, 2, 3))
        assert (sums["l1"] < 0.7 * sums["l2"]).all()

    def test_augmented_lagrangian_needs_three_classes(self, key, linear_network):
        images, labels = np.full((2, *SHAPE), 0.5, np.float32), np.zeros(2, np.int32)
        with pytest.raises(ValueError, match="at least 3 classes, got 2"):
            create("augmented_lagrangian")(key, linear_network(SHAPE, classes=2)[0], images, labels)


class TestProjectionAndDirection:
    @pytest.mark.parametrize("bound", [0.0, 0.5, 3.0])
    def test_l1_projection_is_the_nearest_point_of_the_ball(self, bound):
        """Optimality: the distance to the point is largest, and of one size, in the coordinates that are not zero."""
        point = np.random.default_rng(7).normal(size=(20, *SHAPE)).astype(np.float32)
        projected = np.asarray(project_l1(jnp.asarray(point), bound))
        np.testing.assert_allclose(np.abs(projected).sum((1, 2, 3)), bound, rtol=1e-5, atol=1e-6)
        rest = (point - projected).reshape(20, -1)
        kept = projected.reshape(20, -1) != 0
        threshold = np.abs(rest).max(-1, keepdims=True)
        np.testing.assert_allclose(np.abs(rest)[kept], np.broadcast_to(threshold, rest.shape)[kept], atol=1e-5)
        assert (np.sign(rest) * np.sign(projected.reshape(20, -1)) >= 0).all()

    def test_l1_projection_leaves_the_inside_alone_and_is_idempotent(self):
        point = jnp.asarray(np.random.default_rng(8).normal(size=(4, *SHAPE)).astype(np.float32))
        scaled = (
            point
            / jnp.sum(jnp.abs(point), axis=(1, 2, 3), keepdims=True)
            * jnp.array([0, 0.5, 1, 9])[:, None, None, None]
        )
        once = project_l1(scaled, 1.0)
        np.testing.assert_allclose(once[:3], scaled[:3], atol=1e-6)
        np.testing.assert_allclose(project_l1(once, 1.0), once, atol=1e-6)

    def test_direction_of_a_known_case(self):
        gradient = jnp.array([5.0, -4.0, 3.0, 3.0, -1.0, 9.0, -9.0, 0.5, 8.0, -8.0]).reshape(1, 1, 1, 10)
        # Two cannot move the way that the gradient goes; the next, near an edge, goes the other way. The last two could
        # leave the edge that they are on, but are left out, as in the original.
        image = jnp.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.97, 0.0, 0.03, 0.0, 1.0]).reshape(1, 1, 1, 10)
        for count, expected in {
            1: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            3: [1, -1, 1, 1, 0, 0, 0, 0, 0, 0],
            7: [1, -1, 1, 1, -1, 0, 0, 1, 0, 0],
        }.items():
            direction = top_k_direction(gradient, image, jnp.array([0.05]), jnp.array([count]), 7)
            np.testing.assert_array_equal(direction.ravel(), expected)


class TestMSD:
    @pytest.mark.parametrize(("largest", "norm"), [("bound_linf", 0), ("bound_l2", 1), ("bound_l1", 2)])
    def test_the_widest_ball_is_used_and_its_bound_holds(self, key, linear_network, largest, norm):
        logits_fn, _, _ = linear_network(SHAPE, classes=2)
        images = np.random.default_rng(9).uniform(0.4, 0.6, size=(4, *SHAPE)).astype(np.float32)
        labels = np.array([0, 1, 0, 1], np.int32)
        bounds = {"bound_linf": 0.01, "bound_l2": 0.05, "bound_l1": 0.1} | {largest: [0.1, 0.6, 2.0][norm]}
        sizes = {"step_size_linf": 0.01, "step_size_l2": 0.05, "step_size_l1": 0.005}
        adversarial = lj.attacks.create("msd", **bounds, **sizes)(key, logits_fn, images, labels)
        change = np.asarray(adversarial - images).reshape(4, -1)
        measured = [np.abs(change).max(-1), np.linalg.norm(change, axis=-1), np.abs(change).sum(-1)][norm]
        np.testing.assert_allclose(measured, bounds[largest], rtol=0.02)

    def test_state_passes_through_four_forward_passes_a_step(self, key, linear_network):
        logits_fn = linear_network(SHAPE)[0]
        images, labels = jnp.full((2, *SHAPE), 0.5), jnp.array([0, 1])

        def counting(images, state):
            return logits_fn(images), state + 1

        adversarial, calls = msd_with_state(key, counting, 0, images, labels, steps=3)
        assert calls == 12
        plain, _ = msd_with_state(key, stateless(logits_fn), (), images, labels, steps=3)
        np.testing.assert_array_equal(adversarial, plain)


class TestRecorded:
    @pytest.fixture
    def losses(self, original):
        return np.load(original / "components" / "losses.npz")

    def test_l1_projection(self, losses, original):
        projected = project_l1(jnp.asarray(losses["msd_l1ball_input"]), 12.0)
        np.testing.assert_allclose(projected, losses["msd_l1ball_eps12"], atol=1e-6)
        # APGD's projection onto ball and box at once is the same where the box does not bind.
        apgd = np.load(original / "components" / "apgd.npz")
        change, correction = apgd["l1proj_input_delta"], apgd["l1proj_eps12_correction"]
        projected = project_l1(jnp.asarray(change), 12.0)
        inside = ((apgd["images"] + projected >= 0) & (apgd["images"] + projected <= 1)).all((1, 2, 3))
        assert inside.any()
        np.testing.assert_allclose(projected[inside], (change + correction)[inside], atol=1e-5)

    def test_direction(self, losses):
        direction = top_k_direction(
            jnp.asarray(losses["msd_l1dir_grad"]),
            jnp.asarray(losses["msd_images"]),
            jnp.full(4, 0.05),
            jnp.full(4, 20),
            20,
        )
        np.testing.assert_array_equal(direction, losses["msd_l1dir_topk_k20_gap0p05"])

    def test_msd(self, key, losses, original, monkeypatch):
        """Five steps with k = 10. The recording has the network in train mode, with statistics of the four images.

        The original projects the whole batch as soon as one example is outside the l1 ball, which moves those inside
        outwards; with that put in, the perturbations agree.
        """

        def project_batch(perturbation, bound):
            sizes = jnp.abs(perturbation).reshape(len(perturbation), -1)
            descending = -jnp.sort(-sizes, axis=-1)
            excess = jnp.cumsum(descending, axis=-1) - bound
            kept = jnp.sum(descending * jnp.arange(1, sizes.shape[1] + 1)[None] > excess, axis=-1)
            threshold = (jnp.take_along_axis(excess, kept[:, None] - 1, axis=-1)[:, 0] / kept).reshape(-1, 1, 1, 1)
            projected = jnp.sign(perturbation) * jnp.maximum(jnp.abs(perturbation) - threshold, 0)
            return jnp.where(jnp.any(sizes.sum(-1) > bound), projected, perturbation)

        monkeypatch.setattr(importlib.import_module("lagrangian_jax.attacks.msd"), "project_l1", project_batch)
        network = lj.models.create("resnet18", num_classes=10, width=16)
        variables = lj.interop.load(original / "model_a.safetensors", network)

        def forward(images, statistics):
            variables_now = {**variables, "batch_stats": statistics}
            logits, updated = network.apply(variables_now, images, train=True, mutable=["batch_stats"])
            return logits, updated["batch_stats"]

        images, labels = jnp.asarray(losses["msd_images"]), jnp.asarray(losses["msd_labels"])
        options = dict(steps=5, coordinates=(10, 10))
        run = jax.jit(lambda: msd_with_state(key, forward, variables["batch_stats"], images, labels, **options)[0])
        np.testing.assert_allclose(run() - images, losses["msd_v0_5its_k10_delta"], atol=1e-5)

    def test_ddn_on_images(self, key, golden, original, network_a):
        """The first images of the recorded 100-step attack, bit by bit almost; the rest in the slow test."""
        recorded = np.load(golden / "model_a_test0-127" / "ddn100.npz")
        images = np.load(original / "components" / "ddn_cw.npz")["images"]
        run = jax.jit(lambda: lj.attacks.create("ddn")(key, network_a, images, recorded["label"][:4]))
        np.testing.assert_allclose(run(), recorded["adv_images_nhwc_first"][:4], atol=2.5 / 255)
        np.testing.assert_allclose(norms_of(run(), images), recorded["l2"][:4], rtol=0.01, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("file", "name", "parameters"),
        [
            ("ddn100", "ddn", {}),
            ("ddn_fast_maxnorm1", "ddn", {"max_norm": 1.0}),
            (
                "cw_l2",
                "carlini_wagner",
                {"steps": 100, "search_steps": 5, "initial_const": 0.01, "abort_early": False},
            ),
        ],
    )
    def test_robust_accuracy_and_norms(self, key, golden, network_a, cifar10_test, file, name, parameters):
        recorded = np.load(golden / "model_a_test0-127" / f"{file}.npz")
        images, labels = cifar10_test(len(recorded["l2"]))
        run = jax.jit(lambda x, y: lj.attacks.create(name, **parameters)(key, network_a, x, y))
        adversarial = run(images, labels)
        norms = norms_of(adversarial, images)
        fooled = np.asarray(jnp.argmax(jax.jit(network_a)(adversarial), axis=-1) != labels)
        if "max_norm" not in parameters:
            fooled = fooled & (norms <= 1)
        assert abs(fooled.mean() - recorded["success"].mean()) <= 0.02
        moved = recorded["l2"] > 1e-3
        np.testing.assert_allclose(norms[moved], recorded["l2"][moved], rtol=0.05)
