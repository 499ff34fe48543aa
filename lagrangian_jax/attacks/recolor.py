"""ReColorAdv (Laidlaw and Feizi 2019): one smooth map of colours, in CIELUV, applied to every pixel of an image."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lagrangian_jax.attacks.arrays import clamp
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.attacks.transformation import attack_transformation

# Linear RGB to XYZ and back: to four digits, so not quite inverses; the original's numbers depend on that.
_XYZ_FROM_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9504]], np.float32)
_RGB_FROM_XYZ = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]], np.float32)
_WHITE_U, _WHITE_V = 0.1978, 0.4683
_DARK = (6 / 29) ** 3  # below this luminance, lightness is linear
_TINY = 1e-10

Planes = tuple[Array, ...]  # the three channels as separate arrays: a minor axis of 3 would not vectorise


def recolor(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.06,
    steps: int = 100,
    step_size: float = 0.001,
    smoothness: float = 0.05,
    resolution: tuple[int, int, int] = (16, 32, 32),
    keep: str = "last",
) -> Array:
    r"""ReColorAdv: moves the nodes of a grid over colour space, and recolours the image by trilinear interpolation.

    .. math::
      \max_\theta\; \max_{k \ne y} z_k(x_\theta) - z_y(x_\theta) - w R(\theta), \quad
      x_\theta = \mathrm{rgb}(\theta(\mathrm{luv}(x))), \quad \|\theta - \mathrm{id}\|_\infty \le b

    Before every forward pass the nodes are clipped to [0, 1], then to the colours that RGB can show, then to the bound.
    Nodes outside that gamut therefore differ from the identity even at the start, and a bound of zero returns the image
    only up to rounding in the colour conversions and saturation of colours whose chroma lies outside the grid.

    Args:
      key: not used; the attack is deterministic.
      logits_fn: images (B, H, W, 3) to logits (B, K).
      images: (B, H, W, 3) float32 in [0, 1], RGB.
      labels: (B,) integers.
      bound: largest change of a node's coordinate, in CIELUV scaled to (L/100, (u + 100)/200, (v + 100)/200); 0.06 in
        the paper's tables.
      steps: gradient evaluations.
      step_size: Adam's learning rate, in the units of ``bound``.
      smoothness: w, the weight of R, see `grid_roughness`; 0.05 in the paper's script, 0.06 in perceptual-advex.
      resolution: number of nodes along L, u and v.
      keep: "last" (the paper's) or "best" iterate, by the margin.

    Returns:
      adversarial images (B, H, W, 3) in [0, 1].

    Source: ReColorAdv `recoloradv.utils.get_attack_from_name("recoloradv")` as called by Lagrangian_Unseen
    `eval_model.py`. Deviation: the gamut is clipped in linear RGB, without the gamma curve and its inverse.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), 24 - images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("recolor", bound=0.06, steps=20, step_size=0.01)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 4, 4, 3), 0.5), jnp.array([0]))
    >>> [round(float(value), 2) for value in adversarial[0, 0, 0]]  # from 0.5
    [0.37, 0.46, 0.39]
    """
    if images.shape[-1] != 3:
        raise ValueError(f"recolor: images must have 3 channels (RGB), got shape {images.shape}")
    identity = identity_grid(resolution)[None]
    lookup = trilinear_lookup(rgb_to_luv(_planes(images)), resolution)
    return attack_transformation(
        logits_fn,
        labels,
        jnp.repeat(identity, images.shape[0], axis=0),
        lambda grid: jnp.stack(luv_to_rgb(lookup(grid)), axis=-1),
        lambda grid: grid_roughness(grid - identity),
        lambda grid: project_grid(grid, identity, bound),
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        keep=keep,
    )


def identity_grid(resolution: tuple[int, int, int]) -> Array:
    """The colour at each node, (3, R1, R2, R3): node (i, j, k) holds (i/(R1-1), j/(R2-1), k/(R3-1))."""
    axes = [np.linspace(0, 1, size, dtype=np.float32) for size in resolution]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij")))


def project_grid(grid: Array, identity: Array, bound: float) -> Array:
    """Clips nodes (B, 3, R1, R2, R3) to [0, 1], to the gamut of RGB, and to ``bound`` around the identity, (1, ...)."""
    xyz = luv_to_xyz(_planes(jnp.clip(grid, 0.0, 1.0), axis=1))
    # The gamma curve is monotone and fixes 0 and 1, so it may be left out on both sides of the clip: seven powers
    # per node become one cube root.
    linear = tuple(jnp.clip(channel, 0.0, 1.0) for channel in _mix(_RGB_FROM_XYZ, xyz))
    shown = jnp.stack(xyz_to_luv(_mix(_XYZ_FROM_RGB, linear)), axis=1)
    return jnp.clip(shown, identity - bound, identity + bound)


def grid_roughness(offset: Array) -> Array:
    r"""The sum over nodes and their six neighbours of :math:`\sqrt{|w - w'|^2 + 10^{-10}}`; (B, 3, ...) to (B,).

    Neighbours outside the grid count as equal, each pair counts twice, and there is no division by the number of
    nodes.
    """
    total = jnp.zeros(offset.shape[0], offset.dtype)
    for axis in (2, 3, 4):
        size = offset.shape[axis]
        step = jnp.diff(offset, axis=axis)
        pairs = jnp.sqrt(jnp.sum(jnp.square(step), axis=1) + _TINY)
        borders = 2 * (offset[0, 0].size // size) * _TINY**0.5
        total += 2 * jnp.sum(pairs, axis=(1, 2, 3)) + borders
    return total


def trilinear_lookup(colors: Planes, resolution: tuple[int, int, int]):
    """The interpolation of a grid at fixed colours, as a function of the grid alone.

    Args:
      colors: three arrays (B, H, W), nominally in [0, 1]; a colour outside takes the nearest border node.
      resolution: (R1, R2, R3).

    Returns:
      a function from a grid (B, 3, R1, R2, R3) to three arrays (B, H, W).
    """
    shape = colors[0].shape
    index, weight = jnp.zeros((shape[0], 8, 1), jnp.int32), jnp.ones((shape[0], 8, 1), colors[0].dtype)
    corners = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)))[:, None, :, None]
    for color, size, upper in zip(colors, resolution, corners, strict=True):
        position = color.reshape(shape[0], 1, -1) * (size - 1)
        cell = jnp.floor(position)
        fraction = position - cell
        index = index * size + jnp.clip(cell.astype(jnp.int32) + upper, 0, size - 1)
        weight *= jnp.where(upper == 1, fraction, 1 - fraction)

    @jax.vmap
    def corner_nodes(nodes: Array, index: Array) -> Array:
        return nodes.at[index].get(mode="promise_in_bounds")

    def lookup(grid: Array) -> Planes:
        # Nodes as rows of three: what costs here is the gradient, a scatter, which goes row by row.
        nodes = jnp.moveaxis(grid.reshape(*grid.shape[:2], -1), 1, 2)
        mixed = jnp.sum(weight[..., None] * corner_nodes(nodes, index), axis=1)
        return _planes(mixed.reshape(*shape, 3))

    return lookup


def rgb_to_luv(rgb: Planes) -> Planes:
    """sRGB in [0, 1] to CIELUV scaled as (L/100, (u + 100)/200, (v + 100)/200)."""
    return xyz_to_luv(_mix(_XYZ_FROM_RGB, tuple(_linearise(channel) for channel in rgb)))


def luv_to_rgb(luv: Planes) -> Planes:
    """The inverse of `rgb_to_luv`; colours that RGB cannot show are clipped to [0, 1]."""
    return tuple(clamp(_gamma(channel), 0.0, 1.0) for channel in _mix(_RGB_FROM_XYZ, luv_to_xyz(luv)))


def xyz_to_luv(xyz: Planes) -> Planes:
    """XYZ, white at Y = 1, to scaled CIELUV."""
    x, y, z = xyz
    total = x + 15 * y + 3 * z + _TINY
    dark = y < _DARK
    lightness = jnp.where(dark, (29 / 3) ** 3 * y, 116 * jnp.where(dark, 1.0, y) ** (1 / 3) - 16)
    u = 13 * lightness * (4 * x / total - _WHITE_U)
    v = 13 * lightness * (9 * y / total - _WHITE_V)
    return lightness / 100, (u + 100) / 200, (v + 100) / 200


def luv_to_xyz(luv: Planes) -> Planes:
    """Scaled CIELUV to XYZ, clipped to [0, 1.1]."""
    lightness, u, v = luv[0] * 100, luv[1] * 200 - 100, luv[2] * 200 - 100
    u = u / (13 * lightness + _TINY) + _WHITE_U
    v = v / (13 * lightness + _TINY) + _WHITE_V
    cube = (lightness + 16) / 116
    y = jnp.where(lightness <= 8, lightness * (3 / 29) ** 3, cube * cube * cube)
    total = 4 * v + _TINY
    x = 9 * y * u / total
    z = y * (12 - 3 * u - 20 * v) / total
    return clamp(x, 0.0, 1.1), clamp(y, 0.0, 1.1), clamp(z, 0.0, 1.1)


def _linearise(value: Array) -> Array:
    dark = value < 0.04045
    return jnp.where(dark, value / 12.92, ((jnp.where(dark, 1.0, value) + 0.055) / 1.055) ** 2.4)


def _gamma(value: Array) -> Array:
    dark = value < 0.0031308
    return jnp.where(dark, 12.92 * value, 1.055 * jnp.where(dark, 1.0, value) ** (1 / 2.4) - 0.055)


def _mix(matrix: np.ndarray, planes: Planes) -> Planes:
    x, y, z = planes
    return tuple(float(a) * x + float(b) * y + float(c) * z for a, b, c in matrix)


def _planes(stacked: Array, axis: int = -1) -> Planes:
    return tuple(jnp.moveaxis(stacked, axis, 0))
