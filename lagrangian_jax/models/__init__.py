"""Networks: `flax.linen` modules from images to logits."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from lagrangian_jax.models.alexnet import IMAGENET_MEAN, IMAGENET_STD, AlexNet
from lagrangian_jax.models.preact_resnet import PreActResNet
from lagrangian_jax.models.resnet import Bottleneck, ResNet
from lagrangian_jax.models.segmentation import SegmentationNetwork
from lagrangian_jax.models.wide_resnet import WideResNet
from lagrangian_jax.names import unknown

# (mean, std) per channel, under the names that `create` takes.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def _option_a(blocks: int) -> Callable[..., nn.Module]:
    return functools.partial(ResNet, stages=(blocks,) * 3, width=16, shortcut="pad")


def _wide(depth: int, widen_factor: int) -> Callable[..., nn.Module]:
    return functools.partial(WideResNet, depth=depth, widen_factor=widen_factor)


def _deepmind(network: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    mean, std = NORMALISATIONS["cifar10"]
    return functools.partial(network, layout="deepmind", activation="swish", mean=mean, std=std)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": functools.partial(ResNet, stages=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, stages=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck),
    "resnet8": _option_a(1),
    "resnet20": _option_a(3),
    "resnet32": _option_a(5),
    "resnet44": _option_a(7),
    "resnet56": _option_a(9),
    "preact_resnet18": functools.partial(PreActResNet, stages=(2, 2, 2, 2)),
    "wide_resnet28_10": _wide(28, 10),
    "wide_resnet34_10": _wide(34, 10),
    "wide_resnet34_20": _wide(34, 20),
    "wide_resnet70_16": _wide(70, 16),
    "dm_preact_resnet18": _deepmind(functools.partial(PreActResNet, stages=(2, 2, 2, 2))),
    "dm_wide_resnet28_10": _deepmind(_wide(28, 10)),
    "dm_wide_resnet34_10": _deepmind(_wide(34, 10)),
    "dm_wide_resnet34_20": _deepmind(_wide(34, 20)),
    "dm_wide_resnet70_16": _deepmind(_wide(70, 16)),
    "alexnet_cifar": AlexNet,
    "alexnet": functools.partial(AlexNet, stem="imagenet", num_classes=1000),
    "segmentation": SegmentationNetwork,
}
# Attributes that a network's name fixes, or that Flax sets.
_FIXED = ("stages", "block", "shortcut", "layout", "parent", "name")

__all__ = ["MODELS", "NORMALISATIONS", "create", "names", "parameters"]


def names() -> tuple[str, ...]:
    """The names that `create` takes."""
    return tuple(sorted(MODELS))


def parameters(name: str) -> dict[str, Any]:
    """What `create` takes for a network, with the defaults.

    Raises:
      ValueError: unknown name; the message lists the valid ones.

    >>> parameters("wide_resnet28_10")["widen_factor"]
    10
    """
    if name not in MODELS:
        raise unknown("network", name, names())
    signature = inspect.signature(MODELS[name]).parameters
    return {p: signature[p].default for p in signature if p not in _FIXED} | {"normalisation": None}


def create(name: str, **given: Any) -> nn.Module:
    """A network by name; ``network.apply(variables, images, train=False)`` gives logits.

    ==========================================  ========================================================================
    resnet18, resnet34, resnet50                3x3 stem, as in most adversarial-training code; with ``stem="imagenet"``
                                                torchvision's
    resnet8, 20, 32, 44, 56                     three stages from width 16, shortcuts of option A
    preact_resnet18                             RobustBench's `PreActResNet`; its variants are attributes
    wide_resnet28_10, 34_10, 34_20, 70_16       TRADES' and RobustBench's `WideResNet`
    dm_preact_resnet18, dm_wide_resnet28_10...  DeepMind's, RobustBench's `DMPreActResNet` and `DMWideResNet`: swish,
                                                normalised as CIFAR-10
    alexnet, alexnet_cifar                      torchvision's, and perceptual-advex's for CIFAR
    segmentation                                Lehman's, which learns the foreground of CIFAR's images from labels
    ==========================================  ========================================================================

    Args:
      name: one of `names()`.
      **given: attributes of the network, see `parameters`: ``num_classes``, ``width``, ``stem``, ``mean``, ``std``,
        ``dtype``, ... Instead of ``mean`` and ``std``, ``normalisation`` takes a name of `NORMALISATIONS`: "cifar10",
        "cifar100", "imagenet" or "half" (which maps [0, 1] to [-1, 1]). It sits inside the network, so that images and
        perturbations stay in [0, 1].

    Raises:
      ValueError: unknown name or parameter (the message lists the valid ones), a size below 1, or both
        ``normalisation`` and ``mean`` or ``std``.

    >>> import lagrangian_jax as lj
    >>> lj.models.create("resnet18", num_classes=10, width=16).width
    16
    >>> lj.models.create("resnet32", normalisation="imagenet").mean
    (0.485, 0.456, 0.406)
    """
    valid = parameters(name)
    for parameter in given:
        if parameter not in valid:
            raise unknown(f"parameter of network {name!r}:", parameter, valid)
    for size in ("num_classes", "width", "widen_factor"):
        if given.get(size, 1) < 1:
            raise ValueError(f"network {name!r}: {size}: expected 1 or more; got {given[size]!r}")
    normalisation = given.pop("normalisation", None)
    if normalisation is not None:
        if normalisation not in NORMALISATIONS:
            raise unknown("normalisation", normalisation, NORMALISATIONS)
        if given.get("mean") is not None or given.get("std") is not None:
            raise ValueError(f"network {name!r}: give normalisation={normalisation!r} or mean and std, not both")
        given["mean"], given["std"] = NORMALISATIONS[normalisation]
    return MODELS[name](**given)
