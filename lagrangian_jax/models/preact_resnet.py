"""Residual networks with pre-activation (He et al. 2016b), in the layouts that robust weights come in.

Submodules carry PyTorch's names, whose underscore before a number is doubled (`lagrangian_jax.interop`).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from lagrangian_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    activation,
    mean_over_positions,
    normalise,
    same_padding,
    torch_bias_uniform,
    torch_buffers,
)


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and activation, and a shortcut, a convolution if shapes differ."""

    features: int
    stride: int
    layout: str
    preactivated_shortcut: bool
    activation: str
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        deepmind = self.layout == "deepmind"
        act = activation(self.activation, train)
        norm = functools.partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)

        def conv(size, stride, name):
            padding = same_padding(size, stride) if deepmind else size // 2
            return Conv(self.features, size, stride, padding, dtype=self.dtype, name=name)

        y = act(norm(name="batchnorm__0" if deepmind else "bn1")(x, train))
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = conv(3, self.stride, "shortcut") if deepmind else conv(1, self.stride, "shortcut_0")
            x = shortcut(y if self.preactivated_shortcut else x)
        first = conv(3, self.stride, "conv_2d__1" if deepmind else "conv1")
        y = act(norm(name="batchnorm__1" if deepmind else "bn2")(y, train, of=first))
        return x + conv(3, 1, "conv_2d__2" if deepmind else "conv2")(y)


class PreActResNet(nn.Module):
    """A pre-activation ResNet on CIFAR images (B, H, W, C) in [0, 1]; returns float32 logits (B, num_classes).

    Code for adversarial training has variants of it whose weights have the same names; only these attributes tell them
    apart:

    - RobustBench's `PreActBlock` (Wong2020Fast, Andriushchenko2020Understanding): the defaults;
    - Liu's pytorch-cifar: ``preactivated_shortcut=True``;
    - RobustBench's `PreActBlockV2` (Rice2020Overfitting, Kireev2021Effectiveness): ``preactivated_shortcut=True,
      final_norm=True``.

    Attributes:
      stages: blocks in each of the four stages.
      num_classes: outputs.
      width: channels of the first stage; 64 in the publications.
      preactivated_shortcut: a shortcut with a convolution takes the block's input after normalisation and activation.
      final_norm: normalisation and activation before the pooling; always in DeepMind's.
      activation: "relu" or "swish".
      layout: names and details of RobustBench's `PreActResNet` ("liu") or `DMPreActResNet` ("deepmind": 3x3 shortcuts,
        padding as TensorFlow's SAME, the normalisation among the weights).
      mean, std: normalisation of the input per channel, or None.
      axis_name: mesh axis of the batch, for batch statistics over all devices.
      dtype: precision of convolutions; parameters, statistics and logits are float32.
    """

    stages: Sequence[int]
    num_classes: int = 10
    width: int = 64
    preactivated_shortcut: bool = False
    final_norm: bool = False
    activation: str = "relu"
    layout: str = "liu"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False, features: bool = False) -> Any:
        """Logits; with ``features`` also the outputs of the four stages, for self-LPIPS."""
        deepmind = self.layout == "deepmind"
        x = normalise(images, self.mean, self.std)
        x = Conv(self.width, 3, 1, 1, dtype=self.dtype, name="conv_2d" if deepmind else "conv1")(x)
        outputs = []
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                x = PreActBlock(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    layout=self.layout,
                    preactivated_shortcut=self.preactivated_shortcut,
                    activation=self.activation,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"layer__{stage}_{index}" if deepmind else f"layer{stage + 1}_{index}",
                )(x, train)
            outputs.append(x)
        if self.final_norm or deepmind:
            norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="batchnorm" if deepmind else "bn")
            x = activation(self.activation, train)(norm(x, train))
        pooled = mean_over_positions(x)
        bias_init = torch_bias_uniform(pooled.shape[-1])
        name = "logits" if deepmind else "linear"
        logits = Dense(self.num_classes, bias_init=bias_init, name=name)(pooled)
        return (logits, outputs) if features else logits

    def torch_buffers(self) -> dict[str, np.ndarray]:
        """Buffers that PyTorch's class keeps beside its weights."""
        return torch_buffers(self.mean, self.std) if self.layout == "deepmind" else {}
