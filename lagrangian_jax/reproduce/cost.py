"""What a training and an evaluation cost, counted in their programs before anything runs.

The unit is a forward pass of the network over one image. A gradient by the image costs its pass and as much again, one
by the weights its pass and twice as much again: 13 passes per image for training with the Lagrangian attack in 5 steps.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lagrangian_jax import attacks, distances, methods
from lagrangian_jax.build import build_method
from lagrangian_jax.evaluation import Row
from lagrangian_jax.evaluation.cost import Meter, marked

_SIZE, _CLASSES, _BATCH = 32, 10, 2


class Passes(NamedTuple):
    """Forward passes, gradients by the image and gradients by the weights, per image; upper bounds unless ``exact``."""

    forward: float
    by_image: float
    by_weights: float = 0.0
    exact: bool = True

    @property
    def units(self) -> float:
        """The cost in forward passes; each gradient comes on top of its pass."""
        return self.forward + self.by_image + 2 * self.by_weights


class _Probe(nn.Module):
    """Stands in for the network: the count does not depend on which one it is."""

    @nn.compact
    def __call__(self, images, train=False, features=False):
        logits = marked(lambda images: nn.Dense(_CLASSES)(images.reshape(len(images), -1)))(images)
        return (logits, [images]) if features else logits


def of_training(config: ConfigDict) -> Passes:
    """One image in one adversarial step of the configured method.

    >>> from lagrangian_jax import config as configuration
    >>> of_training(configuration.load("cifar10:lagrangian"))
    Passes(forward=6.0, by_image=5.0, by_weights=1.0, exact=True)
    """
    if config.method.name in methods.AUXILIARY:  # nothing is crafted
        return Passes(1.0, 0.0, 1.0)
    values = {name: value for name, value in config.method.items() if name != "weights"}
    if values.get("distance") in distances.names():
        values["distance"] = "l2"  # only the classifier's passes count, and l2 needs no weights
    return _of_method(json.dumps(values, sort_keys=True))


@functools.cache
def _of_method(given: str) -> Passes:
    method = build_method(ConfigDict({"method": json.loads(given)}))
    images, labels = jnp.zeros((_BATCH, _SIZE, _SIZE, 3)), jnp.zeros(_BATCH, jnp.int32)
    params = jax.eval_shape(lambda: _Probe().init(jax.random.key(0), images))["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    batch = methods.Batch(images, labels, labels)
    network = methods.Network(_Probe(), params, {})

    def craft(keys, images):
        # At a step after any warm-up, which may cost less.
        return method.craft(keys, network, batch._replace(images=images), method.memory(_BATCH), 1e6)

    def outer(clean, crafted, memory):
        outcome = method.loss(
            network.bind("eval"), {}, batch._replace(images=clean), methods.Crafted(crafted, {}, memory)
        )
        return jnp.sum(outcome.losses)

    keys = jax.random.split(jax.random.key(0), _BATCH)
    forward, by_image, exact = _count(craft, keys, images)
    assert forward is not None
    assert by_image is not None
    # Whichever pass has its gradient by the images taken has its gradient by the weights taken too.
    memory = jax.tree.map(jnp.zeros_like, jax.eval_shape(craft, keys, images).memory)
    outer_forward, by_weights, _ = _count(jax.grad(functools.partial(outer, memory=memory), (0, 1)), images, images)
    assert outer_forward is not None
    assert by_weights is not None
    return Passes(forward + outer_forward, by_image, by_weights, exact)


def of_row(row: Row) -> Passes:
    """One image under an attack of a suite, including the pass that reads the prediction.

    Attacks in stages, which leave out images that are fooled already, count as if none were ever fooled.

    >>> of_row(Row("pgd_l2", parameters={"steps": 40}))
    Passes(forward=41.0, by_image=40.0, by_weights=0.0, exact=True)
    """
    # The count depends neither on how far an attack may go nor on the size of its steps.
    kept = {name: value for name, value in row.parameters.items() if name not in ("step_size", "multiplier")}
    kept |= {"bound": 1.0} if "bound" in kept else {}
    return _of_attack(row.attack, json.dumps(kept, sort_keys=True))


@functools.cache
def _of_attack(name: str, given: str) -> Passes:
    parameters = json.loads(given)
    if "distance" in parameters:
        parameters["distance"] = distances.create("l2")
    attack = attacks.create(name, **parameters)
    images, labels = jnp.zeros((_BATCH, _SIZE, _SIZE, 3)), jnp.zeros(_BATCH, jnp.int32)
    keys = jax.random.split(jax.random.key(0), _BATCH)
    weights = jnp.zeros((images[0].size, _CLASSES))
    logits_fn = marked(lambda images: images.reshape(len(images), -1) @ weights)
    # The data decide when LPA's loops inside loops and Square's queries end; this is the most that they take.
    most = attack.parameters.get("queries") or _rounds(attack.parameters)
    forward, by_image, exact = 1.0, 0.0, not attack.survivors
    counted: dict[Any, tuple[float | None, float | None, bool]] = {}
    for stage in attack.stages:
        if stage.function not in counted:
            run = functools.partial(_stage, stage.function, logits_fn, stage.arguments)
            counted[stage.function] = _count(run, keys, images, labels)
        more, gradients, whole = counted[stage.function]
        # Predictions are read after each stage of an attack in stages; a plain attack's one such pass is counted above.
        forward += (most if more is None else more) + attack.survivors
        by_image += most if gradients is None else gradients
        exact &= whole
    return Passes(forward, by_image, 0.0, exact)


def _rounds(parameters: Mapping[str, Any]) -> int:
    return parameters.get("rounds", 1) * parameters.get("steps", 1)


def _stage(function, logits_fn, arguments, keys, images, labels):
    return function(keys, logits_fn, images, labels, *arguments)


def _count(function: Callable[..., Any], *arguments: Any) -> tuple[float | None, float | None, bool]:
    """Forward passes and gradients by the images in a function's program (None if it does not tell); whether exact."""
    meter = Meter(jax.jit(function))  # inside `jit` no loop is counted as it runs; bounds take its place
    jax.eval_shape(meter, *arguments)
    logits, pixels = _BATCH * _CLASSES, math.prod((_BATCH, _SIZE, _SIZE, 3))
    forward, gradients, exact = meter.cost([], logits, pixels)
    return forward, gradients, exact and forward is not None and gradients is not None
