"""The paper's method: train on images of the Lagrangian attack."""

from lagrangian_jax.attacks.lagrangian import lagrangian_with_state
from lagrangian_jax.methods.method import Crafted, Method, adversarial_cross_entropy, random_factors


def lagrangian(
    *,
    steps: int = 5,
    step_size: float = 0.15,
    multiplier: float = 2.0,
    decay: float = 0.1,
    init_std: float = 0.01,
    kappa: float = 1.0,
    multiplier_spread: float = 1.0,
    statistics: str = "train",
) -> Method:
    """Training with the Lagrangian attack (Algorithm 1); cross-entropy on the adversarial images.

    The parameters are those of `lagrangian_jax.attacks.lagrangian.lagrangian`. Every example is attacked, misclassified
    ones too.

    Args:
      multiplier_spread: s; at 1 all examples share one multiplier, as in the paper. Above 1 each example draws its own
        in every step, log-uniformly between multiplier / s and multiplier * s; see
        `lagrangian_jax.methods.method.random_factors`.
      statistics: batch normalisation in the attack. "train" is that of the released code: the network is never switched
        to evaluation mode, so each of the attack's forward passes uses the statistics of the perturbed batch and
        updates the running averages: 6 updates per iteration, including that of the outer pass. "eval" uses the running
        averages, so that nothing couples the examples.

    Source: Lagrangian_Unseen `train_cifar.py`. In the paper, attack and training share one loss; the released code
    trains with the cross-entropy.
    """

    def craft(keys, network, batch, memory, epoch):
        images, batch_stats = lagrangian_with_state(
            keys,
            network.bind(statistics),
            network.batch_stats,
            batch.images,
            batch.labels,
            steps=steps,
            step_size=step_size,
            multiplier=multiplier * random_factors(keys, multiplier_spread),
            decay=decay,
            init_std=init_std,
            kappa=kappa,
        )
        return Crafted(images, batch_stats, memory)

    return Method(craft, adversarial_cross_entropy)
