"""Convolutions with half the multiplications: Winograd's F(4, 3) along the height (Lavin and Gray, arXiv 1509.09308).

Four rows of the result depend on six rows of the images and on the kernel's three. Both are evaluated as polynomials at
six points; there, one product per point replaces three per row (6 instead of 12), and the four rows are read off:
``y = A^T ((G k) * (B^T x))``. Along the width and over the channels each point's product is a convolution with a kernel
of one row, which the device's library does.

The points 0, +-1/sqrt(2), +-sqrt(2) and infinity keep the rounding error within three times that of a plain convolution
(``tests/test_layers.py``); with the usual 0, +-1, +-2 it is half as large again.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_ROWS, _TAPS = 4, 3
_POINTS = _ROWS + _TAPS - 1
Padding = tuple[tuple[int, int], tuple[int, int]]
LAYOUT = ("NHWC", "HWIO", "NHWC")  # of images, kernels and results


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B^T (6, 6), G (6, 3) and A^T (4, 6), by Lagrange's interpolation; the last point is infinity."""
    points = np.array([0, np.sqrt(0.5), -np.sqrt(0.5), np.sqrt(2), -np.sqrt(2)])
    b, g, a = np.zeros((_POINTS, _POINTS)), np.zeros((_POINTS, _TAPS)), np.zeros((_ROWS, _POINTS))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        b[i, :-1] = np.poly(others)[::-1]
        g[i] = point ** np.arange(_TAPS) / np.prod(point - others)
        a[:, i] = point ** np.arange(_ROWS)
    b[-1], g[-1, -1], a[-1, -1] = np.poly(points)[::-1], 1, 1
    # At 0 and infinity a tap would enter unchanged, and the compiler would copy it in every iteration of a loop, while
    # it hoists arithmetic out of the loop. The factor 2 is exact.
    for i in (0, -1):
        b[i], g[i] = 2 * b[i], g[i] / 2
    return b, g, a


_B, _G, _A = _transforms()


def _combined(weights: np.ndarray, parts: list[Array]) -> Array:
    """The weighted sum of arrays of one shape, without the terms that are zero."""
    terms = [float(weight) * part for weight, part in zip(weights, parts, strict=True) if abs(weight) > 1e-12]
    return sum(terms[1:], start=terms[0])


@functools.partial(jax.jit, static_argnums=2, inline=True)  # so that its hundred operations are traced once a shape
def convolution(x: Array, kernel: Array, padding: Padding) -> Array:
    """`lax.conv_general_dilated` with stride 1, NHWC x HWIO -> NHWC, for a kernel of three rows.

    >>> x, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 4))
    >>> convolution(x, kernel, ((1, 1), (1, 1))).shape
    (1, 8, 8, 4)
    """
    height = x.shape[1] + sum(padding[0]) - _TAPS + 1
    rows, taps = _rows(x, height, padding[0]), list(kernel)
    products = [
        lax.conv_general_dilated(
            _combined(b, rows), _combined(g, taps)[None], (1, 1), ((0, 0), padding[1]), dimension_numbers=LAYOUT
        )
        for b, g in zip(_B, _G, strict=True)
    ]
    y = jnp.stack([_combined(a, products) for a in _A], axis=2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :height]


def _rows(x: Array, height: int, padding: tuple[int, int]) -> list[Array]:
    """The six rows of each tile of four, for a result of ``height`` rows."""
    tiles = -(-height // _ROWS)
    low, high = padding
    # Not by jnp.pad, which refuses the negative padding of an input gradient.
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (low, high + tiles * _ROWS - height, 0), (0, 0, 0), (0, 0, 0)])
    return [x[:, i : i + (tiles - 1) * _ROWS + 1 : _ROWS] for i in range(_POINTS)]
