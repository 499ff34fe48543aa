"""Distances between images: they bound the perceptual attacks and measure how alike two images look.

A distance maps two batches of images (B, H, W, C), float32 in [0, 1], to one value per example, (B,). It is pure and
works inside `jax.jit` and `jax.grad`. All but `ssim` are l2 distances between features and have ``distance.features``.

>>> import jax.numpy as jnp, lagrangian_jax as lj
>>> distance = lj.distances.create("l2")
>>> distance.features(jnp.zeros((2, 4, 4, 3))).shape
(2, 48)
"""

import inspect
from collections.abc import Callable
from typing import Any

from lagrangian_jax.distances.lpips import (
    FeatureDistance,
    l2,
    lpips_alexnet,
    lpips_alexnet_cifar,
    normalise_features,
    self_lpips,
)
from lagrangian_jax.distances.ssim import SSIMDistance, ssim
from lagrangian_jax.names import unknown

DISTANCES: dict[str, Callable[..., Any]] = {
    "l2": l2,
    "lpips_alexnet_cifar": lpips_alexnet_cifar,
    "lpips_alexnet": lpips_alexnet,
    "self_lpips": self_lpips,
    "ssim": ssim,
}

__all__ = ["DISTANCES", "FeatureDistance", "SSIMDistance", "create", "names", "normalise_features"]


def names() -> tuple[str, ...]:
    """The names that `create` takes."""
    return tuple(sorted(DISTANCES))


def create(name: str, **parameters: Any) -> Any:
    """A distance by name.

    Args:
      name: one of `names()`.
      **parameters: ``weights``, a file, for ``lpips_alexnet_cifar`` (by default the package's own) and for
        ``lpips_alexnet``; ``features_fn`` for ``self_lpips``.

    Returns:
      a callable ``distance(images_a, images_b) -> (B,)``; all but ``ssim`` also have ``features(images) -> (B, F)``.

    Raises:
      ValueError: unknown name, or unknown or missing parameter; the message says what is valid.
      FileNotFoundError: no such file of weights; if none was given, the message says how to make one.

    >>> import jax.numpy as jnp, lagrangian_jax as lj
    >>> print(lj.distances.create("l2")(jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1))))
    [4. 4.]
    """
    if name not in DISTANCES:
        raise unknown("distance", name, names())
    valid = inspect.signature(DISTANCES[name]).parameters
    for parameter in parameters:
        if parameter not in valid:
            raise unknown(f"parameter of distance {name!r},", parameter, valid)
    return DISTANCES[name](**parameters)
