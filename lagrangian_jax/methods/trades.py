"""TRADES (Zhang et al. 2019) and MART (Wang et al. 2020): a clean and an adversarial term, weighted by ``beta``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import normal
from lagrangian_jax.attacks.gradient import pgd
from lagrangian_jax.losses import boosted_cross_entropy, cross_entropy, kl_divergence, label_logit
from lagrangian_jax.methods.method import Batch, Crafted, Method, Network, Outcome, random_factors


def trades_loss(clean: Array, adversarial: Array, labels: Array, beta: float, smoothing: float = 0.0) -> Array:
    """CE(clean) + beta KL(clean || adversarial) for each example, (B,); differentiable in both logits (B, K)."""
    return cross_entropy(clean, labels, smoothing) + beta * kl_divergence(clean, adversarial)


def mart_loss(clean: Array, adversarial: Array, labels: Array, beta: float, smoothing: float = 0.0) -> Array:
    """BCE(adversarial) + beta KL(clean || adversarial) (1 - p_y(clean)) for each example, (B,); published guards."""
    p, q = jax.nn.softmax(clean), jax.nn.softmax(adversarial)
    divergence = jnp.sum(p * (jax.nn.log_softmax(clean) - jnp.log(q + 1e-12)), axis=-1)
    return boosted_cross_entropy(adversarial, labels, smoothing) + beta * divergence * (
        1.0000001 - label_logit(p, labels)
    )


def trades(
    *,
    bound: float = 0.031,
    steps: int = 10,
    step_size: float = 0.007,
    init_std: float = 0.001,
    beta: float = 6.0,
    bound_spread: float = 1.0,
    statistics: str = "eval",
) -> Method:
    """TRADES in the linf ball; the attack maximises the divergence from the clean prediction.

    Args:
      bound, steps, step_size, init_std, beta: from the original's CIFAR-10 script; the paper may have enlarged the
        bound.
      bound_spread: as in `pgd_linf`; at 1 all examples share one bound.
      statistics: batch normalisation in the attack, "eval" in the original. The clean prediction that the attack moves
        away from is always made in evaluation mode.

    The clean and the adversarial batch are normalised separately, each with its own statistics. As in the original, the
    clean one passes twice, so the running averages are updated three times per step, besides the attack's updates with
    "train".

    Source: yaodongyu/TRADES `trades.py`.
    """

    def craft(keys, network, batch, memory, epoch):
        clean, _ = network.bind("eval")(batch.images, network.batch_stats)
        clean = lax.stop_gradient(clean)
        images, batch_stats = _near(
            keys,
            network,
            batch,
            bound=bound,
            bound_spread=bound_spread,
            steps=steps,
            step_size=step_size,
            init_std=init_std,
            statistics=statistics,
            loss=lambda logits, labels: kl_divergence(clean, logits),
        )
        return Crafted(images, batch_stats, memory)

    def loss(forward, batch_stats, batch, crafted):
        clean, batch_stats = forward(batch.images, batch_stats)
        adversarial, batch_stats = forward(crafted.images, batch_stats)
        _, batch_stats = forward(batch.images, batch_stats)
        losses = trades_loss(clean, adversarial, batch.labels, beta, batch.smoothing)
        return Outcome(losses, adversarial, batch_stats)

    return Method(craft, loss)


def mart(
    *,
    bound: float = 0.031,
    steps: int = 10,
    step_size: float = 0.007,
    init_std: float = 0.001,
    beta: float = 5.0,
    bound_spread: float = 1.0,
    statistics: str = "eval",
) -> Method:
    """MART in the linf ball; the attack maximises the cross-entropy; misclassified examples weigh more in the loss.

    Args:
      bound, steps, step_size, init_std, beta: from the original's ResNet-18 script.
      bound_spread: as in `pgd_linf`; at 1 all examples share one bound.
      statistics: batch normalisation in the attack, "eval" in the original; the loss normalises the clean and the
        adversarial batch separately.

    Source: YisenWang/MART `mart.py`.
    """

    def craft(keys, network, batch, memory, epoch):
        images, batch_stats = _near(
            keys,
            network,
            batch,
            bound=bound,
            bound_spread=bound_spread,
            steps=steps,
            step_size=step_size,
            init_std=init_std,
            statistics=statistics,
            loss=cross_entropy,
        )
        return Crafted(images, batch_stats, memory)

    def loss(forward, batch_stats, batch, crafted):
        clean, batch_stats = forward(batch.images, batch_stats)
        adversarial, batch_stats = forward(crafted.images, batch_stats)
        losses = mart_loss(clean, adversarial, batch.labels, beta, batch.smoothing)
        return Outcome(losses, adversarial, batch_stats)

    return Method(craft, loss)


def _near(
    keys: Array,
    network: Network,
    batch: Batch,
    *,
    bound: float,
    bound_spread: float,
    steps: int,
    step_size: float,
    init_std: float,
    statistics: str,
    loss: Callable[[Array, Array], Array],
) -> tuple[Array, Any]:
    """PGD that starts close to the image."""
    factors = random_factors(keys, bound_spread)
    return pgd(
        keys,
        network.bind(statistics),
        network.batch_stats,
        batch.images,
        batch.labels,
        norm="linf",
        bound=bound * factors,
        steps=steps,
        step_size=step_size * factors,
        start=init_std * normal(keys, batch.images.shape[1:]),
        loss=loss,
    )
