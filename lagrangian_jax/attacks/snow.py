"""Snow: streaks of flakes whose brightness is chosen against the network (Kang et al. 2019)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import clamp, example_keys, uniform
from lagrangian_jax.attacks.filtering import correlator
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.attacks.sign_ascent import sign_ascent

LAYERS = 7
KERNEL_SIZE = 13
BUDGET = 0.2
BLOCK = 8
# Layer i has flakes at rows r_i and columns c_i modulo 4.
_PLACES = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)]


def snow(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.125,
    steps: int = 50,
    step_size: float | None = None,
    random_start: bool = True,
    keep: str = "last",
) -> Array:
    r"""Sign ascent on the intensities of snow flakes, blurred into streaks and added to a faded image.

    .. math:: f \leftarrow \Pi(f + s\,\mathrm{sign}(g)), \quad
       x' = \mathrm{clip}_{[0,1]}\left(\mathrm{fade}(x) + b \sum_i K_i * \mathrm{place}_i(f_i^4)\right)

    Seven layers of flakes on every fourth row and column, each with its own kernel; the projection is `limit`.

    Args:
      key: a PRNG key, or one key per example (B,), for the kernels and the start.
      logits_fn: images (B, H, W, 3) to logits (B, K).
      images: (B, H, W, 3) float32 RGB in [0, 1], H and W multiples of 4.
      labels: (B,) integers.
      bound: b, the brightness of a flake of intensity 1, images in [0, 1]; 0.125 in Table 2. With 0 the image is still
        faded (mean l2 norm 9.7 on CIFAR-10).
      steps: gradient evaluations.
      step_size: s, in units of the intensities; ``bound / sqrt(steps)``, UAR's rule, if not given. UAR calibrates with
        0.002236 at 200 steps.
      random_start: start at exp(-5 U) with U uniform in [0, 1], else at exp(-2.5).
      keep: "last" (the paper's) or "best" iterate by the loss.

    Returns:
      adversarial images (B, H, W, 3) in [0, 1].

    Raises:
      ValueError: H or W is not a multiple of 4, or there are not 3 channels.

    Source: advex-uar `snow_attack.py`. Kept from it: the last step is not projected. Deviations: every example has
    its own kernels (the original draws them once per batch), so that a result does not depend on the batch;
    at the border, intensities that do not fill a block of 8 x 8 share a smaller one.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], axis=-1)
    >>> images = jnp.full((1, 16, 16, 3), 0.2)
    >>> snowy = lj.attacks.create("snow", steps=5)(jax.random.key(0), logits_fn, images, jnp.array([1]))
    >>> bool(snowy.min() > 0.2)
    True
    """
    batch, height, width, channels = images.shape
    if height % 4 or width % 4 or channels != 3:
        raise ValueError(
            f"snow: images must be RGB with a height and width that are multiples of 4, "
            f"got {height} x {width} x {channels}"
        )
    step_size = bound / steps**0.5 if step_size is None else step_size
    keys = jax.vmap(jax.random.split)(example_keys(key, batch))
    correlate = correlator(random_kernels(keys[:, 0]), height, width)
    faded = fade(images)
    shape = (LAYERS, height // 4, width // 4)
    start = jnp.exp(-5 * (uniform(keys[:, 1], shape) if random_start else jnp.full((batch, *shape), 0.5, images.dtype)))

    def generate(intensities):
        return clamp(faded + bound * correlate(place(intensities**4))[..., None], 0.0, 1.0)

    def project(i, intensities):
        return jnp.where(i == steps - 1, intensities, limit(intensities))

    return sign_ascent(generate, project, start, logits_fn, labels, steps=steps, step_size=step_size, keep=keep)


def fade(images: Array) -> Array:
    """The faded image: .75 x + .25 max(x, 1.5 luma + .5), luma from linear weights of RGB."""
    weights = jnp.array([0.2126, 0.7152, 0.0722], images.dtype)
    luma = jnp.einsum("bhwc,c->bhw", images, weights, precision=lax.Precision.HIGHEST)
    return 0.75 * images + 0.25 * jnp.maximum(images, 1.5 * luma[..., None] + 0.5)


def place(flakes: Array) -> Array:
    """Flakes (B, 7, h, w) at their places on planes (B, 7, 4h, 4w) that are otherwise zero."""
    batch, layers, height, width = flakes.shape
    mask = np.zeros((1, layers, 1, 4, 1, 4), np.float32)
    for layer, (row, column) in enumerate(_PLACES):
        mask[0, layer, 0, row, 0, column] = 1
    return (flakes[:, :, :, None, :, None] * mask).reshape(batch, layers, 4 * height, 4 * width)


def limit(intensities: Array) -> Array:
    """Intensities (B, 7, h, w) clipped to [1e-9, 1], then every block of 8 x 8 scaled down to a mean of at most 0.2."""
    height, width = intensities.shape[2:]
    intensities = jnp.clip(intensities, 1e-9, 1.0)
    mean = _block_sums(intensities) / _block_sums(jnp.ones((1, 1, height, width), intensities.dtype))
    factor = jnp.minimum(1.0, BUDGET / mean)
    return intensities * jnp.repeat(jnp.repeat(factor, BLOCK, axis=2), BLOCK, axis=3)[:, :, :height, :width]


def _block_sums(x: Array) -> Array:
    batch, layers, height, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -height % BLOCK), (0, -width % BLOCK)))
    x = x.reshape(batch, layers, x.shape[2] // BLOCK, BLOCK, x.shape[3] // BLOCK, BLOCK)
    return jnp.sum(x, axis=(3, 5))


def random_kernels(keys: Array) -> Array:
    """Seven streaks per example, (B, 7, 13, 13), with random ends, widths and blurs; all mirrored or none."""

    def one(key):
        keys = jax.random.split(key, 4)
        ends = jax.random.randint(keys[0], (LAYERS, 2), 8, KERNEL_SIZE)
        widths, shares = np.array([[1, 3, 5], [0.6, 0.3, 0.1]], np.float32)
        width = jax.random.choice(keys[1], jnp.asarray(widths), (LAYERS,), p=jnp.asarray(shares))
        sigma = jax.random.uniform(keys[2], (LAYERS,), jnp.float32, 0.41, 0.6)
        kernels = jax.vmap(streak)(ends, width, sigma)
        return jnp.where(jax.random.bernoulli(keys[3]), kernels[:, :, ::-1], kernels)

    return jax.vmap(one)(keys)


def streak(end: Array, width: Array, sigma: Array) -> Array:
    """An antialiased, slightly blurred line through the centre of a 13 x 13 kernel, from ``end`` to its mirror point.

    Args:
      end: (2,) integers, row and column, from 8 to 12; the centre is (6, 6).
      width: width of the line, in pixels.
      sigma: standard deviation of the 3 x 3 Gaussian blur, in pixels.

    Returns:
      (13, 13).
    """
    centre = KERNEL_SIZE // 2
    row, column = (end - centre).astype(sigma.dtype)
    long, short = jnp.maximum(row, column), jnp.minimum(row, column)
    slope = short / long
    reach = 1 + width * jnp.sqrt(1 + slope) / 4  # where the profile across the line, falling by 1 per pixel, meets 0
    along = jnp.arange(KERNEL_SIZE - centre)[None]
    profile = jnp.clip(reach - jnp.abs(along.T - slope * along), 0.0, 1.0)
    half = jnp.where(along <= long, profile, 0.0)  # columns run along the line; rows above the centre are not drawn
    half = jnp.where(row > column, half.T, half)
    line = jnp.zeros((KERNEL_SIZE, KERNEL_SIZE), sigma.dtype).at[centre:, centre:].set(half)
    line = line.at[: centre + 1, : centre + 1].set(half[::-1, ::-1])
    return _blur(_blur(line, sigma).T, sigma).T


def _blur(line: Array, sigma: Array) -> Array:
    """Filters rows with three taps of a Gaussian, with zeros beyond the ends."""
    side = jnp.exp(-0.5 / sigma**2)
    padded = jnp.pad(line, ((0, 0), (1, 1)))
    return (padded[:, 1:-1] + side * (padded[:, :-2] + padded[:, 2:])) / (1 + 2 * side)
