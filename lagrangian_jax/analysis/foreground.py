"""Where an attack changes an image: the foreground-to-background ratio, and maps of the foreground.

The probability that a pixel belongs to the foreground comes from `lagrangian_jax.models.segmentation` on CIFAR-10 and
from the `attention_map` of a classifier's stage on ImageNet, in both cases for the clean image.
"""

import jax
import jax.numpy as jnp
from jax import Array


def foreground_to_background(perturbations: Array, foreground: Array) -> Array:
    r"""The mean size of the perturbation on the foreground, divided by that on the background.

    .. math::
      \frac{\sum_i |d_i|\, p_i}{\sum_i p_i} \Big/ \frac{\sum_i |d_i| (1 - p_i)}{\sum_i (1 - p_i)}

    with :math:`|d_i|` the sum over channels at pixel i. It is 1 for noise of the same size everywhere; above 1, the
    attack prefers the foreground.

    Args:
      perturbations: (B, H, W, C), adversarial minus clean images.
      foreground: p, the probability of the foreground, (B, H, W) in [0, 1].

    Returns:
      (B,); NaN where nothing is foreground, nothing is background, or the background is unchanged. The paper averages
      over images: ``jnp.nanmean``.

    Source: the paper's analysis of where attacks look; its values are 1.69 with the l2 penalty and 1.42 with LPIPS on
    CIFAR-10, 1.16 and 1.06 on ImageNet-100.

    >>> import jax.numpy as jnp
    >>> perturbations = jnp.array([[0.3, 0.1]]).reshape(1, 1, 2, 1)
    >>> print(foreground_to_background(perturbations, jnp.array([[[1.0, 0.0]]])))
    [3.]
    """
    size = jnp.sum(jnp.abs(perturbations), axis=-1)

    def mean(weights):
        return jnp.sum(size * weights, axis=(1, 2)) / jnp.sum(weights, axis=(1, 2))  # 0 / 0 is NaN

    front, back = mean(foreground), mean(1 - foreground)
    return jnp.where(back > 0, front / back, jnp.nan)


def attention_map(features: Array, size: tuple[int, int]) -> Array:
    r"""Where a network looks: a stage's mean square over channels, resized to the image and scaled to [0, 1].

    .. math:: A = \frac{1}{C} \sum_c f_c^2, \quad p = \frac{A' - \min A'}{\max A' - \min A'}

    with :math:`A'` the map A resized bilinearly.

    Args:
      features: (B, h, w, C), the output of a stage. The project's networks give it as
        ``network.apply(variables, images, features=True)[1][stage]``; the paper takes it from a ResNet-34 that was
        trained on ImageNet.
      size: (H, W), of the image.

    Returns:
      (B, H, W); zeros where the map is constant.

    Source: szagoruyko/attention-transfer `utils.py` for A; the paper does not say how it turns A into probabilities.

    >>> import jax.numpy as jnp
    >>> print(attention_map(jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1), (1, 4)))
    [[[0.   0.25 0.75 1.  ]]]
    """
    maps = jnp.mean(jnp.square(features.astype(jnp.float32)), axis=-1)
    maps = jax.image.resize(maps, (maps.shape[0], *size), "bilinear")
    lowest = jnp.min(maps, axis=(1, 2), keepdims=True)
    span = jnp.max(maps, axis=(1, 2), keepdims=True) - lowest
    return (maps - lowest) / jnp.where(span > 0, span, 1.0)
