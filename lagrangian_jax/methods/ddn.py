"""DDN training (Rony et al. 2019): on the closest adversarial images."""

from lagrangian_jax.attacks.minimal_norm import ddn as attack
from lagrangian_jax.methods.method import Crafted, Method, adversarial_cross_entropy


def ddn(
    *,
    steps: int = 100,
    gamma: float = 0.05,
    init_norm: float = 1.0,
    levels: int | None = 256,
    max_norm: float | None = 1.0,
    statistics: str = "eval",
) -> Method:
    """Training on the images of decoupled direction and norm (DDN), within ``max_norm``; cross-entropy on them alone.

    The parameters are those of `lagrangian_jax.attacks.minimal_norm.ddn`. An image for which the attack fails, or that
    is misclassified, is trained on as it is.

    Args:
      max_norm: l2 norm to which longer perturbations are shortened; 1.0 in the original, None for no limit.
      statistics: batch normalisation in the attack: "eval" in the original; or "batch", which leaves the running
        averages alone.

    Source: fast_adversarial `fast_adv/defenses/cifar10.py`.
    """

    def craft(keys, network, batch, memory, epoch):
        images = attack(
            keys,
            network.logits_fn(statistics),
            batch.images,
            batch.labels,
            steps=steps,
            gamma=gamma,
            init_norm=init_norm,
            levels=levels,
            max_norm=max_norm,
        )
        return Crafted(images, network.batch_stats, memory)

    return Method(craft, adversarial_cross_entropy)
