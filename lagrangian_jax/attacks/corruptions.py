"""Corruptions, which use no gradients: the clean image, Gaussian noise, Gaussian blur."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, normal
from lagrangian_jax.attacks.inputs import LogitsFn


def none(key: Array, logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
    """No attack: returns the images; in a suite, its row is the clean accuracy."""
    return images


def gaussian_noise(
    key: Array, logits_fn: LogitsFn, images: Array, labels: Array, *, variance: float = 0.05, clip: bool = False
) -> Array:
    """Additive Gaussian noise of the given variance, one draw: x + sqrt(variance) N(0, 1).

    Args:
      key: a PRNG key, or one key per example (B,).
      logits_fn, labels: unused.
      images: (B, H, W, C) float32 in [0, 1].
      variance: in squared units of images; 0.05 in the paper (standard deviation 0.2236).
      clip: clip the result to [0, 1]. The paper's noise is not clipped (mean l2 norm 12.39 on CIFAR-10, Table 7).

    Returns:
      images (B, H, W, C); they may leave [0, 1] unless ``clip``.

    Source: Lagrangian_Unseen `eval_model.py`.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> images = jnp.full((1, 64, 64, 3), 0.5)
    >>> attack = lj.attacks.create("gaussian_noise", variance=0.01)
    >>> noisy = attack(jax.random.key(0), lambda images: images[:, 0, 0], images, jnp.array([0]))
    >>> print(round(float(jnp.std(noisy)), 2))
    0.1
    """
    noisy = images + variance**0.5 * normal(example_keys(key, images.shape[0]), images.shape[1:])
    return jnp.clip(noisy, 0.0, 1.0) if clip else noisy


def gaussian_blur(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    kernel_size: int = 5,
    sigma: float = 1.5,
    padding: str = "zero",
) -> Array:
    """Separable Gaussian blur.

    Args:
      key, logits_fn, labels: unused.
      images: (B, H, W, C) float32 in [0, 1].
      kernel_size: number of taps, odd.
      sigma: standard deviation in pixels.
      padding: "zero" as in the paper (torchgeometry 0.1.2; it darkens the border) or "reflect".

    Returns:
      images (B, H, W, C) in [0, 1].

    Source: Lagrangian_Unseen `eval_model.py`.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> images = jnp.zeros((1, 5, 5, 3)).at[0, 2, 2].set(1.0)
    >>> attack = lj.attacks.create("gaussian_blur", kernel_size=3)
    >>> blurred = attack(jax.random.key(0), lambda images: images[:, 0, 0], images, jnp.array([0]))
    >>> [round(float(pixel), 3) for pixel in blurred[0, 2, :, 0]]
    [0.0, 0.118, 0.148, 0.118, 0.0]
    """
    half = kernel_size // 2
    weights = np.exp(-np.square(np.arange(-half, half + 1)) / (2 * sigma**2))
    taps = jnp.asarray(weights / weights.sum(), images.dtype)
    width = ((0, 0), (half, half), (half, half), (0, 0))
    padded = jnp.pad(images, width, mode="reflect" if padding == "reflect" else "constant")
    channels = images.shape[-1]
    for shape in ((kernel_size, 1, 1, 1), (1, kernel_size, 1, 1)):
        padded = lax.conv_general_dilated(
            padded,
            jnp.tile(taps.reshape(shape), (1, 1, 1, channels)),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
            precision=lax.Precision.HIGHEST,
        )
    return padded
