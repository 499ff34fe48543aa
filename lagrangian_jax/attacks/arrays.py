"""Arrays with a row for each example: keys and the noise drawn from them, norms that are safe at zero, projections."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


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
