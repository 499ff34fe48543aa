"""Crop and flip on the device."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagrangian_jax.data.augmentation import augment


def crops_of(image, padding, mode):
    """Every crop of the padded image and its mirror image, by (row, column, flipped)."""
    padded = np.pad(
        image, ((padding, padding), (padding, padding), (0, 0)), "reflect" if mode == "reflect" else "constant"
    )
    height, width = image.shape[:2]
    places = itertools.product(range(2 * padding + 1), range(2 * padding + 1), (False, True))
    crops = {(r, c, f): padded[r : r + height, c : c + width] for r, c, f in places}
    return {place: crop[:, ::-1] if place[2] else crop for place, crop in crops.items()}


@pytest.mark.parametrize(("mode", "flip", "padding"), [("reflect", True, 4), ("zero", False, 4), ("reflect", True, 2)])
def test_augment_gives_every_crop_of_the_padded_image_and_nothing_else(mode, flip, padding):
    image = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    count = 8192
    keys = jax.random.split(jax.random.key(0), count)
    repeated = jnp.broadcast_to(jnp.asarray(image), (count, *image.shape))
    run = jax.jit(augment, static_argnames=("padding", "mode", "flip"))
    out = np.asarray(run(keys, repeated, padding=padding, mode=mode, flip=flip))
    assert out.dtype == np.float32
    place_of = {
        (crop.astype(np.float32) / 255).tobytes(): place for place, crop in crops_of(image, padding, mode).items()
    }
    places = [place_of[row.tobytes()] for row in out]  # a KeyError: not a crop, or not exactly pixel / 255
    expected = (2 * padding + 1) ** 2 * (2 if flip else 1)
    counts = np.unique(np.array(places), axis=0, return_counts=True)[1]
    assert len(counts) == expected
    mean = count / expected
    assert np.sum((counts - mean) ** 2 / mean) < expected + 5 * np.sqrt(2 * expected)  # chi-squared: uniform


def test_augment_depends_on_the_key_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    keys = jax.random.split(jax.random.key(1), 6)
    whole = jax.jit(augment)(keys, pixels)
    order = np.array([4, 1])
    np.testing.assert_array_equal(jax.jit(augment)(keys[order], pixels[order]), whole[order])


def test_augment_without_padding_or_flip_is_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 1), np.uint8)
    out = augment(jax.random.split(jax.random.key(0), 2), pixels, padding=0, flip=False)
    np.testing.assert_array_equal(out, pixels.astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("pixels", "arguments", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), {}, "uint8"),
        (np.zeros((8, 8, 3), np.uint8), {}, r"\(B, H, W, C\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), {"mode": "reflct"}, "did you mean 'reflect'"),
        (np.zeros((1, 8, 8, 3), np.uint8), {"padding": 8}, "0 <= padding < 8"),
        (np.zeros((1, 8, 8, 3), np.uint8), {"padding": -1, "mode": "zero"}, "padding >= 0"),
    ],
)
def test_augment_refuses(pixels, arguments, message):
    with pytest.raises(ValueError, match=message):
        augment(jax.random.split(jax.random.key(0), 1), pixels, **arguments)
