"""Adversarial training with PGD (Madry et al. 2018), in the linf and in the l2 ball."""

from collections.abc import Callable
from typing import Any

from jax import Array

from lagrangian_jax.attacks.gradient import Forward, pgd
from lagrangian_jax.methods.method import Batch, Crafted, Method, adversarial_cross_entropy, random_factors


def pgd_linf(
    *,
    bound: float = 10 / 255,
    steps: int = 10,
    step_size: float = 2.5 / 255,
    random_start: bool = True,
    bound_spread: float = 1.0,
    statistics: str = "train",
) -> Method:
    """Training on PGD images in the linf ball.

    Args:
      bound: 10/255 is the paper's for CIFAR-10.
      steps, step_size, random_start: not in the paper; 10 steps of a quarter of the bound.
      bound_spread: s; at 1 all examples share one bound. Above 1 each example draws its own in every step,
        log-uniformly between bound / s and bound * s, and its step in proportion; see
        `lagrangian_jax.methods.method.random_factors`. Only methods with a single bound in an lp ball take it: the
        others set a bound for each example (`ddn`, `mma`, `iaat`), have three (`msd`), or have ``multiplier_spread`` or
        ``scaled`` instead.
      statistics: batch normalisation in the attack; "train" is the style of the paper's code and of robust_overfitting.
    """
    return pgd_training(
        "linf",
        bound=bound,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        bound_spread=bound_spread,
        statistics=statistics,
    )


def pgd_l2(
    *,
    bound: float = 1.3,
    steps: int = 10,
    step_size: float = 0.325,
    random_start: bool = True,
    bound_spread: float = 1.0,
    statistics: str = "train",
) -> Method:
    """Training on PGD images in the l2 ball; 1.3 is the paper's bound for CIFAR-10. See `pgd_linf` for the rest."""
    return pgd_training(
        "l2",
        bound=bound,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        bound_spread=bound_spread,
        statistics=statistics,
    )


def pgd_training(
    norm: str,
    *,
    bound: float,
    steps: int,
    step_size: float,
    random_start: bool,
    bound_spread: float,
    statistics: str,
    scale: Callable[[Forward, Any, Batch], tuple[Array, Any]] | None = None,
) -> Method:
    """Cross-entropy on PGD images; ``scale(forward, batch_stats, batch)``, if given, returns factors for the examples'
    bounds and steps, (B,), and the statistics.
    """

    def craft(keys, network, batch, memory, epoch):
        forward, batch_stats = network.bind(statistics), network.batch_stats
        factors = random_factors(keys, bound_spread)
        if scale is not None:
            own, batch_stats = scale(forward, batch_stats, batch)
            factors = own * factors
        images, batch_stats = pgd(
            keys,
            forward,
            batch_stats,
            batch.images,
            batch.labels,
            norm=norm,
            bound=bound * factors,
            steps=steps,
            step_size=step_size * factors,
            random_start=random_start,
        )
        return Crafted(images, batch_stats, memory)

    return Method(craft, adversarial_cross_entropy)
