"""Max-margin adversarial training (Ding et al. 2020): on the boundary, however far it is from each example."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import expand
from lagrangian_jax.attacks.gradient import pgd
from lagrangian_jax.losses import cross_entropy, soft_margin
from lagrangian_jax.methods.method import Crafted, Method, Outcome


def mma(
    *,
    largest: float = 2.0,
    smallest: float = 0.5,
    steps: int = 10,
    search_steps: int = 10,
    clean_weight: float = 1 / 3,
    statistics: str = "eval",
    search_statistics: str = "train",
) -> Method:
    r"""Training on images at the decision boundary, in l2; examples beyond ``largest`` only add their clean loss.

    The memory is the distance :math:`\epsilon_i` of each training example to the boundary. For an example that is
    classified correctly (its soft margin is negative), PGD in the ball of that radius gives a direction, and bisection
    along it gives the new distance, at most 1.05 d_max; a misclassified example has distance 0. Then

    .. math:: L = \tfrac13 \mathrm{CE}(x) + \tfrac23 \begin{cases}
       \mathrm{CE}(x + \epsilon u) & \text{correct and } \epsilon < d_{max} \\ 0 & \text{correct, further away} \\
       \mathrm{CE}(x) & \text{misclassified} \end{cases}

    Args:
      largest: d_max, l2 over all pixels and channels; 1, 2 or 3 in the original. The paper gives none; its clean
        accuracy of 82 % lies between the original's at 2 and at 3.
      smallest: the least radius in which PGD looks for a direction, and the distance at first.
      steps: steps of PGD, each 2.5 / steps of the radius, from a random start; PGD maximises the soft margin.
      search_steps: steps of the bisection.
      clean_weight: weight of CE(x) on every example, 1/3 in the formula.
      statistics: batch normalisation in PGD; "eval" in the original.
      search_statistics: batch normalisation in the clean pass and the bisection; "train" in the original, which leaves
        evaluation mode before the bisection: with the outer passes, 13 updates of the running averages per step.

    Source: BorealisAI/mma_training `trainer.py`, `anpgd.py`. Deviations: the bisection runs on the whole batch, with
    misclassified images unperturbed, while the original runs it on the correct ones alone, which changes batch
    statistics; PGD starts uniformly in the ball.
    """

    def craft(keys, network, batch, memory, epoch):
        search = network.bind(search_statistics)
        clean, batch_stats = search(batch.images, network.batch_stats)
        correct = soft_margin(clean, batch.labels) < 0
        radius = jnp.maximum(memory, smallest)
        adversarial, batch_stats = pgd(
            keys,
            network.bind(statistics),
            batch_stats,
            batch.images,
            batch.labels,
            norm="l2",
            bound=radius,
            steps=steps,
            step_size=2.5 * radius / steps,
            random_start=True,
            loss=soft_margin,
        )
        direction = expand(correct / radius, batch.images) * (adversarial - batch.images)

        def margins(distances, batch_stats):
            images = jnp.clip(batch.images + expand(distances, direction) * direction, 0.0, 1.0)
            logits, batch_stats = search(images, batch_stats)
            return soft_margin(logits, batch.labels), batch_stats

        distances, batch_stats = bisect(margins, batch_stats, radius, 1.05 * largest, search_steps)
        images = batch.images + expand(distances, direction) * direction  # not clipped, as in the original
        return Crafted(images, batch_stats, jnp.where(correct, distances, 0.0))

    def loss(forward, batch_stats, batch, crafted):
        clean, counted = forward(batch.images, batch_stats)
        # Count this pass in the running averages once: in mode "train", crafting has already done so.
        batch_stats = batch_stats if search_statistics == "train" else counted
        logits, batch_stats = forward(crafted.images, batch_stats)
        counts = crafted.memory < largest  # misclassified ones have 0
        smoothing = batch.smoothing
        losses = mma_loss(clean, logits, batch.labels, counts, clean_weight, smoothing)
        return Outcome(losses, logits, batch_stats)

    return Method(craft, loss, memory=lambda examples: jnp.full(examples, smallest))


def mma_loss(
    clean: Array, crafted: Array, labels: Array, counts: Array, clean_weight: float, smoothing: float = 0.0
) -> Array:
    """w CE(clean) + (1 - w) CE(crafted), the second only where it ``counts``; per example, (B,)."""
    margin = jnp.where(counts, cross_entropy(crafted, labels, smoothing), 0.0)
    return clean_weight * cross_entropy(clean, labels, smoothing) + (1 - clean_weight) * margin


def bisect(margins: Callable, state, start: Array, largest: float, steps: int) -> tuple[Array, object]:
    """The distances at which margins change sign, by bisection of [0, largest], beginning at ``start``.

    Args:
      margins: ``(distances, state) -> (margins, state)``, (B,), negative on this side of the boundary.
      state: threaded through.
      start: the first distances, (B,).
      largest: where the search ends if it meets no boundary.
      steps: points to try after the first.

    Returns:
      the middle of the last interval, and the state.
    """

    def halve(_, carry):
        low, high, distances, values, state = carry
        inside = values < 0
        low = jnp.where(inside, jnp.maximum(distances, low), low)
        high = jnp.where(inside, high, jnp.minimum(distances, high))
        distances = (low + high) / 2
        values, state = margins(distances, state)
        return low, high, distances, values, state

    values, state = margins(start, state)
    carry = (jnp.zeros_like(start), jnp.full_like(start, largest), start, values, state)
    _, _, distances, _, state = lax.fori_loop(0, steps, halve, carry)
    return distances, state
