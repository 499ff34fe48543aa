"""Fog: a plasma fractal whose random numbers are chosen against the network (Kang et al. 2019)."""

import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import clamp, example_keys, uniform
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.attacks.sign_ascent import sign_ascent


def fog(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 256.0,
    steps: int = 50,
    step_size: float | None = None,
    batch_normalise: bool = False,
    random_start: bool = True,
    keep: str = "last",
) -> Array:
    r"""Sign ascent on the random numbers of a diamond-square fractal, which is blended in as fog.

    .. math:: v \leftarrow \mathrm{clip}_{[0,1]}(v + s\,\mathrm{sign}(g)), \quad
       x' = \mathrm{clip}_{[0,255]}\left(255\,\frac{x + b f(v)}{\max x + b}\right)

    with the maximum over each channel, f the fractal scaled to [0, 1] and x in [0, 255].

    Args:
      key: a PRNG key, or one key per example (B,), for the start.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: b, the strength of the fog, pixels in [0, 255]; 256 in Table 2. With 0 each channel is still divided by its
        maximum.
      steps: gradient evaluations.
      step_size: s, in units of the variables, which lie in [0, 1]; ``bound / sqrt(steps)``, UAR's rule, if not given.
        At the default bound that is 36, so each step sets each variable to 0 or 1. UAR calibrates with 0.002236 at 200
        steps.
      batch_normalise: scale the fractal by the minimum and maximum of the whole batch, as the original does; an
        example's fog then depends on its batch.
      random_start: start at variables uniform in [0, 1], else at 0.
      keep: "last" (the paper's) or "best" iterate by the loss.

    Returns:
      adversarial images (B, H, W, C) in [0, 1].

    Source: advex-uar `fog_attack.py`. Deviations: unless ``batch_normalise``, each example is scaled by itself, and the
    limits count as constants in the gradient (robust accuracy on the recorded network: 7 to 9 %; the original's: 9 %;
    with the gradient through the limits: 11 to 13 %). Images may have any size (the side of the fractal is the next
    power of two above the larger side, and its centre is used). A flat fractal gives no fog, where the original divides
    zero by zero.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], axis=-1)
    >>> images = jnp.full((1, 16, 16, 3), 0.5)
    >>> foggy = lj.attacks.create("fog", steps=5)(jax.random.key(0), logits_fn, images, jnp.array([1]))
    >>> bool(foggy.mean() > 0.55)
    True
    """
    batch, height, width, _ = images.shape
    step_size = bound / steps**0.5 if step_size is None else step_size
    side = 2 ** max(height, width).bit_length()
    top, left = (side - height) // 2, (side - width) // 2

    def generate(variables):
        haze = normalise(plasma(variables, side), batch_normalise)
        return blend(images, haze[:, top : top + height, left : left + width], bound)

    def project(i, variables):
        return jnp.clip(variables, 0.0, 1.0)

    keys = example_keys(key, batch)
    shape = (side**2 - 1,)
    start = uniform(keys, shape) if random_start else jnp.zeros((batch, *shape), images.dtype)
    return sign_ascent(generate, project, start, logits_fn, labels, steps=steps, step_size=step_size, keep=keep)


def plasma(variables: Array, side: int) -> Array:
    """The diamond-square fractal on a torus, (B, side, side), with side a power of two.

    Args:
      variables: (B, side^2 - 1) in [0, 1]. For each level l = 0, 1, ... come three fields of 2^l x 2^l: the offsets of
        the centres of the squares, of the middles of their upper edges, and of the middles of their left edges.
      side: side of the map.
    """
    batch = variables.shape[0]
    corners = jnp.zeros((batch, 1, 1), variables.dtype)
    wibble, used = 100.0, 0
    for level in range(side.bit_length() - 1):
        n = 2**level
        offsets = wibble * (2 * variables[:, used : used + 3 * n * n].reshape(batch, 3, n, n) - 1)
        wibble, used = wibble / 2, used + 3 * n * n
        right, below = jnp.roll(corners, -1, axis=2), jnp.roll(corners, -1, axis=1)
        centres = (corners + right + below + jnp.roll(right, -1, axis=1)) / 4 + offsets[:, 0]
        # The original rolls the centres by 2, not by 1 as the textbook does.
        across = (centres + jnp.roll(centres, 2, axis=1) + corners + right) / 4 + offsets[:, 1]
        down = (centres + jnp.roll(centres, 2, axis=2) + corners + below) / 4 + offsets[:, 2]
        rows = jnp.stack([_interleave(corners, across), _interleave(down, centres)], axis=2)
        corners = rows.reshape(batch, 2 * n, 2 * n)
    return corners


def _interleave(even: Array, odd: Array) -> Array:
    """Columns of ``even`` and ``odd`` (B, n, n) in turn: (B, n, 2n)."""
    return jnp.stack([even, odd], axis=-1).reshape(*even.shape[:2], -1)


def normalise(plasma: Array, over_batch: bool) -> Array:
    """Scales maps (B, side, side) to [0, 1]: each by itself, its limits constant in the gradient, or all alike.

    Scaled by its own limits, every map depends on two of its pixels. They would dominate a gradient through the limits
    and weaken the attack; in the original, this affects only two examples of the batch.
    """
    axes = (0, 1, 2) if over_batch else (1, 2)
    low, high = (limit(plasma, axis=axes, keepdims=True) for limit in (jnp.min, jnp.max))
    if not over_batch:
        low, high = lax.stop_gradient((low, high))
    return (plasma - low) / jnp.where(high > low, high - low, 1.0)


def blend(images: Array, haze: Array, bound: float) -> Array:
    """Blends images (B, H, W, C) with haze (B, H, W) of strength ``bound``, pixels in [0, 255]; returns [0, 1]."""
    pixels = 255 * images
    brightest = jnp.max(pixels, axis=(1, 2), keepdims=True) + bound
    mixed = (pixels + bound * haze[..., None]) / jnp.where(brightest > 0, brightest, 1.0)
    return clamp(mixed, 0.0, 1.0)
