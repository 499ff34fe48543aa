"""Instance adaptive adversarial training (Balaji, Goldstein and Hoffman 2019): a budget for each training example."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import expand, fold_in, uniform
from lagrangian_jax.attacks.gradient import pgd
from lagrangian_jax.methods.method import Crafted, Method, adversarial_cross_entropy


def iaat(
    *,
    bound: float = 8 / 255,
    steps: int = 10,
    step_size: float = 2 / 255,
    increment: float = 1.9 / 255,
    rate: float = 0.1,
    warmup: float = 10.0,
    statistics: str = "train",
) -> Method:
    r"""Training on PGD images in linf balls that grow around robust examples and shrink around the others.

    The memory is the budget :math:`\epsilon_i` of each training example, 0 at first. During the warm-up it is ``bound``
    if the clean image is classified correctly, else 0. After that,

    .. math:: \epsilon_i \leftarrow \beta t + (1 - \beta)\epsilon_i, \quad
       t = \epsilon_i + \gamma,\ \epsilon_i \text{ or } \max(\epsilon_i - \gamma, 0)

    where t is the first of the three budgets at which PGD fails (the last is not tried), and 0 for misclassified
    examples. One more attack, at the new budget, gives the image that is trained on; cross-entropy on it alone.
    Crafting costs 30 gradients and 3 passes, during the warm-up 10 and 1.

    Args:
      bound: budget during the warm-up.
      steps: steps of each attack.
      step_size: the least step; an example's is its budget / (steps / 2) if that is larger.
      increment: gamma.
      rate: beta.
      warmup: epochs, counted from the start of training, so that they include the clean ones.
      statistics: batch normalisation in every pass of crafting; "train" in the original, whose network is never
        switched to evaluation mode.

    Source: Instance_Adaptive_Adversarial_Training `trainers/trainer_adaptive.py`.
    """

    def craft(keys, network, batch, memory, epoch):
        forward = network.bind(statistics)

        def attack(stream, batch_stats, budgets):
            streams = fold_in(keys, stream)
            return pgd(
                streams,
                forward,
                batch_stats,
                batch.images,
                batch.labels,
                norm="linf",
                bound=budgets,
                steps=steps,
                step_size=jnp.maximum(budgets / (0.5 * steps), step_size),
                # The original does not clip its start to the box.
                start=expand(budgets, batch.images) * uniform(streams, batch.images.shape[1:], -1.0, 1.0),
            )

        def is_correct(images, batch_stats):
            logits, batch_stats = forward(images, batch_stats)
            return jnp.argmax(logits, axis=-1) == batch.labels, batch_stats

        def settle(batch_stats):
            held, batch_stats = attack(0, batch_stats, memory)
            raised, batch_stats = attack(1, batch_stats, memory + increment)
            holds, batch_stats = is_correct(held, batch_stats)
            could_rise, batch_stats = is_correct(raised, batch_stats)
            return next_budgets(memory, correct, holds, could_rise, increment, rate), batch_stats

        def warm_up(batch_stats):
            return jnp.where(correct, jnp.float32(bound), 0.0), batch_stats

        correct, batch_stats = is_correct(batch.images, network.batch_stats)
        budgets, batch_stats = lax.cond(epoch < warmup, warm_up, settle, batch_stats)
        images, batch_stats = attack(2, batch_stats, budgets)
        return Crafted(images, batch_stats, budgets)

    return Method(craft, adversarial_cross_entropy, memory=lambda examples: jnp.zeros(examples))


def next_budgets(budgets: Array, correct: Any, holds: Any, could_rise: Any, increment: float, rate: float) -> Array:
    """The budgets after a step, (B,); `iaat` has the formula.

    Args:
      budgets: the budgets before the step.
      correct: whether the clean image is classified correctly.
      holds: whether the image attacked within the budget is classified correctly.
      could_rise: whether the image attacked within the budget plus ``increment`` is classified correctly.
      increment, rate: gamma and beta.

    >>> import jax.numpy as jnp
    >>> right, wrong = jnp.array([True]), jnp.array([False])
    >>> print(next_budgets(jnp.array([0.5]), right, right, wrong, 0.1, 0.5))
    [0.5]
    """
    target = jnp.where(could_rise, budgets + increment, jnp.where(holds, budgets, budgets - increment))
    target = jnp.where(correct, jnp.maximum(target, 0.0), 0.0)
    return rate * target + (1 - rate) * budgets
