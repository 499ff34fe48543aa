"""Random crop and flip on the device, inside the training step, for data sets that live there as uint8."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lagrangian_jax.names import unknown

Mode = Literal["reflect", "zero"]


def augment(keys: Array, images: Array, *, padding: int = 4, mode: Mode = "reflect", flip: bool = True) -> Array:
    """Pads each image, crops it back to its size at a random position, and flips it left to right half of the time.

    Both crop offsets are uniform on 0, 1, ..., 2 * padding, independently of each other and of the flip. An example's
    result depends on its key alone.

    Args:
      keys: (B,), one key per example.
      images: (B, H, W, C) uint8.
      padding: pixels on every side; with 0 the image is not shifted.
      mode: ``"reflect"`` mirrors the image without repeating its edge pixel (the paper, IAAT, MMA, MSD), ``"zero"``
        surrounds it with black (TRADES, MART, PAT).
      flip: whether to flip at all; digits, for instance, have a reading direction.

    Returns:
      (B, H, W, C) float32 in [0, 1], exactly pixel / 255.

    Source: the released training scripts (pad, random crop, flip, division by 255); draws are JAX's own.

    >>> images = jnp.full((2, 8, 8, 3), 255, jnp.uint8)
    >>> out = augment(jax.random.split(jax.random.key(0), 2), images)
    >>> out.shape, out.dtype, float(out.min())
    ((2, 8, 8, 3), dtype('float32'), 1.0)
    """
    if mode not in ("reflect", "zero"):
        raise unknown("padding mode", mode, ("reflect", "zero"))
    if images.ndim != 4 or images.dtype != jnp.uint8:
        raise ValueError(f"images: expected (B, H, W, C) uint8, got {images.shape} {images.dtype}")
    height, width = images.shape[1:3]
    if padding < 0 or (mode == "reflect" and padding >= min(height, width)):
        limit = f"0 <= padding < {min(height, width)}" if mode == "reflect" else "padding >= 0"
        raise ValueError(f"padding: expected {limit} for {height}x{width} images and mode {mode!r}, got {padding}")

    # One draw of 96 bits per example; the remainder's bias is below 2 * padding / 2**32.
    bits = jax.vmap(lambda key: jax.random.bits(key, (3,), jnp.uint32))(keys)
    offsets = (bits[:, :2] % jnp.uint32(2 * padding + 1)).astype(jnp.int32) - padding
    rows = offsets[:, :1] + jnp.arange(height)[None]
    columns = jnp.arange(width)[None]
    if flip:
        columns = jnp.where(bits[:, 2:] >> 31 == 1, columns[:, ::-1], columns)
    columns = offsets[:, 1:] + columns

    # Padding, cropping and flipping are one gather of each output pixel's source. (On a CPU, slices of a padded copy
    # take twice as long, products with one-hot matrices five times as long.)
    example = jnp.arange(images.shape[0])[:, None, None]
    cropped = images[example, _reflect(rows, height)[:, :, None], _reflect(columns, width)[:, None, :]]
    if mode == "zero":
        inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
        cropped = jnp.where(inside[..., None], cropped, jnp.uint8(0))
    return unit_interval(cropped)


def unit_interval(pixels: Array) -> Array:
    """uint8 to float32 in [0, 1]: pixel / 255, correctly rounded.

    XLA would multiply by the reciprocal, which is off by one unit in the last place for half of the values.

    >>> pixels = np.arange(256, dtype=np.uint8)
    >>> bool(np.all(jax.jit(unit_interval)(pixels) == pixels.astype(np.float32) / 255))
    True
    """
    # 1 / 255 in two parts. The product with the first, which has 16 bits, is exact, so only the sum's rounding counts.
    first = np.float32(round(2**23 / 255) / 2**23)
    return pixels * first + pixels * np.float32(1 / 255 - float(first))


def _reflect(index: Array, size: int) -> Array:
    """Mirrors indices in (-size, 2 * size - 1) at the first and the last element, without repeating either."""
    return (size - 1) - jnp.abs((size - 1) - jnp.abs(index))


def _inside(index: Array, size: int) -> Array:
    return (index >= 0) & (index < size)
