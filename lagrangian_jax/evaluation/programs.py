"""The compiled side of an evaluation: a program for each stage of an attack and each batch size, split over devices."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lagrangian_jax.attacks.arrays import predictions, threefry
from lagrangian_jax.attacks.attack import map_batches
from lagrangian_jax.attacks.inputs import float32_logits, with_finite_gradients
from lagrangian_jax.evaluation.cost import Cost, Meter, marked
from lagrangian_jax.parallel import AXIS, per_device


class Programs:
    """Compiles stages on demand, runs them, and halves the batch if it does not fit into the device's memory.

    Attributes:
      compile_seconds: spent on tracing and compiling so far.
      largest: the largest batch that is tried for this attack, once one did not fit; None before.
    """

    def __init__(self, logits_fn: Callable[..., Array], variables: tuple[Any, ...], mesh: Mesh, classes: int) -> None:
        self._logits_fn = marked(logits_fn)
        self._mesh, self._classes = mesh, classes
        self._variables = jax.device_put(variables, NamedSharding(mesh, P()))
        self._compiled: dict[Any, tuple[Callable[..., Any], Meter]] = {}
        self._spent: dict[Any, list[tuple[int, Cost]]] = {}  # batch size and cost of each call, by stage's function
        self.compile_seconds = 0.0
        self.largest: int | None = None

    def run(
        self, function: Callable[..., Array], keys: np.ndarray, images: np.ndarray, labels: np.ndarray, *arguments: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``run`` of `lagrangian_jax.attacks.execute`, with keys as raw data. Predicts -1 where a logit is NaN."""
        size = len(images)
        # Only host arrays can be spread over the mesh; an array that is already on a device is on the wrong one.
        arguments = jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, arguments)
        if self.largest is None or size <= self.largest:
            try:
                program, meter = self._program(function, keys, images, labels, arguments)
                (adversarial, predictions), trips = program(self._variables, keys, images, labels, *arguments)
                outputs = np.asarray(adversarial), np.asarray(predictions)
                cost = self._cost(meter, np.asarray(trips), images)
                self._spent.setdefault(function, []).append((size, cost))
                return outputs
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or size <= self._mesh.size:
                    raise
            self._compiled.clear()  # programs hold device memory, too
            self.largest = self.rounded(size // 2 if size // 2 >= self._mesh.size else self._mesh.size)

        def part(rows):
            return self.run(function, keys[rows], images[rows], labels[rows], *arguments)

        parts = map_batches(part, np.arange(size), [self.largest])
        _, adversarial, predictions = map(np.concatenate, zip(*parts, strict=True))
        return adversarial, predictions

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The ``predict`` of `lagrangian_jax.attacks.execute`."""
        keys, labels = np.zeros((len(images), 2), np.uint32), np.zeros(len(images), np.int32)
        return self.run(_unchanged, keys, images, labels)[1]

    def spent(self) -> dict[Any, Cost]:
        """What each stage has cost per example since the last call, with the pass that reads the prediction."""
        found = {}
        for function, calls in self._spent.items():
            sizes, costs = zip(*calls, strict=True)
            forward, gradients, exact = zip(*costs, strict=True)
            found[function] = Cost(_mean(forward, sizes), _mean(gradients, sizes), all(exact))
        self._spent.clear()
        return found

    def forget(self) -> None:
        """Drops a finished attack's programs and its largest batch; keeps the program that predicts."""
        self.largest = None
        self._compiled = {key: program for key, program in self._compiled.items() if key[0] is _unchanged}

    def rounded(self, size: int) -> int:
        """The smallest batch that holds ``size`` examples and splits evenly over the devices."""
        return -(-size // self._mesh.size) * self._mesh.size

    def _program(self, function, keys, images, labels, arguments):
        identity = function, _signature(arguments), images.shape
        if identity not in self._compiled:
            start = time.perf_counter()
            meter = Meter(functools.partial(self._stage, function))
            whole, split = P(), P(AXIS)
            in_specs = (whole, split, split, split, *[whole] * len(arguments))

            def on_each_device(*arguments):
                outputs, trips = meter(*arguments)
                return outputs, trips[None]

            program = jax.jit(
                per_device(on_each_device, self._mesh, in_specs, split),
                in_shardings=tuple(NamedSharding(self._mesh, spec) for spec in in_specs),
            )
            lowered = program.lower(self._variables, keys, images, labels, *arguments)
            self._compiled[identity] = lowered.compile(), meter
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[identity]

    def _stage(self, function, variables, keys, images, labels, *arguments):
        logits_fn = float32_logits(functools.partial(self._logits_fn, *variables))
        adversarial = function(threefry(keys), with_finite_gradients(logits_fn), images, labels, *arguments)
        return adversarial, predictions(logits_fn(adversarial))

    def _cost(self, meter: Meter, trips: np.ndarray, images: np.ndarray) -> Cost:
        devices = self._mesh.size  # the meter saw one device's share of the batch
        logits, pixels = len(images) // devices * self._classes, images.size // devices
        return meter.cost(np.mean(trips, axis=0), logits, pixels)


def _unchanged(keys: Array, logits_fn: Callable[[Array], Array], images: Array, labels: Array) -> Array:
    return images


def _signature(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(arguments)
    kinds = (type(leaf) if isinstance(leaf, (bool, int, float)) else np.ndarray for leaf in leaves)
    types = (str(jnp.result_type(leaf)) for leaf in leaves)
    return structure, tuple(zip(kinds, map(np.shape, leaves), types, strict=True))


def _mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.average(known, weights=weights)) if len(known) == len(values) else None
