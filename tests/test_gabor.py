"""Gabor noise and the filtering under it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

import lagrangian_jax as lj
from lagrangian_jax.attacks import gabor
from lagrangian_jax.attacks.arrays import clamp
from lagrangian_jax.attacks.filtering import correlator


@pytest.mark.parametrize(("height", "width", "size"), [(9, 12, 5), (16, 16, 23), (4, 8, 23)])
def test_correlation_equals_the_direct_sum(height, width, size):
    rng = np.random.default_rng(0)
    planes, kernels = rng.normal(size=(2, 3, height, width)), rng.normal(size=(2, 3, size, size))
    half = size // 2
    padded = np.pad(planes, ((0, 0), (0, 0), (half, half), (half, half)))
    direct = [
        sum(scipy.signal.correlate2d(p, k, "valid") for p, k in zip(*pair, strict=True))
        for pair in zip(padded, kernels, strict=True)
    ]
    found = correlator(jnp.asarray(kernels, jnp.float32), height, width)(jnp.asarray(planes, jnp.float32))
    np.testing.assert_allclose(found, direct, atol=1e-4)


def test_gabor_noise_is_zero_to_one_and_finite_where_constant():
    noise = jax.random.normal(jax.random.key(0), (2, 8, 8)) * 5 + 3
    levelled = gabor.normalise_noise(noise)
    np.testing.assert_array_equal(levelled.min((1, 2)), 0)
    np.testing.assert_allclose(levelled.max((1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(gabor.normalise_noise(4 * noise), levelled, atol=1e-3)
    flat, gradient = jax.value_and_grad(lambda x: gabor.normalise_noise(x).sum())(jnp.full((1, 8, 8), 2.0))
    assert flat == 0
    assert np.isfinite(gradient).all()


def test_gabor_random_kernels_stay_in_their_ranges():
    keys = jax.random.split(jax.random.key(0), 500)
    kernels = np.asarray(jax.jit(gabor.random_kernels)(keys))
    sides = np.round(kernels[:, 11, 11])  # every wave is 1 at the centre
    np.testing.assert_allclose(kernels[:, 11, 11], sides, atol=1e-4)
    assert set(sides) == set(range(1, 11))
    np.testing.assert_allclose(kernels, kernels[:, ::-1, ::-1], atol=1e-4)
    impulses = np.asarray(jax.jit(gabor.random_impulses, static_argnums=(1, 2))(keys, 16, 16))
    assert np.mean(impulses != 0) == pytest.approx(1 / 14, abs=0.005)
    assert np.abs(impulses).max() <= 1


@pytest.mark.parametrize("random_start", [False, True])
def test_gabor_brightens_where_a_linear_network_wants_it(linear_network, key, monkeypatch, random_start):
    """With a kernel that changes nothing: every free impulse follows the slope at its pixel, the others stay zero."""
    logits_fn, weights, _ = linear_network((8, 8, 3), 2)
    impulse = jnp.zeros((2, 23, 23)).at[:, 11, 11].set(1.0)
    monkeypatch.setattr(gabor, "random_kernels", lambda keys: impulse)
    taken = np.zeros((2, 8, 8), np.float32)
    taken[0, 2, 3], taken[1, 7] = 0.4, -0.3
    monkeypatch.setattr(gabor, "random_impulses", lambda *_: jnp.asarray(taken))
    images = np.random.default_rng(0).uniform(0.3, 0.7, (2, 8, 8, 3)).astype(np.float32)
    attack = lj.attacks.create("gabor", steps=3, bound=12.5, random_start=random_start)
    adversarial = attack(key, logits_fn, images, np.array([0, 1], np.int32))
    slope = (weights[:, 1] - weights[:, 0]).reshape(8, 8, 3).sum(-1)
    impulses = np.sign(np.stack([slope, -slope])) * ~((taken != 0) & random_start)
    noise = gabor.normalise_noise(jnp.asarray(impulses))
    np.testing.assert_allclose(noise[impulses != 0], impulses[impulses != 0] > 0, atol=1e-6)
    np.testing.assert_allclose(adversarial, images + 12.5 / 255 * noise[..., None], atol=1e-5)


def test_gabor_impulses_stay_within_one(key, monkeypatch):
    """Some pixels are always too dark, some too bright, some alternate, by their side of the mean impulse.

    That mean changes if impulses grow without limit.
    """
    impulse = jnp.zeros((1, 23, 23)).at[:, 11, 11].set(1.0)
    monkeypatch.setattr(gabor, "random_kernels", lambda keys: impulse)
    rng = np.random.default_rng(0)
    images = np.full((1, 8, 8, 1), 0.5, np.float32)
    target = images + 12.5 / 255 * rng.choice([2, -1, 0.5], images.shape, p=[0.5, 0.2, 0.3]).astype(np.float32)

    def logits_fn(images):
        near = -jnp.sum((images - target) ** 2, (1, 2, 3))
        return jnp.stack([-near, near], -1)

    def expected(limit, steps=4, step_size=0.7):
        impulses = np.zeros((1, 8, 8), np.float32)
        for _ in range(steps):
            there = images[..., 0] + 12.5 / 255 * gabor.normalise_noise(jnp.asarray(impulses))
            impulses = np.clip(impulses + step_size * np.sign(target[..., 0] - there), -limit, limit)
        return images + 12.5 / 255 * gabor.normalise_noise(jnp.asarray(impulses))[..., None]

    attack = lj.attacks.create("gabor", steps=4, step_size=0.7, random_start=False)
    found = attack(key, logits_fn, images, np.zeros(1, np.int32))
    np.testing.assert_allclose(found, expected(1.0), atol=1e-4)
    assert np.abs(found - expected(np.inf)).max() > 0.01


def test_gabor_kernels_are_drawn_from_the_distributions_of_the_original(monkeypatch):
    """Uniform and independent: 1 to 10 directions, sigma in widths, waves a width, the first angle."""
    monkeypatch.setattr(gabor, "gabor_kernels", lambda *drawn: jnp.stack(drawn, axis=-1))
    drawn = np.asarray(gabor.random_kernels(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose([np.mean(drawn[:, 0] == sides) for sides in range(1, 11)], 0.1, atol=0.02)
    np.testing.assert_allclose(drawn[:, 1:].min(0), [0.1, 3.0, 0.0], atol=0.01)
    np.testing.assert_allclose(drawn[:, 1:].max(0), [0.4, 5.75, np.pi], atol=0.01)
    np.testing.assert_allclose(drawn[:, 1:].mean(0), [0.25, 4.375, np.pi / 2], rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(4), atol=0.06)


def test_gabor_impulses_are_sparse_and_uniform():
    impulses = np.asarray(gabor.random_impulses(jax.random.split(jax.random.key(0), 20), 64, 64))
    assert np.mean(impulses != 0) == pytest.approx(1 / 14, abs=0.003)
    chosen = np.sort(impulses[impulses != 0])
    np.testing.assert_allclose(chosen, np.linspace(-1, 1, len(chosen)), atol=0.04)


def test_gabor_kernels_and_noise_as_recorded(original):
    recorded = np.load(original / "components" / "gabor.npz")
    sides, sigma, frequency, angle = recorded["kernel_params_sides_sigma_Lambda_theta"].T
    kernels = gabor.gabor_kernels(sides.astype(np.int32), sigma, frequency, angle)
    np.testing.assert_allclose(kernels, recorded["kernels"], atol=3e-5)
    correlate = correlator(jnp.asarray(recorded["kernels"])[:, None], 32, 32)
    impulses = jnp.asarray(recorded["sparse_noise"])
    filtered = correlate(impulses[:, None])
    np.testing.assert_allclose(filtered, recorded["convolved"], atol=1e-4)
    # Near zero deviation the original's contrast is rounding noise of its Fourier transform.
    noise = gabor.normalise_noise(filtered)
    deviation = np.abs(filtered - filtered.mean((1, 2), keepdims=True))
    clear = deviation > 0.02 * deviation.max((1, 2), keepdims=True)
    assert clear.mean() > 0.9
    np.testing.assert_allclose(noise[clear], recorded["normalised_noise"][clear], atol=1e-4)
    np.testing.assert_allclose(noise, recorded["normalised_noise"], atol=5e-3)
    for bound, name in ((12.5, "out_eps12p5"), (0.125, "out_eps0p125")):
        image = clamp(255 * recorded["images"] + bound * noise[..., None], 0.0, 255.0) / 255
        np.testing.assert_allclose(image, recorded[name], atol=5e-3 * bound / 255 + 1e-6)

    def weighted(impulses):
        return jnp.sum(gabor.normalise_noise(correlate(impulses[:, None])) * recorded["loss_weights"])

    gradient, expected = jax.grad(weighted)(impulses), recorded["grad_sparse_of_weighted_sum_noise"]
    assert np.linalg.norm(gradient - expected) < 0.03 * np.linalg.norm(expected)
    assert np.mean(np.sign(gradient) != np.sign(expected)) < 0.002
