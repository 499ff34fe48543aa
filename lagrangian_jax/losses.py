"""Losses on logits (B, K). Each returns one value per example, (B,); all but `kl_divergence` take labels, (B,).

The values are float32, whatever precision the network computes in, and float64 for float64 logits.
"""

import jax
import jax.numpy as jnp
from jax import Array


def _exact(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _true_class(logits: Array, labels: Array) -> Array:
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)


def label_logit(logits: Array, labels: Array) -> Array:
    """The logit of the label, z_y.

    >>> import jax.numpy as jnp
    >>> print(label_logit(jnp.array([[3.0, 1.0], [0.0, 5.0]]), jnp.array([0, 0])))
    [3. 0.]
    """
    return jnp.take_along_axis(_exact(logits), labels[:, None], axis=-1)[:, 0]


def best_other_logit(logits: Array, labels: Array) -> Array:
    """The largest logit of any class but the label, max_{k != y} z_k (the first of equals, as in `argmax`).

    >>> import jax.numpy as jnp
    >>> print(best_other_logit(jnp.array([[3.0, 1.0], [0.0, 5.0]]), jnp.array([0, 0])))
    [1. 5.]
    """
    logits = _exact(logits)
    others = jnp.where(_true_class(logits, labels), -jnp.inf, logits)
    # Taken by its index, so that a tie sends the whole gradient to one class, as the originals' top-2 does.
    return jnp.take_along_axis(others, jnp.argmax(others, axis=-1)[:, None], axis=-1)[:, 0]


def margin(logits: Array, labels: Array, kappa: float = jnp.inf) -> Array:
    r"""The margin loss of the paper, clamped from above.

    .. math:: \min(\max_{k \neq y} z_k - z_y, \kappa)

    Positive when the example is misclassified; attacks maximise it. Where the margin exceeds ``kappa`` its gradient is
    exactly zero; at equality the gradient passes, as in `torch.clamp`.

    Args:
      logits: (B, K).
      labels: (B,), integers in [0, K).
      kappa: the upper clamp, in units of logits; 1 in the paper's attack, infinite in Fast-LPA.

    Returns:
      (B,) float32.

    Source: Lagrangian_Unseen `Lag_attack.py`; the clamp is not in the paper.

    >>> import jax.numpy as jnp
    >>> print(margin(jnp.array([[3.0, 1.0], [0.0, 5.0]]), jnp.array([0, 0]), kappa=1.0))
    [-2.  1.]
    """
    value = best_other_logit(logits, labels) - label_logit(logits, labels)
    return jnp.where(value > kappa, jnp.asarray(kappa, value.dtype), value)


def soft_margin(logits: Array, labels: Array) -> Array:
    r"""MMA's soft logit margin, :math:`\log \sum_{k \ne y} e^{z_k} - z_y`; negative where the label wins clearly.

    >>> import jax.numpy as jnp
    >>> print(soft_margin(jnp.array([[3.0, 1.0], [0.0, 5.0]]), jnp.array([0, 0])))
    [-2.  5.]
    """
    others = jnp.where(_true_class(logits, labels), -jnp.inf, _exact(logits))
    return jax.nn.logsumexp(others, axis=-1) - label_logit(logits, labels)


def cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """Softmax cross-entropy, -log p_y; with ``smoothing`` s, (1 - s) times that plus s times the class mean of -log p.

    >>> import jax.numpy as jnp
    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))
    [1.3862944]
    """
    # Not logsumexp minus the logit: its rounding would swamp the small losses of confident networks.
    log_p = jax.nn.log_softmax(_exact(logits))
    sharp = -label_logit(log_p, labels)
    return (1 - smoothing) * sharp - smoothing * jnp.mean(log_p, axis=-1) if smoothing else sharp


def kl_divergence(logits_p: Array, logits_q: Array) -> Array:
    """KL(softmax(p) || softmax(q)), differentiable in both; classes of probability 0 in p add nothing.

    Source: the TRADES regulariser.

    >>> import jax.numpy as jnp
    >>> print(kl_divergence(jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))))
    [0.1438...]
    """
    log_p, log_q = (jax.nn.log_softmax(_exact(logits)) for logits in (logits_p, logits_q))
    # Twice, so that of a masked class, with logits of -inf, neither the value nor the gradient is NaN.
    possible = jnp.exp(log_p) > 0
    difference = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return jnp.sum(jnp.where(possible, jnp.exp(log_p) * difference, 0.0), axis=-1)


def dlr(logits: Array, labels: Array) -> Array:
    r"""Difference-of-logits ratio of AutoAttack, untargeted: :math:`-(z_y - \max_{k \ne y} z_k) / (z_{(1)} - z_{(3)})`.

    Needs at least 3 classes. Source: Croce and Hein 2020, equation 6.

    >>> import jax.numpy as jnp
    >>> print(dlr(jnp.array([[3.0, 1.0, 0.0, -1.0]]), jnp.array([0])))
    [-0.666666...]
    """
    top = jax.lax.top_k(_exact(logits), 3)[0]
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
    r"""Targeted DLR: :math:`-(z_y - z_t) / (z_{(1)} - (z_{(3)} + z_{(4)}) / 2)`.

    Needs at least 4 classes. Source: Croce and Hein 2020, equation 7.

    >>> import jax.numpy as jnp
    >>> print(targeted_dlr(jnp.array([[3.0, 1.0, 0.0, -1.0]]), jnp.array([0]), jnp.array([2])))
    [-0.857142...]
    """
    top = jax.lax.top_k(_exact(logits), 4)[0]
    difference = label_logit(logits, targets) - label_logit(logits, labels)
    return difference / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def boosted_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """MART's loss on adversarial logits: -log p_y - log(1.0001 - max_{k != y} p_k + 1e-12).

    ``smoothing`` applies to the first term, as in `cross_entropy`.

    >>> import jax.numpy as jnp
    >>> print(boosted_cross_entropy(jnp.zeros((1, 2)), jnp.array([0])))  # 2 log 2, but for the 1.0001
    [1.38609...]
    """
    largest = best_other_logit(jax.nn.softmax(_exact(logits)), labels)
    return cross_entropy(logits, labels, smoothing) - jnp.log(1.0001 - largest + 1e-12)
