"""Elastic deformation: a smooth flow field moves the pixels (Kang et al. 2019)."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, uniform
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.attacks.sampling import bilinear_sample
from lagrangian_jax.attacks.sign_ascent import sign_ascent


def elastic(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.5,
    steps: int = 50,
    step_size: float | None = None,
    kernel_size: int = 25,
    sigma: float = 3.0,
    align_corners: bool = False,
    random_start: bool = True,
    keep: str = "last",
) -> Array:
    r"""Sign ascent on a flow that is smoothed with a Gaussian and then displaces every pixel.

    .. math:: w \leftarrow \mathrm{clip}_{[-b,b]}(w + s\,\mathrm{sign}(g)), \quad x'(p) = x(p + (G * w)(p))

    The bound applies to the flow before it is smoothed: a pixel moves by less, much less with a wide kernel.

    Args:
      key: a PRNG key, or one key per example (B,), for the start.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: b, the largest flow along either axis, in pixels; 0.5 in Tables 1 and 2.
      steps: gradient evaluations.
      step_size: s in pixels; ``bound / sqrt(steps)``, UAR's rule, if not given.
      kernel_size: taps of the Gaussian, odd; 25 is the default of the released class, UAR uses 5 on CIFAR-10.
      sigma: standard deviation of the Gaussian, in pixels; 3 as released, 3/7 on CIFAR-10 in UAR.
      align_corners: False samples as for the published numbers (PyTorch 1.3 or later), where the base grid misses the
        pixel centres: even without flow the image shrinks by the factor (H - 1) / H and its border mixes with zeros.
        True is the attack as intended: without flow it returns the image.
      random_start: start with a flow uniform within the bound, else with none.
      keep: "last" (the paper's) or "best" iterate by the loss.

    Returns:
      adversarial images (B, H, W, C) in [0, 1].

    Source: advex-uar `elastic_attack.py`, in the Lagrangian_Unseen copy. Deviations: images need not be square (a pixel
    is 2 / H of the grid down and 2 / W across), and what rounding puts beyond [0, 1] is clipped.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> images = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
    >>> still = lj.attacks.create("elastic", bound=0.0, align_corners=True, steps=1)
    >>> logits_fn = lambda images: images.mean((1, 2))
    >>> bool(jnp.allclose(still(jax.random.key(1), logits_fn, images, jnp.array([0])), images, atol=1e-5))
    True
    """
    height, width = images.shape[1:3]
    _check_kernel(kernel_size, height, width)
    step_size = bound / steps**0.5 if step_size is None else step_size

    def generate(flow):
        return jnp.clip(displace(images, smooth(flow, kernel_size, sigma), align_corners), 0.0, 1.0)

    def project(i, flow):
        return jnp.clip(flow, -bound, bound)

    keys = example_keys(key, images.shape[0])
    shape = (height, width, 2)
    start = bound * uniform(keys, shape, -1.0, 1.0) if random_start else jnp.zeros((len(images), *shape), images.dtype)
    return sign_ascent(generate, project, start, logits_fn, labels, steps=steps, step_size=step_size, keep=keep)


def _check_kernel(kernel_size: int, height: int, width: int) -> None:
    if kernel_size // 2 >= min(height, width):
        raise ValueError(
            f"elastic: kernel_size must be below twice the image's side (its padding reflects the image), "
            f"got {kernel_size} for images of {height} x {width}"
        )


def smooth(flow: Array, kernel_size: int, sigma: float) -> Array:
    """A flow (B, H, W, 2) convolved with a Gaussian of sum 1, its border reflected; one matrix product per axis."""
    down, across = (jnp.asarray(_smoothing_matrix(n, kernel_size, sigma)) for n in flow.shape[1:3])
    return jnp.einsum("hi,wj,bijc->bhwc", down, across, flow, precision=lax.Precision.HIGHEST)


def _smoothing_matrix(size: int, kernel_size: int, sigma: float) -> np.ndarray:
    half = kernel_size // 2
    taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    padded = np.pad(np.eye(size), ((half, half), (0, 0)), mode="reflect")
    rows = sum(tap * padded[i : i + size] for i, tap in enumerate(taps / taps.sum()))
    return np.asarray(rows, np.float32)


def displace(images: Array, flow: Array, align_corners: bool) -> Array:
    """Reads images (B, H, W, C) at every pixel plus its flow (B, H, W, 2), (x, y) in pixels of 2 / W and 2 / H."""
    height, width = images.shape[1:3]
    x, y = jnp.meshgrid(*(jnp.linspace(-1.0, 1.0, size, dtype=flow.dtype) for size in (width, height)))
    pixel = jnp.array([[[[2 / width, 2 / height]]]], flow.dtype)
    return bilinear_sample(images, jnp.stack([x, y], axis=-1)[None] + pixel * flow, align_corners)
