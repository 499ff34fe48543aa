"""What an attack is given: the network as attacks see it, and checks of images and labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

LogitsFn = Callable[[Array], Array]


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
