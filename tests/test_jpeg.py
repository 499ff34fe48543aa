"""The JPEG attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import jpeg
from lagrangian_jax.attacks.arrays import clamp

SIDE = 16


def test_jpeg_reaches_the_corner_of_its_ball_on_a_linear_network(linear_network, key):
    logits_fn, weights, _ = linear_network((SIDE, SIDE, 3), 2)
    images = np.random.default_rng(0).uniform(0.4, 0.6, (2, SIDE, SIDE, 3)).astype(np.float32)
    slope = jnp.asarray((weights[:, 1] - weights[:, 0]).reshape(1, SIDE, SIDE, 3))
    corner = jnp.sign(jax.grad(lambda noise: jnp.sum(jpeg.decode(noise, SIDE, SIDE) * slope))(jnp.zeros((2, 384))))
    expected = (jpeg.subsample_chroma(255 * images) + 0.125 * jpeg.decode(corner, SIDE, SIDE)) / 255
    adversarial = lj.attacks.create("jpeg", steps=20)(key, logits_fn, images, np.zeros(2, np.int32))
    np.testing.assert_allclose(adversarial, expected, atol=1e-5)


def test_jpeg_keeps_grey_images():
    grey = np.repeat(np.random.default_rng(0).random((1, SIDE, SIDE, 1), np.float32), 3, axis=-1)
    np.testing.assert_allclose(jpeg.subsample_chroma(grey), grey, atol=1e-5)


def test_jpeg_noise_is_orthonormal_up_to_the_table():
    noise = jnp.zeros((1, 384)).at[0, 3 * SIDE + 2].set(2.0)  # luma, frequency (3, 2) of the first block
    change = jpeg.decode(noise, SIDE, SIDE)[0]
    assert jnp.linalg.norm(change[..., 0]) == pytest.approx(jpeg.LUMA_TABLE[3, 2], rel=1e-5)
    np.testing.assert_allclose(change[..., 0], change[..., 2], atol=1e-4)
    assert jnp.abs(change[8:]).max() < 1e-5
    np.testing.assert_allclose(change[::-1][8:, :8], -change[:8, :8], atol=1e-4)  # odd down
    np.testing.assert_allclose(change[:, :8][:, ::-1], change[:, :8], atol=1e-4)  # even across


def jpeg_noise(luma, *chroma):
    """Recorded blocks (B, n, 8, 8), of the transposed image, in the layout of `jpeg.decode`."""

    def plane(blocks):
        side = int(blocks.shape[1] ** 0.5)
        blocks = blocks.reshape(-1, side, side, 8, 8)  # block column, block row, column, row
        return blocks.transpose(0, 2, 4, 1, 3).reshape(blocks.shape[0], -1)

    return np.concatenate([plane(blocks) for blocks in (luma, *chroma)], axis=1)


def test_jpeg_decoding_as_recorded(original):
    recorded = np.load(original / "components" / "jpeg.npz")
    np.testing.assert_array_equal(recorded["y_table_as_used"].T, jpeg.LUMA_TABLE)
    np.testing.assert_array_equal(recorded["c_table_as_used"].T, jpeg.CHROMA_TABLE)
    variables = jpeg_noise(*(recorded[f"{plane}_var"] for plane in ("y", "cb", "cr")))
    base = jpeg.subsample_chroma(255 * recorded["images"])

    @jax.jit
    def image(variables, bound):
        return clamp(base + jpeg.decode(bound * variables, 32, 32), 0.0, 255.0) / 255

    np.testing.assert_allclose(image(variables, 0.125), recorded["out_eps0p125"], atol=1e-5)
    np.testing.assert_allclose(image(variables, 1.0), recorded["out_eps1"], atol=1e-5)
    np.testing.assert_allclose(image(variables, 0.0), recorded["out_zero_perturbation"], atol=1e-5)
    gradient = jax.jit(jax.grad(lambda v: 255 * jnp.sum(image(v, 0.125) * recorded["loss_weights"])))(variables)
    names = [f"grad_{plane}_var_of_weighted_sum255" for plane in ("y", "cb", "cr")]
    np.testing.assert_allclose(gradient, jpeg_noise(*(recorded[name] for name in names)), atol=1e-4)


def test_jpeg_from_the_recorded_start(original, network_a, monkeypatch, key):
    recorded = np.load(original / "components" / "jpeg.npz")
    blocks = [part.reshape(4, -1, 8, 8) for part in np.split(recorded["attack_init_cat_var"], [1024, 1280], axis=1)]
    monkeypatch.setattr(jpeg, "uniform", lambda *_: jnp.asarray(jpeg_noise(*blocks) / 0.125))
    attack = lj.attacks.create("jpeg", steps=5, step_size=float(recorded["attack_step_size"]))
    adversarial = attack(key, network_a, recorded["images"], recorded["labels"])
    assert np.mean(np.abs(adversarial - recorded["attack_adv_after_5_steps"]) > 1e-4) < 0.01
