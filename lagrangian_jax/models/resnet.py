"""Residual networks (He et al. 2016) for CIFAR and ImageNet, in the layouts that PyTorch weights come in.

Submodules carry PyTorch's names (``layer1_0.conv1`` here is ``layer1.0.conv1`` there), so weights map by name.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from lagrangian_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    activation,
    kaiming_fan_in,
    kaiming_fan_out,
    mean_over_positions,
    normalise,
    relu,
    torch_bias_uniform,
    torch_uniform,
)


class Block(nn.Module):
    """Basic block: two 3x3 convolutions and a shortcut, a 1x1 convolution (or padding) where the shape changes."""

    features: int
    stride: int
    shortcut: str
    kernel_init: Any
    axis_name: str | None
    dtype: Any

    expansion = 1

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        act = activation("relu", train)
        y = act(self._conv(x, train, self.features, 3, self.stride, "conv1", "bn1"))
        y = self._conv(y, train, self.features, 3, 1, "conv2", "bn2")
        return relu(y + self._shortcut(x, y.shape, train))

    def _conv(self, x: Array, train: bool, features: int, size: int, stride: int, conv: str, norm: str) -> Array:
        """A convolution and its normalisation."""
        layer = Conv(features, size, stride, size // 2, kernel_init=self.kernel_init, dtype=self.dtype, name=conv)
        return BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=norm)(x, train, of=layer)

    def _shortcut(self, x: Array, shape: tuple[int, ...], train: bool) -> Array:
        if x.shape == shape:
            return x
        if self.shortcut == "pad":
            return pad_shortcut(x, self.stride, shape[-1])
        names = f"{self.shortcut}_0", f"{self.shortcut}_1"
        return self._conv(x, train, shape[-1], 1, self.stride, *names)


class Bottleneck(Block):
    """Bottleneck block: 1x1, 3x3 (with the stride, as in torchvision) and 1x1 convolutions, to 4 times the width."""

    expansion = 4

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        act = activation("relu", train)
        y = act(self._conv(x, train, self.features, 1, 1, "conv1", "bn1"))
        y = act(self._conv(y, train, self.features, 3, self.stride, "conv2", "bn2"))
        y = self._conv(y, train, self.expansion * self.features, 1, 1, "conv3", "bn3")
        return relu(y + self._shortcut(x, y.shape, train))


def pad_shortcut(x: Array, stride: int, features: int) -> Array:
    """Option A of He et al.: every ``stride``-th pixel, and zero channels on both sides up to ``features``."""
    missing = features - x.shape[-1]
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class ResNet(nn.Module):
    """A ResNet on images (B, H, W, C) in [0, 1]; returns float32 logits (B, num_classes).

    ``network.apply(variables, images, train=False)`` uses running statistics; ``train=True`` uses those of the batch
    and updates the running ones in the collection ``batch_stats``, which must be mutable.

    Attributes:
      stages: blocks in each stage; four stages, or three in the networks for CIFAR with option A.
      num_classes: outputs.
      width: channels of the first stage; 64 in the publications, 16 with option A.
      stem: "cifar" (3x3 stride 1, no pooling; names of most adversarial-training code) or "imagenet" (7x7 stride 2 and
        max-pooling; torchvision's names and initialisation).
      block: the residual block.
      shortcut: where the shape changes, "conv" (a 1x1 convolution) or "pad" (option A, which has no parameters).
      mean, std: normalisation of the input per channel, or None.
      axis_name: mesh axis of the batch, for batch statistics over all devices.
      dtype: precision of convolutions; parameters, statistics and logits are float32.
    """

    stages: Sequence[int]
    num_classes: int = 10
    width: int = 64
    stem: str = "cifar"
    block: Any = Block
    shortcut: str = "conv"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False, features: bool = False) -> Any:
        """Logits; with ``features`` also the outputs of the stages, for self-LPIPS."""
        if self.stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet'; got {self.stem!r}")
        imagenet, pad = self.stem == "imagenet", self.shortcut == "pad"
        kernel_init = kaiming_fan_out if imagenet else kaiming_fan_in if pad else torch_uniform
        size, stride, padding = (7, 2, 3) if imagenet else (3, 1, 1)
        x = normalise(images, self.mean, self.std)
        conv = Conv(self.width, size, stride, padding, kernel_init=kernel_init, dtype=self.dtype, name="conv1")
        norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="bn1")
        x = activation("relu", train)(norm(x, train, of=conv))
        if imagenet:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        outputs = []
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                x = self.block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    shortcut="pad" if pad else "downsample" if imagenet else "shortcut",
                    kernel_init=kernel_init,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{index}",
                )(x, train)
            outputs.append(x)
        pooled = mean_over_positions(x)
        logits = Dense(
            self.num_classes,
            kernel_init=kaiming_fan_in if pad else torch_uniform,
            bias_init=torch_bias_uniform(pooled.shape[-1]),
            name="fc" if imagenet else "linear",
        )(pooled)
        return (logits, outputs) if features else logits
