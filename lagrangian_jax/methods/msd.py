"""MSD training (Maini et al. 2020): the union of an linf, an l2 and an l1 ball."""

from lagrangian_jax.attacks.msd import msd_with_state
from lagrangian_jax.methods.method import Crafted, Method, adversarial_cross_entropy


def msd(
    *,
    steps: int = 50,
    bound_linf: float = 0.03,
    bound_l2: float = 0.3,
    bound_l1: float = 12.0,
    step_size_linf: float = 0.003,
    step_size_l2: float = 0.05,
    step_size_l1: float = 0.05,
    statistics: str = "train",
) -> Method:
    """Training on the images of multi steepest descent; cross-entropy on them alone.

    The parameters are those of `lagrangian_jax.attacks.msd.msd`, with the values of the original's training script,
    which trains with 0.3 in l2 and evaluates at 0.5.

    Args:
      statistics: batch normalisation in the attack. "train" in the original, whose network is never switched to
        evaluation mode: each attack step passes four batches through it, so the running averages are updated 201 times
        per training step.

    Source: robust_union `CIFAR10/train.py` and `cifar_funcs.py`.
    """

    def craft(keys, network, batch, memory, epoch):
        images, batch_stats = msd_with_state(
            keys,
            network.bind(statistics),
            network.batch_stats,
            batch.images,
            batch.labels,
            steps=steps,
            bound_linf=bound_linf,
            bound_l2=bound_l2,
            bound_l1=bound_l1,
            step_size_linf=step_size_linf,
            step_size_l2=step_size_l2,
            step_size_l1=step_size_l1,
        )
        return Crafted(images, batch_stats, memory)

    return Method(craft, adversarial_cross_entropy)
