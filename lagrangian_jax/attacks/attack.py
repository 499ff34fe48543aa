"""What an attack is: `Attack`, which `create` returns, and how it is run over many examples on the host.

An attack is a pure function ``attack(keys, logits_fn, images, labels, **parameters) -> adversarial images``. One that
spends effort only on examples that still hold (AutoAttack, PGD0, restarts) is a sequence of such functions, its stages:
a stage sees the examples that every stage before it left correctly classified. `Attack` runs both kinds. Under
`jax.jit` the survivors are a mask; outside of it they are gathered into batches of fixed sizes, so that fooled examples
cost nothing.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, expand, predictions
from lagrangian_jax.attacks.inputs import LogitsFn, check_inputs, check_types, float32_logits, with_finite_gradients


class Stage(NamedTuple):
    """A step of an attack that runs on the examples which no earlier stage has fooled.

    Stages that differ only in ``arguments`` (arrays or numbers, traced) share one compiled program.
    """

    function: Callable[..., Array]  # (keys, logits_fn, images, labels, *arguments) -> adversarial images
    arguments: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)  # identity, so that `jax.jit(attack, static_argnums=1)` can hash it
class Attack:
    """A configured attack, from `lagrangian_jax.attacks.create`.

    Calling it attacks a batch: ``attack(key, logits_fn, images, labels)`` with a key (or one key per example), a
    function from images to logits (B, K), images (B, H, W, C) float32 in [0, 1] and integer labels (B,). It returns the
    adversarial images. It is pure and works inside `jax.jit`. Outside, it checks values as well, and every call
    compiles anew, because the network may have changed.

    Attributes:
      name: the registered name.
      parameters: every parameter with its value.
      stages: what runs; one stage for a plain attack.
      survivors: whether stages see only the examples that still hold (AutoAttack, PGD0, restarts); the others keep the
        image that fooled the network, or the clean one if it was misclassified from the start.
      keep_failures: with ``survivors``, return the last stage's image where every stage failed, not the clean image.
    """

    name: str
    parameters: Mapping[str, Any]
    stages: tuple[Stage, ...]
    survivors: bool = False
    keep_failures: bool = False

    def __call__(self, key: Array, logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
        logits_fn = float32_logits(logits_fn)
        # Inside a trace new arrays are tracers too; if a network's weights are traced, so are its logits for constants.
        values = (key, images, labels, *self.parameters.values(), jnp.zeros(()))
        traced = any(isinstance(value, jax.core.Tracer) for value in values)
        if not traced:
            images, labels, sample = check_inputs(logits_fn, images, labels)
            if not len(images):
                return images
            traced = isinstance(sample, jax.core.Tracer)
        if traced:
            images, labels = jnp.asarray(images), jnp.asarray(labels)
            check_types(images, labels)
            if not images.shape[0]:
                return images
            keys, network = example_keys(key, images.shape[0]), with_finite_gradients(logits_fn)
            return self._traced(keys, network, images, labels.astype(jnp.int32))

        @functools.partial(jax.jit, static_argnums=0)
        def run(function, keys, images, labels, *arguments):
            adversarial = function(keys, with_finite_gradients(logits_fn), images, labels, *arguments)
            return adversarial, predictions(logits_fn(adversarial))

        predict = jax.jit(lambda images: predictions(logits_fn(images)))
        keys = example_keys(key, images.shape[0])
        return jnp.asarray(execute(self, run, predict, keys, np.asarray(images), np.asarray(labels)).adversarial)

    def check(self, image_shape: tuple[int, ...], classes: int) -> None:
        """Raises ValueError if the attack cannot take images of this shape (H, W, C); runs and compiles nothing."""
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        label = jax.ShapeDtypeStruct((1,), jnp.int32)
        key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

        def stand_in(images):  # for the network; attacks can differentiate it
            return jnp.outer(jnp.sum(images, axis=(1, 2, 3)), jnp.arange(classes))

        for stage in {stage.function: stage for stage in self.stages}.values():
            jax.eval_shape(
                lambda key, *batch, s=stage: s.function(key, stand_in, *batch, *s.arguments), key, image, label
            )

    def _traced(self, keys: Array, logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
        if not self.survivors:
            (stage,) = self.stages
            return stage.function(keys, logits_fn, images, labels, *stage.arguments)

        def attempt(function, carry, arguments):
            adversarial, holds = carry
            candidate = function(keys, logits_fn, images, labels, *arguments)
            fooled = holds & (predictions(logits_fn(candidate)) != labels)
            take = holds if self.keep_failures else fooled
            return (jnp.where(expand(take, images), candidate, adversarial), holds & ~fooled), None

        carry = images, predictions(logits_fn(images)) == labels
        # Stages that share a function run in one loop: unrolled, PGD0's ninety would take minutes to compile.
        for function, stages in itertools.groupby(self.stages, key=lambda stage: stage.function):
            first, *others = (stage.arguments for stage in stages)
            if others:
                stacked = jax.tree.map(lambda *values: jnp.stack(values), first, *others)
                carry, _ = lax.scan(functools.partial(attempt, function), carry, stacked)
            else:
                carry, _ = attempt(function, carry, first)
        return carry[0]


class Execution(NamedTuple):
    """From `execute`: adversarial images (N, H, W, C), predictions (N,), and how many examples each stage saw."""

    adversarial: np.ndarray
    predictions: np.ndarray
    attacked: tuple[int, ...]


def execute(
    attack: Attack,
    run: Callable[..., tuple[Array, Array]],
    predict: Callable[[Any], Array],
    keys: Array,
    images: np.ndarray,
    labels: np.ndarray,
    batch_sizes: Sequence[int] | None = None,
) -> Execution:
    """Runs an attack on the host over N examples, in batches of a few fixed sizes.

    Args:
      attack: the attack.
      run: ``run(function, keys, images, labels, *arguments) -> (adversarial, predictions)``, compiled.
      predict: ``predict(images) -> predictions``, compiled.
      keys: (N,), one key per example.
      images: (N, H, W, C).
      labels: (N,).
      batch_sizes: the sizes that may be compiled, ascending; by default N, with ``attack.survivors`` also N/4 and N/16.

    Returns:
      an `Execution`.
    """
    count = len(images)
    if count == 0:
        return Execution(images.copy(), np.empty(0, np.int32), (0,) * len(attack.stages))
    parts = (16, 4, 1) if attack.survivors else (1,)
    sizes = sorted(batch_sizes or {max(1, count // part) for part in parts})
    standing = Standing.start(attack, images, labels)
    attacked = [0] * (1 + len(attack.stages))
    for stage, rows in in_batches(attack, run, predict, keys, images, labels, sizes, standing):
        attacked[stage] += rows
    return Execution(standing.adversarial, standing.predictions, tuple(attacked[1:]))


class Standing(NamedTuple):
    """How far an attack has got with each of N examples; `in_batches` changes the arrays in place.

    Attributes:
      adversarial: (N, H, W, C) images so far.
      predictions: (N,) of those images.
      passed: (N,), how many stages each example has behind it, its clean image counting as the first: 0 before that is
        looked at, the number of stages plus one when the example is done. With ``attack.survivors`` it is done as soon
        as it is misclassified; without, the count starts at 1.
    """

    adversarial: np.ndarray
    predictions: np.ndarray
    passed: np.ndarray

    @classmethod
    def start(cls, attack: Attack, images: np.ndarray, labels: np.ndarray) -> "Standing":
        return cls(images.copy(), labels.astype(np.int32), np.full(len(images), 0 if attack.survivors else 1, np.int32))


def in_batches(
    attack: Attack,
    run: Callable[..., tuple[Array, Array]],
    predict: Callable[[Any], Array],
    keys: Array,
    images: np.ndarray,
    labels: np.ndarray,
    batch_sizes: Sequence[int],
    standing: Standing,
) -> Iterator[tuple[int, int]]:
    """`execute` as a generator that may be left after any batch.

    Called again with the same ``standing.passed``, it continues there, with the same batches as without the break.

    Yields:
      after every batch, the stage (0: the clean images, with ``attack.survivors``) and how many examples it ran on.
    """
    adversarial, predictions, passed = standing
    done = len(attack.stages) + 1

    def clean(rows):
        return images[rows], predict(images[rows])

    def attempt(stage, rows):
        return run(stage.function, keys[rows], images[rows], labels[rows], *stage.arguments)

    attempts: list[Callable] = [clean, *(functools.partial(attempt, stage) for stage in attack.stages)]
    for stage, function in enumerate(attempts):
        for rows, candidate, predicted in map_batches(function, np.flatnonzero(passed == stage), batch_sizes):
            fooled = predicted != labels[rows]
            take = fooled if attack.survivors and not attack.keep_failures else np.ones_like(fooled)
            adversarial[rows[take]], predictions[rows[take]] = candidate[take], predicted[take]
            passed[rows] = np.where(fooled & attack.survivors, done, stage + 1)
            yield stage, len(rows)


def map_batches(function: Callable, rows: np.ndarray, sizes: Sequence[int]) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields row indices and the outputs of ``function`` for them, in batches of the given sizes.

    The last batch is padded with copies of its last row, whose outputs are cut off again.
    """
    start = 0
    while start < len(rows):
        left = len(rows) - start
        size = _batch_size(left, sizes)
        batch = rows[start : start + size]
        padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch))])
        yield batch, *(np.asarray(output)[: len(batch)] for output in function(padded))
        start += size


def _batch_size(left: int, sizes: Sequence[int]) -> int:
    """The smallest size that covers the rows left (else the largest); the next smaller if that halves the work."""
    index = next((i for i, size in enumerate(sizes) if size >= left), len(sizes) - 1)
    smaller = sizes[max(index - 1, 0)]
    return smaller if 2 * smaller * -(-left // smaller) <= sizes[index] else sizes[index]
