"""What all attacks share: one key per example, safe norms, input checks, and `Attack`, which `create` returns.

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

LogitsFn = Callable[[Array], Array]


def example_keys(key: Array, batch: int) -> Array:
    """One key per example: ``key`` folded with the position in the batch, unless it already has one key per example.

    The harness passes keys folded with the example's index in the data set, so that the same example gets the same
    perturbation in any batch and on any device. Keys of every kind are accepted, old-style ones
    (`jax.random.PRNGKey`) too; see `threefry`.
    """
    if not hasattr(key, "dtype"):
        raise ValueError(f"key: expected a key of jax.random, such as jax.random.key(0); got {key!r}")
    key = threefry(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key: expected one key, or {batch} keys for {batch} images; got keys of shape {key.shape}")
    return key


def threefry(key: Array) -> Array:
    """The same key, or keys, of JAX's default kind.

    Under `jax.vmap` other kinds (``rbg``, which a TPU draws from faster) give an example numbers that depend on its
    place in the batch. The first two words of such a key are those of the default kind from the same seed.

    >>> import jax
    >>> threefry(jax.random.key(3, impl="rbg")) == jax.random.key(3, impl="threefry2x32")
    Array(True, dtype=bool)
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return jax.random.wrap_key_data(data[..., :2], impl="threefry2x32")


def fold_in(keys: Array, value: int | Array) -> Array:
    """`jax.random.fold_in` for one key per example."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, value)


def normal(keys: Array, shape: Sequence[int]) -> Array:
    """Standard normal noise, (B, *shape), each row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), jnp.float32))(keys)


def uniform(keys: Array, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Array:
    """Uniform noise in [low, high), (B, *shape), each row from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, tuple(shape), jnp.float32, low, high))(keys)


def example_axes(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def expand(values: Array, like: Array) -> Array:
    """(B,) -> (B, 1, 1, ...), to broadcast against ``like``."""
    return values.reshape(values.shape[0], *([1] * (like.ndim - 1)))


def l2_norm(x: Array) -> Array:
    """The l2 norm of each example, (B,), with gradient zero at zero (JAX's own is NaN there)."""
    square = jnp.sum(jnp.square(x), axis=example_axes(x))
    nonzero = square != 0  # true for NaN, which stays NaN
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def linf_norm(x: Array) -> Array:
    """The largest absolute value of each example, (B,)."""
    return jnp.max(jnp.abs(x), axis=example_axes(x))


def project_l2(perturbation: Array, bound: float | Array) -> Array:
    """Scales each example into the l2 ball: d * min(1, bound / ||d||); ``bound`` a number, (B,) or (B, 1, 1, 1)."""
    norm = expand(l2_norm(perturbation), perturbation)
    bound = expand(jnp.asarray(bound), perturbation) if jnp.ndim(bound) == 1 else bound
    return perturbation * jnp.where(norm > bound, bound / jnp.where(norm > 0, norm, 1.0), 1.0)


def clamp(x: Array, low: float, high: float) -> Array:
    """`jnp.clip` with gradient 1 at the limits too, as in `torch.clamp`; JAX's gradient is a half there.

    Attacks start at images with many black or white pixels, whose gradients would otherwise be halved.
    """
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def better(best: Any, candidates: Array, scores: Array) -> tuple[Array, Array]:
    """The best of each example so far and its score, (B,), updated with the candidates that score higher."""
    kept, highest = best
    above = scores > highest
    return jnp.where(expand(above, kept), candidates, kept), jnp.where(above, scores, highest)


def predictions(logits: Array) -> Array:
    """The predicted class of each example, (B,); where a logit is NaN it is -1, which equals no label."""
    return jnp.where(jnp.any(jnp.isnan(logits), axis=-1), -1, jnp.argmax(logits, axis=-1).astype(jnp.int32))


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
        traced = any(isinstance(x, jax.core.Tracer) for x in (key, images, labels, jnp.zeros(())))
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
            return jnp.sum(images, axis=(1, 2, 3))[:, None] * jnp.arange(classes)

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


def float32_logits(logits_fn: LogitsFn) -> LogitsFn:
    """The network with logits in float32, whatever it computes in; raises ValueError unless they are (B, K), K > 1."""

    def checked(images: Array) -> Array:
        logits, rows = logits_fn(images), images.shape[0]
        if not hasattr(logits, "shape") or logits.ndim != 2 or logits.shape[0] != rows:
            got = getattr(logits, "shape", type(logits).__name__)
            raise ValueError(f"logits_fn: expected logits of shape ({rows}, classes), got {got}")
        if logits.shape[1] < 2:
            raise ValueError(f"logits_fn: expected logits of at least 2 classes, got shape {logits.shape}")
        return logits.astype(jnp.float32)

    return checked


@jax.custom_vjp
def finite_gradient(images: Array) -> Array:
    """Returns the images; in gradients through them NaN becomes 0, and infinity the largest finite number.

    Attacks and training methods differentiate networks through this function. Masked classes (logits of -inf) and the
    norm of a zero feature have such gradients. A step along one would make an image of NaN, which no network
    recognises.

    >>> import jax, jax.numpy as jnp
    >>> print(jax.grad(jnp.linalg.norm)(jnp.zeros(2)))
    [nan nan]
    >>> print(jax.grad(lambda images: jnp.linalg.norm(finite_gradient(images)))(jnp.zeros(2)))
    [0. 0.]
    """
    return images


finite_gradient.defvjp(lambda images: (images, ()), lambda _, gradient: (jnp.nan_to_num(gradient),))


def with_finite_gradients(logits_fn: LogitsFn) -> LogitsFn:
    """The network as attacks see it; see `finite_gradient`."""
    return lambda images: logits_fn(finite_gradient(images))


def check_types(images: Array | np.ndarray, labels: Array | np.ndarray) -> None:
    """Raises ValueError for shapes and types that no attack can use; these are known inside a trace as well."""
    if images.ndim != 4:
        raise ValueError(f"images: expected shape (B, H, W, C), got {images.shape}")
    if images.shape[1] in (1, 3) and images.shape[2] > 4 and images.shape[3] > 4:
        raise ValueError(
            f"images: shape {images.shape} looks like (B, C, H, W); transpose to (B, H, W, C) and let the function "
            "transpose back"
        )
    if images.dtype != np.float32:
        raise ValueError(f"images: expected float32 in [0, 1], got {images.dtype}; {to_float32(images)}")
    if labels.ndim != 1 or labels.shape[0] != images.shape[0]:
        raise ValueError(
            f"labels: expected shape ({images.shape[0]},) for images of shape {images.shape}, got {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers, got {labels.dtype}")


def to_float32(images: Array | np.ndarray) -> str:
    """The expression that turns images of another type into float32 in [0, 1]."""
    return "images.astype('float32')" + (" / 255" if jnp.issubdtype(images.dtype, jnp.integer) else "")


def check_inputs(logits_fn: LogitsFn, images: Any, labels: Any) -> tuple[Array, Array, Array | None]:
    """Raises a clear `ValueError` for inputs that no attack can use, before the attack is compiled.

    The network runs on a few of the images, to tell logits from probabilities.

    Returns:
      images, labels as int32, and the logits of the first images: a tracer if the network's weights are traced, None
      if there are no images.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_types(images, labels)
    if images.size and not (np.min(images) >= 0 and np.max(images) <= 1):  # also false for NaN
        raise ValueError(f"images: expected values in [0, 1], got {np.min(images)} to {np.max(images)}")
    rows = max(1, len(images))  # networks need not take an empty batch
    example = jax.ShapeDtypeStruct((rows, *images.shape[1:]), jnp.float32)
    classes = jax.eval_shape(float32_logits(logits_fn), example).shape[1]
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels: expected values in [0, {classes}), got {labels.min()} to {labels.max()}")
    images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    if not images.size:
        return images, labels, None
    # One small program, because a network's operations take longer to compile one by one. A new function, so that JAX
    # caches nothing of weights that may change before the next call.
    sample = jax.jit(lambda images: logits_fn(images))(images[:4])
    if not isinstance(sample, jax.core.Tracer) and _are_probabilities(np.asarray(sample)):
        raise ValueError(
            "logits_fn: its rows lie in [0, 1] and sum to one, as probabilities do; "
            "return logits, the values before the softmax"
        )
    return images, labels, sample


def _are_probabilities(rows: np.ndarray) -> bool:
    within = (rows >= -1e-3) & (rows <= 1 + 1e-3)
    return bool(within.all() and (np.abs(rows.sum(axis=-1) - 1) <= 1e-3).all())
