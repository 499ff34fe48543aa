"""The paper's threshold baselines: PGD with a bound that depends on each example's confidence."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lagrangian_jax.attacks.gradient import Forward
from lagrangian_jax.losses import label_logit
from lagrangian_jax.methods.method import Batch, Method
from lagrangian_jax.methods.pgd import pgd_training


def threshold_linf(
    *,
    bound: float = 10 / 255,
    steps: int = 10,
    step_size: float = 2.5 / 255,
    random_start: bool = True,
    bound_spread: float = 1.0,
    statistics: str = "train",
) -> Method:
    """Training on PGD images in linf balls whose radius is ``bound`` times `confidence_factor` on the clean image.

    Args:
      bound: bound of confident examples; the paper gives none for this, and 10/255 is that of its linf training.
      steps, step_size, random_start, bound_spread: as in `pgd_linf`; the step is in proportion to the radius.
      statistics: batch normalisation in the attack and where the confidence is read; not in the paper; "train" is the
        style of its code.

    Source: the paper's ablation; no code was released.
    """
    return pgd_training(
        "linf",
        bound=bound,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        bound_spread=bound_spread,
        statistics=statistics,
        scale=_by_confidence,
    )


def threshold_l2(
    *,
    bound: float = 1.3,
    steps: int = 10,
    step_size: float = 0.325,
    random_start: bool = True,
    bound_spread: float = 1.0,
    statistics: str = "train",
) -> Method:
    """`threshold_linf` in l2 balls; 1.3 is the bound of the paper's l2 training."""
    return pgd_training(
        "l2",
        bound=bound,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        bound_spread=bound_spread,
        statistics=statistics,
        scale=_by_confidence,
    )


def confidence_factor(confidence: Array) -> Array:
    """0.03 below a confidence of 0.1, 0.3 from there to 0.25, 0.55 to 0.5, and 1 from 0.5 on; (B,) -> (B,).

    >>> import jax.numpy as jnp
    >>> print(confidence_factor(jnp.array([0.05, 0.1, 0.3, 0.5])))
    [0.03 0.3  0.55 1.  ]
    """
    limits, factors = jnp.array([0.1, 0.25, 0.5]), jnp.array([0.03, 0.3, 0.55, 1.0])
    return factors[jnp.searchsorted(limits, confidence, side="right")]


def _by_confidence(forward: Forward, batch_stats: Any, batch: Batch) -> tuple[Array, Any]:
    logits, batch_stats = forward(batch.images, batch_stats)
    return confidence_factor(label_logit(jax.nn.softmax(logits), batch.labels)), batch_stats
