"""Snow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import snow
from lagrangian_jax.attacks.arrays import clamp
from lagrangian_jax.attacks.filtering import correlator

PLACES = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)]


def test_snow_fades_black_and_white():
    np.testing.assert_allclose(snow.fade(jnp.zeros((1, 1, 1, 3))), 0.125)
    np.testing.assert_allclose(snow.fade(jnp.ones((1, 1, 1, 3))), 1.25, rtol=1e-5)  # before the clip


def test_snow_budget_is_a_projection():
    intensities = jax.random.normal(jax.random.key(0), (2, 7, 12, 20))
    limited = np.asarray(jax.jit(snow.limit)(intensities))
    assert limited.min() >= 1e-10
    assert limited.max() <= 1
    for rows in (slice(0, 8), slice(8, 12)):
        for columns in (slice(0, 8), slice(8, 16), slice(16, 20)):
            assert limited[:, :, rows, columns].mean((2, 3)).max() <= 0.2 + 1e-6
    low = jnp.full((1, 7, 8, 8), 0.1)
    np.testing.assert_array_equal(snow.limit(low), low)
    np.testing.assert_allclose(snow.limit(limited), limited, rtol=1e-4, atol=1e-9)


def test_snow_flakes_have_places_of_their_own():
    planes = snow.place(jnp.ones((1, 7, 2, 3)))
    assert planes.shape == (1, 7, 8, 12)
    np.testing.assert_array_equal(planes.sum((2, 3)), 6)
    assert planes.sum(1).max() == 1
    assert planes[0, 2, 4, 2] == planes[0, 5, 2, 8] == 1


def test_snow_flakes_follow_the_slope_of_a_linear_network(linear_network, key, monkeypatch):
    """With kernels that change nothing, steps of 0.1 from exp(-2.5), and no projection after the last."""
    logits_fn, weights, _ = linear_network((8, 8, 3), 2)
    impulse = jnp.zeros((2, 7, 13, 13)).at[:, :, 6, 6].set(1.0)
    monkeypatch.setattr(snow, "random_kernels", lambda keys: impulse)
    images = np.random.default_rng(0).uniform(0.0, 0.5, (2, 8, 8, 3)).astype(np.float32)
    attack = lj.attacks.create("snow", bound=0.5, steps=5, step_size=0.1, random_start=False)
    adversarial = attack(key, logits_fn, images, np.array([0, 1], np.int32))
    slope = (weights[:, 1] - weights[:, 0]).reshape(8, 8, 3).sum(-1) * np.array([1, -1])[:, None, None]
    up = np.stack([slope[:, row::4, column::4] for row, column in PLACES], axis=1) > 0
    flakes = np.full(up.shape, np.exp(-2.5))
    for step in range(5):
        flakes = flakes + np.where(up, 0.1, -0.1)
        if step < 4:
            flakes = np.clip(flakes, 1e-9, 1)
            flakes *= np.minimum(1, 0.2 / flakes.mean((2, 3), keepdims=True))
    expected = np.array(snow.fade(images))
    for layer, (row, column) in enumerate(PLACES):
        expected[:, row::4, column::4] += 0.5 * flakes[:, layer, ..., None] ** 4
    assert expected.max() < 1
    np.testing.assert_allclose(adversarial, expected, atol=1e-6)


def test_snow_kernels_are_the_drawn_streaks():
    streak = jax.jit(snow.streak)
    straight = np.asarray(streak(jnp.array([12, 12]), 1.0, 0.1))  # the diagonal, hardly blurred
    np.testing.assert_allclose(np.diag(straight), 1, atol=1e-6)
    assert straight[0, 2] == pytest.approx(0, abs=1e-6)
    flat, steep = streak(jnp.array([8, 11]), 3.0, 0.5), streak(jnp.array([11, 8]), 3.0, 0.5)
    np.testing.assert_allclose(flat, steep.T, atol=1e-6)
    kernels = np.asarray(jax.jit(snow.random_kernels)(jax.random.split(jax.random.key(0), 200)))
    np.testing.assert_allclose(kernels, kernels[:, :, ::-1, ::-1], atol=1e-6)
    leaning = kernels[:, :, :6, :6].sum((2, 3)) > kernels[:, :, :6, 7:].sum((2, 3))
    assert np.all(leaning.all(1) | ~leaning.any(1))  # one mirror for the seven
    assert leaning[:, 0].mean() == pytest.approx(0.5, abs=0.15)


def test_snow_kernels_are_drawn_from_the_distributions_of_the_original(monkeypatch):
    """Ends from 8 to 12, widths of 1, 3 and 5 pixels in 60, 30 and 10 % of the streaks, blurs from 0.41 to 0.6."""

    def drawn(end, width, sigma):  # in rows that are the same mirrored
        return jnp.broadcast_to(jnp.stack([*end, width, sigma, *[0.0] * 9])[:, None], (13, 13))

    monkeypatch.setattr(snow, "streak", drawn)
    values = np.asarray(snow.random_kernels(jax.random.split(jax.random.key(0), 2000)))[..., :4, 0].reshape(-1, 4)
    rows, columns, widths, sigmas = values.T
    for ends in (rows, columns):
        np.testing.assert_allclose([np.mean(ends == place) for place in range(8, 13)], 0.2, atol=0.015)
    np.testing.assert_allclose([np.mean(widths == width) for width in (1, 3, 5)], [0.6, 0.3, 0.1], atol=0.015)
    np.testing.assert_allclose([sigmas.min(), sigmas.mean(), sigmas.max()], [0.41, 0.505, 0.6], atol=0.002)


def test_recorded_snow_kernels_are_streaks(original):
    grid = np.meshgrid(np.arange(8, 13), np.arange(8, 13), [1.0, 3.0, 5.0], np.linspace(0.41, 0.6, 39))
    row, column, width, sigma = (axis.ravel() for axis in grid)
    streaks = np.asarray(jax.jit(jax.vmap(snow.streak))(np.stack([row, column], axis=-1), width, sigma))
    for name, array in (("snow", "kernels"), ("uar_attacks_given_start", "snow_kernels")):
        kernels = np.load(original / "components" / f"{name}.npz")[array]
        distances = [[np.abs(streaks - k).max((1, 2)).min() for k in (kernel, kernel[:, ::-1])] for kernel in kernels]
        assert np.max(np.min(distances, axis=1)) < 0.006  # the grid of blurs has steps of 0.005


def test_snow_layer_and_budget_as_recorded(original):
    recorded = np.load(original / "components" / "snow.npz")
    correlate = correlator(jnp.broadcast_to(recorded["kernels"], (4, 7, 13, 13)), 32, 32)
    layer = correlate(snow.place(jnp.asarray(recorded["intensities"]) ** 4))
    np.testing.assert_allclose(layer, recorded["snow"], atol=1e-5)
    for bound, name in ((0.125, "out_eps0p125"), (0.5, "out_eps0p5")):
        image = clamp(snow.fade(recorded["images"]) + bound * layer[..., None], 0.0, 1.0)
        np.testing.assert_allclose(image, recorded[name], atol=1e-5)
    limited = snow.limit(recorded["intensities_before_budget_projection"])
    np.testing.assert_allclose(limited, recorded["intensities_after_clamp_and_budget_projection"], atol=1e-6)


def test_snow_first_step_as_recorded_for_some_gradient(original, monkeypatch, key):
    """The network of this recording is not at hand; the signs of its gradient follow from the recorded image.

    A network that is linear in the intensities to the fourth, with these signs, takes its place. Of the four images the
    first has few enough white pixels to determine all 448 intensities.
    """
    recorded = np.load(original / "components" / "uar_attacks_given_start.npz")
    image, wanted = recorded["images"][:1], recorded["snow_adv_after_1_steps"][:1]
    start, kernels = recorded["snow_init_intensities"][:1], jnp.asarray(recorded["snow_kernels"])
    correlate = jax.jit(correlator(jnp.broadcast_to(kernels, (448, 7, 13, 13)), 32, 32))
    layers = np.asarray(correlate(snow.place(jnp.eye(448).reshape(448, 7, 8, 8)))).reshape(448, -1).T
    darkest = np.argmin(image, -1, keepdims=True)
    dark = np.take_along_axis(wanted, darkest, -1).ravel() < 1
    faded = np.take_along_axis(np.asarray(snow.fade(image)), darkest, -1).ravel()[dark]
    inverse = np.linalg.pinv(layers[dark])

    def fourth_powers(images):
        return inverse @ (jnp.take_along_axis(images, darkest, -1).ravel()[dark] - faded) / 0.125

    signs = np.sign(np.asarray(fourth_powers(jnp.asarray(wanted))) - start.ravel() ** 4)

    def logits_fn(images):
        return jnp.stack([jnp.zeros(()), jnp.mean(signs * fourth_powers(images))])[None]

    monkeypatch.setattr(snow, "random_kernels", lambda keys: kernels[None])
    monkeypatch.setattr(snow, "uniform", lambda keys, shape: jnp.log(start) / -5)
    attack = lj.attacks.create("snow", steps=1, step_size=float(recorded["snow_step"]))
    np.testing.assert_allclose(attack(key, logits_fn, image, np.zeros(1, np.int32)), wanted, atol=1e-5)
