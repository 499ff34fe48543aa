"""Networks: `flax.linen` modules from images to logits."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from lagrangian_jax.models.alexnet import AlexNet
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.names import unknown

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": functools.partial(ResNet, stages=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, stages=(3, 4, 6, 3)),
    "alexnet_cifar": AlexNet,
    "alexnet": functools.partial(AlexNet, stem="imagenet", num_classes=1000),
}

__all__ = ["MODELS", "create", "names"]


def names() -> tuple[str, ...]:
    """The names that `create` takes."""
    return tuple(sorted(MODELS))


def create(name: str, **parameters: Any) -> nn.Module:
    """A network by name; ``network.apply(variables, images, train=False)`` gives logits.

    Args:
      name: one of `names()`.
      **parameters: attributes of the network's class, e.g. ``num_classes``, ``width``, ``stem``, ``mean``, ``std``,
        ``dtype``.

    Raises:
      ValueError: unknown name or parameter; lists the valid ones.

    >>> import lagrangian_jax as lj
    >>> lj.models.create("resnet18", num_classes=10, width=16).width
    16
    """
    if name not in MODELS:
        raise unknown("network", name, names())
    build = MODELS[name]
    cls = build.func if isinstance(build, functools.partial) else build
    valid = [p for p in inspect.signature(cls).parameters if p not in ("parent", "name", "stages", "block")]
    for parameter in parameters:
        if parameter not in valid:
            raise unknown(f"parameter of network {name!r}:", parameter, valid)
    return build(**parameters)
