"""Which network a set of named tensors belongs to."""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from lagrangian_jax import models
from lagrangian_jax.interop.torch import torch_name, torch_shape

Leaf = tuple[str, ...]
Shape = tuple[int, ...]

# Not weights: batch counts, a normalisation, and layers that TRADES' WideResNet creates and never runs.
MEAN, STD = re.compile(r"(^|\.)(new_)?(mean|mu)$"), re.compile(r"(^|\.)(new_)?(std|sigma)$")
UNUSED = re.compile(rf"(^|\.)(num_batches_tracked$|sub_block1\.)|{MEAN.pattern}|{STD.pattern}")

# The registered networks, and variants of them whose tensors differ.
_CANDIDATES: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {}) for name in models.names()),
    *((name, {"stem": "imagenet"}) for name in ("resnet18", "resnet34", "resnet50")),
    ("preact_resnet18", {"final_norm": True}),
)
# Tensors that tell a size: the head the number of classes, the stem the width, the first block the widening factor.
_HEADS = ("fc.weight", "linear.weight", "logits.weight", "classifier.6.weight", "classify.2.weight")
_STEMS = ("conv1.weight", "conv_2d.weight", "features.0.weight")
_FIRST_BLOCKS = ("block1.layer.0.conv1.weight", "layer.0.block.0.conv_0.weight")


def leaves(network: nn.Module, image_shape: tuple[int, int, int] | None = None) -> dict[str, tuple[Leaf, Shape]]:
    """Maps PyTorch's name of each weight and statistic to its path in the variables and its shape in PyTorch.

    >>> leaves(models.create("resnet18"))["linear.weight"]
    (('params', 'linear', 'kernel'), (10, 512))
    """
    images = jnp.zeros((1, *(image_shape or default_image_shape(network))))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images))
    flat = flax.traverse_util.flatten_dict(variables)
    return {torch_name(leaf): (leaf, torch_shape(value.shape)) for leaf, value in flat.items()}


def classes(shapes: Mapping[str, Shape]) -> int | None:
    """The number of classes, from the last layer of tensors without a prefix; None if that layer has another name.

    >>> classes({"conv1.weight": (64, 3, 3, 3), "linear.weight": (7, 512)})
    7
    """
    return next((shapes[name][0] for name in _HEADS if name in shapes), None)


def last_layer(names: Iterable[str]) -> bool:
    """Whether PyTorch's names are all those of a network's last layer.

    >>> last_layer(["fc.weight", "fc.bias"]), last_layer(["conv1.weight", "fc.weight"])
    (True, False)
    """
    layers = {name.rpartition(".")[0] for name in names}
    return len(layers) == 1 and f"{layers.pop()}.weight" in _HEADS


def default_image_shape(network: nn.Module) -> tuple[int, int, int]:
    """(H, W, C) of the images that a network was made for."""
    size = 224 if getattr(network, "stem", None) == "imagenet" else 32
    return size, size, 3


def common_prefix(names: Iterable[str], expected: Iterable[str]) -> str:
    """The prefix, such as "module.", with which most of the expected names occur in ``names``; the shortest, if tied.

    >>> common_prefix(["0.mean", "1.conv1.weight", "1.fc.bias"], ["conv1.weight", "fc.bias"])
    '1.'
    """
    known, counts = set(expected), Counter[str]()
    for name in names:
        ends = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:end] for end in ends if name[end:] in known)
    return min(counts, key=lambda prefix: (-counts[prefix], len(prefix)), default="")


def suggestion(shapes: Mapping[str, Shape], network: nn.Module) -> str:
    """The registered network that the tensors fit best, as a sentence; "" if none fits better than ``network``.

    Args:
      shapes: the tensors' shapes, by PyTorch's names.
      network: the network that was tried.
    """
    best = max(_fits(shapes, network), key=lambda fit: (fit.overlap, -len(fit.parameters)))
    if best.overlap <= _overlap(shapes, _shapes(network)):
        return ""
    given = "".join(f", {key}={value!r}" for key, value in best.parameters.items())
    fields = {"name": best.name} | {key: value for key, value in best.parameters.items() if key != "num_classes"}
    options = " ".join(f"--config.network.{key}={value}" for key, value in fields.items())
    how = "it" if best.overlap == 1 else "best, though not fully,"
    return f' What fits {how} is lagrangian_jax.models.create("{best.name}"{given}), {options}.'


class _Fit(NamedTuple):
    name: str
    parameters: dict[str, Any]
    overlap: float  # of its tensors and the given ones, by name and shape


def _fits(shapes: Mapping[str, Shape], tried: nn.Module) -> Iterator[_Fit]:
    """The candidates that share the most names with the tensors, in the sizes that these tell."""
    shared = [_overlap(dict.fromkeys(shapes), dict.fromkeys(_names(index))) for index in range(len(_CANDIDATES))]
    for index, (name, variant) in enumerate(_CANDIDATES):
        if shared[index] == max(shared):
            parameters = variant | _sizes(shapes, index, getattr(tried, "num_classes", None))
            yield _Fit(name, parameters, _overlap(shapes, _shapes(models.create(name, **parameters))))


def _shapes(network: nn.Module) -> dict[str, Shape]:
    return {name: shape for name, (_, shape) in leaves(network).items()}


@functools.cache
def _names(index: int) -> frozenset[str]:
    name, variant = _CANDIDATES[index]
    return frozenset(leaves(models.create(name, **variant)))


def _overlap(given: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Of the weights in either mapping, the share that have the same name and value in both."""
    prefix = common_prefix(given, expected)
    weights = {name.removeprefix(prefix): value for name, value in given.items() if not UNUSED.search(name)}
    equal = sum(name in weights and weights[name] == value for name, value in expected.items())
    return equal / len(weights.keys() | expected.keys())


def _sizes(shapes: Mapping[str, Shape], index: int, tried: int | None) -> dict[str, int]:
    """Sizes that the tensors tell, if not the candidate's defaults; the classes always if another number was tried."""
    prefix = common_prefix(shapes, _names(index))

    def channels(names: Iterable[str]) -> int | None:
        return next((shapes[prefix + n][0] for n in names if prefix + n in shapes), None)

    factor = (channels(_FIRST_BLOCKS) or 0) // 16
    told = {"num_classes": channels(_HEADS), "width": channels(_STEMS), "widen_factor": factor}
    defaults = models.parameters(_CANDIDATES[index][0])
    usual = defaults | ({"num_classes": None} if told["num_classes"] != tried else {})
    return {key: size for key, size in told.items() if size and key in defaults and size != usual[key]}
