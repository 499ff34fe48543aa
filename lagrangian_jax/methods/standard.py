"""Standard training: no attack."""

from lagrangian_jax.methods.method import Crafted, Method, adversarial_cross_entropy


def standard() -> Method:
    """Cross-entropy on clean images; also used in the clean epochs of every other method."""

    def craft(keys, network, batch, memory, epoch):
        return Crafted(batch.images, network.batch_stats, memory)

    return Method(craft, adversarial_cross_entropy)
