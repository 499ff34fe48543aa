"""JPEG training (Kang et al. 2019): noise on the quantised DCT coefficients."""

from typing import Any

from lagrangian_jax.attacks.arrays import fold_in, uniform
from lagrangian_jax.attacks.jpeg import jpeg as attack
from lagrangian_jax.methods.method import Crafted, Method, adversarial_cross_entropy


def jpeg(
    *,
    bound: float = 0.25,
    steps: int = 10,
    step_size: float | None = None,
    scaled: bool = False,
    statistics: str = "eval",
) -> Method:
    """Training on the images of the JPEG attack; cross-entropy on them alone.

    The parameters are those of `lagrangian_jax.attacks.jpeg.jpeg`.

    Args:
      bound: the paper gives none; 0.25 is twice the bound of its evaluation.
      step_size: None for the original's ``bound / sqrt(steps)``.
      scaled: multiply each example's bound and step by a number drawn uniformly from [0, 1), as the original's trainer
        does.
      statistics: batch normalisation in the attack: "eval" in the original; or "batch", which leaves the running
        averages alone.

    Source: advex-uar `advex_uar/train/trainer.py`. The original aims at a random wrong class; here the attack is
    untargeted, as in the paper's evaluation.
    """

    def craft(keys, network, batch, memory, epoch):
        factors: Any = uniform(fold_in(keys, 1), (1,)) if scaled else 1.0
        images = attack(
            keys,
            network.logits_fn(statistics),
            batch.images,
            batch.labels,
            bound=bound * factors,
            steps=steps,
            step_size=(bound / steps**0.5 if step_size is None else step_size) * factors,
        )
        return Crafted(images, network.batch_stats, memory)

    return Method(craft, adversarial_cross_entropy)
