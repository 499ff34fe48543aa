"""Gabor noise whose impulses are chosen against the network (Kang et al. 2019)."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import clamp, example_keys, expand, uniform
from lagrangian_jax.attacks.filtering import correlator
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.attacks.sign_ascent import sign_ascent

KERNEL_SIZE = 23
MAX_SIDES = 10
DENSITY = 1 / 14


def gabor(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 12.5,
    steps: int = 50,
    step_size: float | None = None,
    random_start: bool = True,
    keep: str = "last",
) -> Array:
    r"""Sign ascent on impulses, which are filtered with a random Gabor kernel and added to the image.

    .. math:: a \leftarrow m \cdot \mathrm{clip}_{[-1,1]}(a + s\,\mathrm{sign}(g)), \quad
       x' = \mathrm{clip}_{[0,255]}(x + b\, n(a * K))

    with x in [0, 255], K a kernel drawn for the example, m the mask of free positions, and n the scaling to [0, 1] of
    `normalise_noise`; so the noise, the same in every channel, only brightens.

    Args:
      key: a PRNG key, or one key per example (B,), for the kernel and the start.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: b, the largest change of a pixel, pixels in [0, 255]; 12.5 is UAR's second level on ImageNet-100. The
        0.125 in the paper's caption of Table 2 would change nothing.
      steps: gradient evaluations.
      step_size: s, in units of the impulses, which lie in [-1, 1]; ``bound / sqrt(steps)``, UAR's rule, if not given.
        At the default bound that is 1.77: impulses are soon at -1 or 1. UAR calibrates with 0.002236 at 200 steps.
      random_start: start with random impulses at one pixel in 14; as in the original, the first step clears exactly
        these pixels, for good (m is zero there). Else start without impulses, every pixel free.
      keep: "last" (the paper's) or "best" iterate by the loss.

    Returns:
      adversarial images (B, H, W, C) in [0, 1]; none is darker than the given one.

    Source: advex-uar `gabor_attack.py`. Deviation: where the noise is constant, zero is not divided by zero.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: images.mean((1, 2))
    >>> images = jnp.full((1, 16, 16, 3), 0.5)
    >>> noisy = lj.attacks.create("gabor", steps=2)(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> print(f"{255 * (noisy - images).min():.3f} {255 * (noisy - images).max():.3f}")
    0.000 12.500
    """
    batch, height, width, _ = images.shape
    step_size = bound / steps**0.5 if step_size is None else step_size
    keys = jax.vmap(jax.random.split)(example_keys(key, batch))
    correlate = correlator(random_kernels(keys[:, 0])[:, None], height, width)
    start = random_impulses(keys[:, 1], height, width) if random_start else jnp.zeros_like(images[..., 0])
    free = start == 0
    pixels = 255 * images

    def generate(impulses):
        noise = normalise_noise(correlate(impulses[:, None]))
        return clamp(pixels + bound * noise[..., None], 0.0, 255.0) / 255

    def project(i, impulses):
        return jnp.where(free, jnp.clip(impulses, -1.0, 1.0), 0.0)

    return sign_ascent(generate, project, start, logits_fn, labels, steps=steps, step_size=step_size, keep=keep)


def random_impulses(keys: Array, height: int, width: int) -> Array:
    """Uniform in [-1, 1] at each pixel with probability 1/14, else zero; (B, H, W)."""
    keys = jax.vmap(jax.random.split)(keys)
    chosen = uniform(keys[:, 0], (height, width)) < DENSITY
    return jnp.where(chosen, uniform(keys[:, 1], (height, width), -1.0, 1.0), 0.0)


def random_kernels(keys: Array) -> Array:
    """One random Gabor kernel per example, (B, 23, 23); see `gabor_kernels` for what is drawn."""
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    sides = jax.vmap(lambda key: jax.random.randint(key, (), 1, MAX_SIDES + 1))(keys[:, 0])
    sigma = uniform(keys[:, 1], (), 0.1, 0.4)
    frequency = uniform(keys[:, 2], (), 3.0, KERNEL_SIZE / 4)
    return gabor_kernels(sides, sigma, frequency, uniform(keys[:, 3], (), 0.0, jnp.pi))


def gabor_kernels(sides: Array, sigma: Array, frequency: Array, angle: Array) -> Array:
    r"""Sums of Gabor functions in directions evenly spread over a half turn.

    .. math:: K(x, y) = e^{-(x^2 + y^2) / 2 (\sigma + 0.001)^2} \sum_{i < n} \cos(2 \pi f (x \cos t_i + y \sin t_i)),
       \quad t_i = t + \pi i / n

    Args:
      sides: n, the number of directions, (B,) integers up to 10.
      sigma: (B,), in widths of the kernel.
      frequency: f, (B,), in waves per width of the kernel.
      angle: t, (B,).

    Returns:
      (B, 23, 23); rows run along y.
    """
    line = jnp.linspace(-0.5, 0.5, KERNEL_SIZE, dtype=jnp.float32)
    y, x = line[None, :, None], line[None, None, :]

    def one(sides, sigma, frequency, angle):
        index = jnp.arange(MAX_SIDES, dtype=jnp.float32)[:, None, None]
        turned = angle + jnp.pi * index / sides
        waves = jnp.cos(2 * jnp.pi * frequency * (x * jnp.cos(turned) + y * jnp.sin(turned)))
        envelope = jnp.exp(-0.5 * (x**2 + y**2) / (sigma + 0.001) ** 2)
        return envelope[0] * jnp.sum(jnp.where(index < sides, waves, 0.0), axis=0)

    return jax.vmap(one)(sides, sigma, frequency, angle)


def normalise_noise(noise: Array) -> Array:
    r"""Noise (B, H, W) with its contrast levelled, so that it is nearly two-valued, then scaled to [0, 1].

    .. math:: n_1 = \mu + 1.001\, (n_0 - \mu) / (0.001 + c), \quad c = |n_0 - \mu| / \max |n_0 - \mu|

    The mean, the factor and the limits of the scaling count as constants in the gradient. The original takes c from the
    square root of a spectrum's inverse, which is the same except for rounding: its noise differs by up to 0.004 where c
    is below 0.01.
    """
    fixed = lax.stop_gradient(noise)
    mean = jnp.mean(fixed, axis=(1, 2), keepdims=True)
    deviation = jnp.abs(fixed - mean)
    contrast = deviation / expand(_nonzero(jnp.max(deviation, axis=(1, 2))), noise)
    levelled = mean + (noise - mean) * (1.001 / (0.001 + contrast))
    fixed = lax.stop_gradient(levelled)
    low, high = jnp.min(fixed, axis=(1, 2)), jnp.max(fixed, axis=(1, 2))
    return (levelled - expand(low, noise)) / expand(_nonzero(high - low), noise)


def _nonzero(x: Array) -> Array:
    return jnp.where(x > 0, x, 1.0)
