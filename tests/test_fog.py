"""Fog."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import fog

plasma = jax.jit(fog.plasma, static_argnums=1)


def test_fog_without_wibble_is_flat_and_with_it_spans_the_range():
    assert jnp.all(fog.normalise(plasma(jnp.full((1, 255), 0.5), 16), False) == 0)
    variables = jax.random.uniform(jax.random.key(0), (3, 255))
    maps = plasma(variables, 16)
    for over_batch in (False, True):
        scaled = fog.normalise(maps, over_batch)
        axes = None if over_batch else (1, 2)
        np.testing.assert_array_equal(scaled.min(axes), 0)
        np.testing.assert_allclose(scaled.max(axes), 1, rtol=1e-6)
    centre = plasma(variables.at[:, 0].set(1.0), 16)[:, 8, 8]
    np.testing.assert_allclose(centre, 100)  # the first centre: the mean of four zeros and the whole wibble


def test_the_limits_of_an_example_count_as_constants_and_those_of_the_batch_do_not():
    maps = jax.random.normal(jax.random.key(0), (2, 4, 4))
    own, all_alike = (jax.grad(lambda x, b=b: jnp.sum(fog.normalise(x, b)))(maps) for b in (False, True))
    spans = maps.max((1, 2), keepdims=True) - maps.min((1, 2), keepdims=True)
    np.testing.assert_allclose(own, jnp.broadcast_to(1 / spans, maps.shape), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(all_alike), 0, atol=1e-4)  # a map raised as a whole is scaled back


def test_fog_sets_every_variable_as_a_linear_network_wants_it(linear_network, key):
    """The map is linear in the variables, so that each goes to the end of its range that raises the loss."""
    logits_fn, weights, _ = linear_network((8, 8, 3), 2)
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    attack = lj.attacks.create("fog", steps=2, random_start=False)
    adversarial = attack(key, logits_fn, images, np.array([0, 1], np.int32))
    crop = np.s_[:, 4:12, 4:12]  # of the fractal of side 16
    basis = np.asarray(plasma(jnp.eye(255), 16) - plasma(jnp.zeros((1, 255)), 16))[crop]
    brightest = 255 * images.max((1, 2), keepdims=True) + 256
    slope = (weights[:, 1] - weights[:, 0]).reshape(8, 8, 3) * np.array([1, -1])[:, None, None, None]
    variables = np.einsum("vhw,bhwc->bv", basis, slope / brightest) > 0
    haze = fog.normalise(plasma(jnp.asarray(variables, jnp.float32), 16), False)[crop]
    np.testing.assert_allclose(adversarial, (255 * images + 256 * haze[..., None]) / brightest, atol=1e-5)


def test_fog_maps_and_images_as_recorded(original):
    recorded = np.load(original / "components" / "fog.npz")
    maps = plasma(fog_variables(recorded), 64)
    over_batch = fog.normalise(maps, True)
    np.testing.assert_allclose(over_batch, recorded["map_batch4_normalised_over_batch"], atol=1e-5)
    np.testing.assert_allclose(fog.normalise(maps, False), recorded["map_each_image_alone"], atol=1e-5)


def fog_variables(recorded):
    levels = [np.stack([recorded[f"fog_var_{3 * level + i:02d}"] for i in range(3)], axis=1) for level in range(6)]
    return jnp.concatenate([level.reshape(4, -1) for level in levels], axis=1)


@pytest.mark.parametrize("bound", [128, 256])
def test_fog_is_blended_in_as_recorded(original, bound):
    recorded = np.load(original / "components" / "fog.npz")
    haze = fog.normalise(plasma(fog_variables(recorded), 64), True)[:, 16:48, 16:48]
    np.testing.assert_allclose(fog.blend(recorded["images"], haze, bound), recorded[f"out_eps{bound}"], atol=1e-5)


def test_fog_from_the_recorded_start(original, network_a, monkeypatch, key):
    recorded = np.load(original / "components" / "fog.npz")
    monkeypatch.setattr(fog, "uniform", lambda *_: fog_variables(recorded))
    attack = lj.attacks.create("fog", steps=5, step_size=0.02236, batch_normalise=True)
    adversarial = attack(key, network_a, recorded["images"], recorded["labels"])
    expected = recorded["attack_eps256_step0p02236_adv_after_5_steps"]
    assert np.mean(np.abs(adversarial - expected) > 1e-4) < 0.01
