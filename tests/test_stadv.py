"""StAdv: the flow, its roughness, the bound, and the recorded values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks.sampling import bilinear_sample
from lagrangian_jax.attacks.stadv import flow_roughness, identity_flow


@pytest.fixture(scope="module")
def recorded(original):
    return np.load(original / "components" / "stadv.npz")


def brightness_network(images):
    """Class 0 while the left half is brighter: pixels that move across the middle change the class."""
    left, right = jnp.split(images.mean(axis=(1, 3)), 2, axis=1)
    gap = 20 * (left.mean(1) - right.mean(1))
    return jnp.stack([gap, -gap, jnp.zeros_like(gap)], axis=-1)


def step_edge(count=1, size=8):
    """Images with a step down in brightness at the middle, on a ramp that darkens to the right."""
    image = np.where(np.arange(size) < size // 2, 0.6, 0.5)[None, None, :, None]
    ramp = np.linspace(0.1, -0.1, size)[None, None, :, None]
    return jnp.asarray(np.tile(image + ramp, (count, size, 1, 3)), jnp.float32)


def test_a_constant_flow_has_only_the_roughness_of_its_guard():
    flow = jnp.full((2, 4, 6, 2), 0.3)
    pairs = 2 * (3 * 6 + 4 * 5) + 2 * (4 + 6)
    np.testing.assert_allclose(flow_roughness(flow), pairs * 1e-5, rtol=1e-4)


def test_roughness_counts_each_pair_twice():
    flow = jnp.zeros((1, 3, 3, 2)).at[0, 1, 1].set(jnp.array([3.0, 4.0]))
    assert float(flow_roughness(flow)[0]) == pytest.approx(2 * 4 * 5.0, abs=1e-2)


@pytest.mark.parametrize("shape", [(8, 8), (5, 7)])
def test_the_identity_returns_the_image(shape):
    images = jax.random.uniform(jax.random.key(0), (2, *shape, 3))
    grid = jnp.broadcast_to(identity_flow(*shape), (2, *shape, 2))
    np.testing.assert_allclose(bilinear_sample(images, grid), images, atol=2e-6)


@pytest.mark.parametrize("towards", [-1, 1])
@pytest.mark.parametrize("bound", [0.1, 0.3])
def test_the_flow_stays_within_the_bound(key, bound, towards):
    """On a horizontal ramp a move by m pixels changes a pixel by m times the slope."""
    ramp = np.tile(np.linspace(0.2, 0.8, 16, dtype=np.float32)[None, None, :, None], (1, 16, 1, 1))
    network = lambda images: jnp.stack([9 - 10 * towards * images[:, 8, 8, 0], 0 * images[:, 0, 0, 0]], -1)  # noqa: E731
    attack = lj.attacks.create("stadv", bound=bound, steps=60, step_size=0.02, smoothness=0.0)
    adversarial = attack(key, network, ramp, np.array([0]))
    slope = 0.6 / 15
    change = (np.asarray(adversarial) - ramp)[0, 8, 8, 0]
    assert change == pytest.approx(towards * bound * 16 / 2 * slope, rel=1e-3)


def test_the_penalty_is_on_the_roughness_of_the_move(key):
    """Without a gradient of the margin nothing moves; with one at one pixel, its neighbours follow."""
    images = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    attack = lj.attacks.create("stadv", bound=0.2, steps=3, step_size=0.05, smoothness=0.05)
    still = attack(key, lambda x: jnp.zeros((len(x), 2)), images, np.array([0]))
    np.testing.assert_allclose(still, images, atol=2e-6)
    network = lambda x: jnp.stack([3 + x[:, 4, 4, 0], 0 * x[:, 4, 4, 0]], axis=-1)  # noqa: E731
    moved = np.abs(attack(key, network, images, np.array([0])) - images).sum(-1)[0] > 1e-4
    assert moved[4, 4]
    assert moved.sum() > 1
    alone = lj.attacks.create("stadv", bound=0.2, steps=3, step_size=0.05, smoothness=0.0)
    moved = np.abs(alone(key, network, images, np.array([0])) - images).sum(-1)[0] > 1e-4
    assert moved.sum() == 1


def test_best_is_never_weaker_than_last(key):
    images, labels = step_edge(3), np.zeros(3, np.int32)
    parameters = dict(bound=0.4, steps=9, step_size=0.3)  # steps so long that the margin goes up and down
    margins = {
        keep: lj.losses.margin(
            brightness_network(
                lj.attacks.create("stadv", keep=keep, **parameters)(key, brightness_network, images, labels)
            ),
            labels,
        )
        for keep in ("last", "best")
    }
    assert np.all(np.asarray(margins["best"]) >= np.asarray(margins["last"]) - 1e-6)


@pytest.mark.parametrize("align", [False, True])
def test_components_match_the_original(recorded, align):
    prefix = f"align_corners_{align}_"
    identity = identity_flow(32, 32, align)[None]
    np.testing.assert_allclose(identity[0], recorded[prefix + "identity_grid_xy"], atol=1e-6)
    noisy = jnp.clip(identity + recorded["grid_noise_xy"], -1, 1)
    grid = jnp.clip(noisy, identity - 0.05, identity + 0.05)
    np.testing.assert_allclose(grid, recorded[prefix + "grid_xy_after_projection"], atol=1e-6)

    images, grid = jnp.asarray(recorded["images"]), jnp.asarray(recorded[prefix + "grid_xy_after_projection"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(grid):
        warped, roughness = bilinear_sample(images, grid, align), flow_roughness(grid - identity)
        return jnp.sum(warped * recorded["loss_weights"]) + 0.05 * jnp.sum(roughness), (warped, roughness)

    (_, (warped, roughness)), gradient = total(grid)
    np.testing.assert_allclose(warped, recorded[prefix + "warped"], atol=1e-6)
    np.testing.assert_allclose(roughness, recorded[prefix + "smoothness"], rtol=1e-5)
    np.testing.assert_allclose(gradient, recorded[prefix + "grad_of_weighted_sum_plus_0p05_smoothness"], atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "step_size"), [("lagrangian_unseen", 0.001), ("perceptual_advex", 0.01)])
def test_whole_attacks_match_the_original(recorded, network_a, key, variant, step_size):
    images, labels = recorded["images"], recorded["labels"]
    for steps, mean, largest in ((1, 1e-4, 1e-5), (5, 0.02, None), (20, 0.08, None)):
        adversarial = lj.attacks.create("stadv", steps=steps, step_size=step_size)(key, network_a, images, labels)
        expected = recorded[f"align_corners_False_{variant}_attack_adv_after_{steps}_iterations"]
        error = np.abs(adversarial - expected)
        # Adam's first steps are signs, so rounding grows; the error is measured against the perturbation (0.002 or
        # 0.02 after a step, to which the rounding of an image adds 1e-7).
        assert error.mean() <= mean * np.abs(expected - images).mean()
        if largest:
            assert error.max() <= largest


@pytest.mark.slow
def test_robust_accuracy_is_that_of_the_original(golden, network_a, cifar10_test, key):
    recorded = np.load(golden / "model_a_test0-127" / "stadv_official.npz")
    images, labels = cifar10_test(128)
    adversarial = np.asarray(lj.attacks.create("stadv", bound=0.05, steps=100)(key, network_a, images, labels))
    robust = np.argmax(network_a(adversarial), -1) == labels
    assert abs(robust.mean() - (1 - recorded["success"].mean())) <= 0.02
    norms = np.sqrt(((adversarial - images) ** 2).sum((1, 2, 3)))
    assert norms.mean() == pytest.approx(recorded["l2"].mean(), rel=0.02)
