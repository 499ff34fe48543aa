"""Bilinear sampling of images on a grid: what the attacks that move pixels (elastic, StAdv) share."""

import jax
import jax.numpy as jnp
from jax import Array


def bilinear_sample(images: Array, grid: Array, align_corners: bool = False) -> Array:
    r"""Reads images at the points of a grid; outside the image the value is zero.

    .. math:: p = ((g + 1) n - 1) / 2 \quad \text{or, with aligned corners,} \quad p = (g + 1) (n - 1) / 2

    Args:
      images: (B, H, W, C).
      grid: (B, H', W', 2), points (x, y): -1 and 1 are the outer edges of the border pixels, or their centres with
        ``align_corners``.
      align_corners: what -1 and 1 stand for.

    Returns:
      (B, H', W', C), differentiable in both arguments. At a point on a pixel centre the gradient is that of the cell to
      its lower right. The gradient with respect to the grid alone, which is what attacks take, has no scatter.

    Source: the formulas of PyTorch's `grid_sample` (bilinear, zero padding).

    >>> import jax.numpy as jnp
    >>> images = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> print(bilinear_sample(images, jnp.array([[[[0.0, 0.0], [-0.5, 0.5], [9.0, 0.0]]]])).ravel())
    [1.5 2.  0. ]
    """
    height, width, channels = images.shape[1:]
    size = jnp.array([[[[width, height]]]], grid.dtype)
    pixels = 0.5 * (grid + 1) * (size - 1) if align_corners else 0.5 * ((grid + 1) * size - 1)
    corner = jnp.floor(pixels)
    fraction = pixels - corner
    # A table of the four pixels of every cell, so that each point takes one gather of 4 C numbers. Two rows and columns
    # of zeros on each side: a cell that is clipped to the table's border is all zero, wherever its point was.
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    top, bottom = padded[:, :-1], padded[:, 1:]
    cells = jnp.concatenate([top[:, :, :-1], top[:, :, 1:], bottom[:, :, :-1], bottom[:, :, 1:]], axis=-1)
    column, row = jnp.moveaxis(jnp.clip(corner + 2, 0, size + 2).astype(jnp.int32), -1, 0)
    cells = cells.reshape(images.shape[0], -1, 4 * channels)
    index = row * (width + 3) + column
    taken = jax.vmap(lambda table, index: jnp.take(table, index, axis=0, mode="clip"))(cells, index)
    top_left, top_right, bottom_left, bottom_right = jnp.split(taken, 4, axis=-1)
    x, y = fraction[..., :1], fraction[..., 1:]
    above = top_left + x * (top_right - top_left)
    below = bottom_left + x * (bottom_right - bottom_left)
    return above + y * (below - above)
