"""Wide residual networks (Zagoruyko and Komodakis 2016), in the two layouts that robust weights come in.

Submodules carry PyTorch's names, whose underscore before a number is doubled (`lagrangian_jax.interop`).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from lagrangian_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    activation,
    kaiming_fan_out,
    mean_over_positions,
    normalise,
    same_padding,
    torch_bias_uniform,
    torch_buffers,
    torch_uniform,
)


class Layout(NamedTuple):
    """Names of the submodules: of the network, of a group of blocks (by its number), of a block."""

    stem: str
    group: str
    first_group: int
    block: str
    final_norm: str
    head: str
    norms: tuple[str, str]
    convs: tuple[str, str]
    shortcut: str


LAYOUTS = {
    "trades": Layout(
        "conv1", "block{}", 1, "layer_{}", "bn1", "fc", ("bn1", "bn2"), ("conv1", "conv2"), "convShortcut"
    ),
    "deepmind": Layout(
        "init_conv",
        "layer_{}",
        0,
        "block_{}",
        "batchnorm",
        "logits",
        ("batchnorm__0", "batchnorm__1"),
        ("conv__0", "conv__1"),
        "shortcut",
    ),
}


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and activation; where the number of channels changes, the shortcut
    is a 1x1 convolution of the activated input.
    """

    features: int
    stride: int
    layout: str
    activation: str
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        names, act = LAYOUTS[self.layout], activation(self.activation, train)
        norm = functools.partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)

        def conv(size, stride, name):
            deepmind = self.layout == "deepmind"
            padding = same_padding(size, stride) if deepmind else size // 2
            kernel_init = torch_uniform if deepmind else kaiming_fan_out
            return Conv(self.features, size, stride, padding, kernel_init=kernel_init, dtype=self.dtype, name=name)

        y = act(norm(name=names.norms[0])(x, train))
        if x.shape[-1] != self.features:
            x = conv(1, self.stride, names.shortcut)(y)
        y = act(norm(name=names.norms[1])(y, train, of=conv(3, self.stride, names.convs[0])))
        return x + conv(3, 1, names.convs[1])(y)


class WideGroup(nn.Module):
    """Blocks at one resolution."""

    blocks: int
    stride: int
    block: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        name = LAYOUTS[self.block["layout"]].block
        for index in range(self.blocks):
            stride = self.stride if index == 0 else 1
            x = WideBlock(stride=stride, name=name.format(index), **self.block)(x, train)
        return x


class WideResNet(nn.Module):
    """A WideResNet-depth-widen_factor on CIFAR images (B, H, W, C) in [0, 1]; returns float32 logits (B, num_classes).

    Attributes:
      depth: layers, 6 n + 4 for n blocks in each of the three groups.
      widen_factor: the groups have 16, 32 and 64 times this many channels.
      num_classes: outputs.
      activation: "relu" or "swish".
      layout: names and details of TRADES' code, RobustBench's `WideResNet` ("trades"), or of DeepMind's, RobustBench's
        `DMWideResNet` ("deepmind": padding as TensorFlow's SAME, the normalisation among the weights).
      mean, std: normalisation of the input per channel, or None.
      axis_name: mesh axis of the batch, for batch statistics over all devices.
      dtype: precision of convolutions; parameters, statistics and logits are float32.
    """

    depth: int = 28
    widen_factor: int = 10
    num_classes: int = 10
    activation: str = "relu"
    layout: str = "trades"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False, features: bool = False) -> Any:
        """Logits; with ``features`` also the outputs of the three groups, for self-LPIPS."""
        blocks, remainder = divmod(self.depth - 4, 6)
        if remainder or blocks < 1:
            raise ValueError(f"depth of a WideResNet: expected 6 n + 4, such as 28, 34 or 70; got {self.depth}")
        names, deepmind = LAYOUTS[self.layout], self.layout == "deepmind"
        common = dict(layout=self.layout, activation=self.activation, axis_name=self.axis_name, dtype=self.dtype)
        kernel_init = torch_uniform if deepmind else kaiming_fan_out
        x = normalise(images, self.mean, self.std)
        x = Conv(16, 3, 1, 1, kernel_init=kernel_init, dtype=self.dtype, name=names.stem)(x)
        outputs = []
        for group in range(3):
            block = dict(features=16 * self.widen_factor * 2**group, **common)
            name = names.group.format(group + names.first_group)
            x = WideGroup(blocks, 2 if group else 1, block, name=name)(x, train)
            outputs.append(x)
        x = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=names.final_norm)(x, train)
        pooled = mean_over_positions(activation(self.activation, train)(x))
        bias_init = torch_bias_uniform(pooled.shape[-1]) if deepmind else nn.initializers.zeros
        logits = Dense(self.num_classes, bias_init=bias_init, name=names.head)(pooled)
        return (logits, outputs) if features else logits

    def torch_buffers(self) -> dict[str, np.ndarray]:
        """Buffers that PyTorch's class keeps beside its weights."""
        return torch_buffers(self.mean, self.std) if self.layout == "deepmind" else {}
