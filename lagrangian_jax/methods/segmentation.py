"""Training of the segmentation network for the foreground-to-background ratio; not adversarial."""

import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.losses import cross_entropy
from lagrangian_jax.methods.method import Method, Outcome
from lagrangian_jax.methods.standard import standard


def segmentation(*, weight: float = 1.0) -> Method:
    """Cross-entropy of the clean image's logits, and of the foreground against the attention that weights them.

    For `lagrangian_jax.models.segmentation.SegmentationNetwork` alone; see `background_loss`.

    Args:
      weight: weight of `background_loss`.

    Source: charlieLehman/yapwrap `experiments/impbg_classification.py`.
    """

    def loss(forward, batch_stats, batch, crafted):
        (logits, foreground, attention), batch_stats = forward(crafted.images, batch_stats)
        losses = cross_entropy(logits, batch.labels, batch.smoothing) + weight * background_loss(foreground, attention)
        return Outcome(losses, logits, batch_stats)

    return Method(standard().craft, loss)


def background_loss(foreground: Array, attention: Array) -> Array:
    r"""Binary cross-entropy of the foreground a against the attention t, the mean over pixels; (B, H, W) -> (B,).

    .. math:: -\frac{1}{HW} \sum [t \log a + (1 - t) \log (1 - a)]

    The attention is a target: no gradient goes into it. Both a and 1 - a are clipped to at least 1e-5, below which the
    gradient is zero.

    >>> import jax.numpy as jnp
    >>> print(background_loss(jnp.full((1, 2, 2), 0.5), jnp.ones((1, 2, 2))))
    [0.6931472]
    """
    target = lax.stop_gradient(attention)
    front, back = (jnp.log(jnp.clip(p, 1e-5, 1.0)) for p in (foreground, 1 - foreground))
    return -jnp.mean(target * front + (1 - target) * back, axis=(1, 2))
