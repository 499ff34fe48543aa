"""What a training method is: how it crafts its images, what it minimises, what it remembers of each example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
from jax import Array

from lagrangian_jax.attacks.arrays import fold_in, uniform
from lagrangian_jax.attacks.gradient import Forward
from lagrangian_jax.attacks.inputs import LogitsFn, finite_gradient
from lagrangian_jax.losses import cross_entropy
from lagrangian_jax.models.forward import bind


class Batch(NamedTuple):
    """A training batch.

    Attributes:
      images: (B, H, W, C) in [0, 1].
      labels: (B,).
      indices: (B,), the row of each in the training set.
      smoothing: label smoothing in the cross-entropies of `Method.loss`; attacks use none.
    """

    images: Array
    labels: Array
    indices: Array
    smoothing: float = 0.0


class Network(NamedTuple):
    """A network with its parameters and batch statistics, as `Method.craft` sees it."""

    module: nn.Module
    params: Any
    batch_stats: Any

    def bind(self, statistics: str) -> Forward:
        """``forward(images, batch_stats)`` in a mode of batch normalisation, over this device's examples alone."""
        forward = bind(self.module, self.params, statistics)
        return lambda images, batch_stats: forward(finite_gradient(images), batch_stats)

    def logits_fn(self, statistics: str) -> LogitsFn:
        """``images -> logits`` for attacks that carry no state; the updates of mode "train" are lost."""
        forward = self.bind(statistics)
        return lambda images: forward(images, self.batch_stats)[0]


class Crafted(NamedTuple):
    """What `Method.craft` returns.

    Attributes:
      images: what the method trains on, (B, H, W, C).
      batch_stats: the running statistics after the forward passes of the attack.
      memory: the rows of the batch's examples, updated.
    """

    images: Array
    batch_stats: Any
    memory: Any = ()


class Outcome(NamedTuple):
    """What `Method.loss` returns: the loss of each example (B,), adversarial logits (B, K), running statistics."""

    losses: Array
    logits: Array
    batch_stats: Any


class Method(NamedTuple):
    """A training method, made of pure functions.

    Attributes:
      craft: ``(keys, network: Network, batch: Batch, memory, epoch) -> Crafted``; ``keys`` are one per example,
        ``memory`` the rows of the batch's examples, ``epoch`` a traced float.
      loss: ``(forward, batch_stats, batch, crafted) -> Outcome``; ``forward(images, batch_stats)`` uses the statistics
        of the global batch. The mean of the losses is differentiated with respect to the parameters.
      memory: ``(examples) -> rows``, the initial memory for so many training examples: a tree of arrays with a row for
        each, or ``()`` for none.
    """

    craft: Callable[..., Crafted]
    loss: Callable[..., Outcome]
    memory: Callable[[int], Any] = lambda examples: ()


def adversarial_cross_entropy(forward: Forward, batch_stats: Any, batch: Batch, crafted: Crafted) -> Outcome:
    """Cross-entropy on the crafted images alone, as in Madry et al. 2018 and the paper's released code."""
    logits, batch_stats = forward(crafted.images, batch_stats)
    return Outcome(cross_entropy(logits, batch.labels, batch.smoothing), logits, batch_stats)


def random_factors(keys: Array, spread: float) -> Array | float:
    """A factor for each example, (B,), log-uniform between 1 / spread and spread; the number 1 if ``spread`` is 1.

    Methods with ``multiplier_spread`` or ``bound_spread`` multiply by it. It is drawn anew in every step, so that
    training sees perturbations of many sizes. This goes beyond the paper, which has one multiplier, or bound, for all
    examples.

    >>> import jax
    >>> random_factors(jax.random.split(jax.random.key(0), 2), 1.0)
    1.0
    """
    # A stream of its own: attacks draw their starts from those of `jax.random.split`, which are 0 and 1.
    return spread ** uniform(fold_in(keys, 2), (), -1.0, 1.0) if spread > 1 else 1.0
