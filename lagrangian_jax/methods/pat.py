"""Perceptual adversarial training (Laidlaw, Singla and Feizi 2021): images of Fast-LPA."""

import jax.numpy as jnp

from lagrangian_jax import distances
from lagrangian_jax.attacks.arrays import expand
from lagrangian_jax.attacks.perceptual import fast_lpa
from lagrangian_jax.methods.method import Crafted, Method, Network, adversarial_cross_entropy, random_factors


def pat(
    *,
    bound: float = 0.5,
    steps: int = 10,
    distance: str = "lpips_alexnet_cifar",
    weights: str = "",
    multiplier: float = 10.0,
    init_std: float = 0.01,
    multiplier_spread: float = 1.0,
    statistics: str = "eval",
) -> Method:
    """Training on images within a perceptual distance, from Fast-LPA; cross-entropy on them.

    The parameters are those of `lagrangian_jax.attacks.perceptual.fast_lpa`. Only examples that are classified
    correctly are attacked; the others are trained on as they are.

    Args:
      bound: in units of the distance; soft, since training uses Fast-LPA without its projection.
      distance: a name for `lagrangian_jax.distances.create`. "self_lpips" compares features of the network in training,
        as it is at each step, in evaluation mode.
      weights: weights file for a distance that needs one; "" for the one that comes with the package.
      multiplier_spread: as in `lagrangian`; at 1 all examples share one multiplier, as in the original.
      statistics: batch normalisation in the attack and where correctness is judged: "eval" in the original; or "batch",
        which leaves the running averages alone.

    Raises:
      ValueError, FileNotFoundError: an unknown distance, or one without its weights; the message says what to do.

    Source: perceptual-advex `adv_train.py`; the paper trains with AlexNet's distance.
    """
    fixed = None
    if distance != "self_lpips":
        fixed = distances.create(distance, **{"weights": weights} if weights else {})

    def craft(keys, network, batch, memory, epoch):
        logits_fn = network.logits_fn(statistics)
        images = fast_lpa(
            keys,
            logits_fn,
            batch.images,
            batch.labels,
            bound=bound,
            steps=steps,
            distance=fixed or _self_lpips(network),
            multiplier=multiplier * random_factors(keys, multiplier_spread),
            init_std=init_std,
        )
        correct = jnp.argmax(logits_fn(batch.images), axis=-1) == batch.labels
        return Crafted(jnp.where(expand(correct, images), images, batch.images), network.batch_stats, memory)

    return Method(craft, adversarial_cross_entropy)


def _self_lpips(network: Network) -> distances.FeatureDistance:
    variables = {"params": network.params, "batch_stats": network.batch_stats}

    def features_fn(images):
        return network.module.apply(variables, images, train=False, features=True)[1]

    return distances.create("self_lpips", features_fn=features_fn)
