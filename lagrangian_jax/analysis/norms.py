"""The norm of the perturbation against the confidence on the clean image (Figure 2), and their rank correlation."""

from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from lagrangian_jax.attacks.arrays import l2_norm
from lagrangian_jax.attacks.attack import Attack
from lagrangian_jax.attacks.inputs import LogitsFn, float32_logits
from lagrangian_jax.losses import label_logit


class NormsAndConfidence(NamedTuple):
    """The confidence and the norm of the perturbation of each example, (B,).

    Attributes:
      confidence: p(y | x), the probability of the label on the clean image.
      norm: the l2 norm of the perturbation, over all pixels and channels.
    """

    confidence: Array
    norm: Array


def norms_and_confidence(
    key: Array, attack: Attack, logits_fn: LogitsFn, images: Array, labels: Array
) -> NormsAndConfidence:
    """Attacks every image, and measures how far the attack went and how sure the network was.

    Args:
      key: a PRNG key, or one key per example (B,).
      attack: from `lagrangian_jax.attacks.create`.
      logits_fn: images (B, H, W, C) to logits (B, K), in evaluation mode.
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.

    Returns:
      `NormsAndConfidence`.

    Can be called inside `jax.jit`.

    Source: the paper's Figure 2, where the attack has its parameters from training.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), 2 - images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("pgd_l2", bound=0.25)
    >>> labels = jnp.array([0])
    >>> result = norms_and_confidence(jax.random.key(0), attack, logits_fn, jnp.full((1, 2, 2, 1), 0.25), labels)
    >>> print(result.confidence, result.norm)
    [0.5] [0.25]
    """
    confidence = label_logit(jax.nn.softmax(float32_logits(logits_fn)(images)), labels)
    return NormsAndConfidence(confidence, l2_norm(attack(key, logits_fn, images, labels) - images))


def rank_correlation(confidence: ArrayLike, norm: ArrayLike) -> float:
    """Spearman's rank correlation of confidences and norms, (N,) each; equal values share the mean of their ranks.

    Norms that agree to five significant digits count as equal: otherwise those of an attack that ends on its ball would
    be ranked by their rounding errors. NaN if one of the two is constant.

    >>> rank_correlation([1.0, 2.0, 3.0], [0.1, 0.4, 0.9])
    1.0
    >>> rank_correlation([1.0, 2.0, 3.0], [1.0, 1.0000001, 0.9999999])
    nan
    """
    from scipy import stats

    rows = np.asarray(confidence, np.float64), _significant(np.asarray(norm, np.float64))
    if any(np.ptp(row) == 0 for row in rows):
        return float("nan")
    return float(stats.spearmanr(*rows).statistic)


def _significant(values: np.ndarray, digits: int = 5) -> np.ndarray:
    magnitude = np.floor(np.log10(np.where(values == 0, 1.0, np.abs(values))))
    scale = 10.0 ** (digits - 1 - magnitude)
    return np.round(values * scale) / scale
