"""A network as training sees it: a pure function with its batch statistics threaded through."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax import Array

from lagrangian_jax.models.layers import mean_over_positions

STATISTICS = ("train", "batch", "eval")


def apply(network: nn.Module, variables: Any, images: Array) -> Array:
    """Logits (B, K) in evaluation mode."""
    logits = network.apply(variables, images, train=False)
    assert isinstance(logits, Array)
    return logits


def bind(
    network: nn.Module, params: Any, statistics: str, axis_name: str | None = None, features: bool = False
) -> Callable[[Array, Any], tuple[Array, Any]]:
    """``forward(images, batch_stats) -> (logits, batch_stats)`` for fixed parameters.

    Args:
      network: a Linen module called as ``apply(variables, images, train=...)``.
      params: its parameters.
      statistics: what batch normalisation uses. "train": statistics of the batch, which also update the running
        averages; "batch": statistics of the batch, running averages untouched; "eval": the running averages, untouched.
      axis_name: mesh axis over which batch statistics are taken; None for those of the device's own examples.
      features: return the features of the last stage, averaged over positions, (B, C) float32, instead of the logits.
    """
    if statistics not in STATISTICS:
        raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}; got {statistics!r}")
    if hasattr(network, "axis_name"):
        network = network.clone(axis_name=axis_name)
    options: dict[str, Any] = {"features": True} if features else {}

    def wanted(output):
        return mean_over_positions(output[1][-1]) if features else output

    def forward(images, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        if statistics == "eval":
            return wanted(network.apply(variables, images, train=False, **options)), batch_stats
        output, updated = network.apply(variables, images, train=True, mutable=["batch_stats"], **options)
        return wanted(output), updated.get("batch_stats", batch_stats) if statistics == "train" else batch_stats

    return forward
