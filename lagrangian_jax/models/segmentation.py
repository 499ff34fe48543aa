"""Segmentation learnt from image labels alone: the foreground is where any class is seen (Lehman 2019).

Submodules carry PyTorch's names (`lagrangian_jax.interop`).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.models.layers import BatchNorm, Conv, kaiming_fan_out, normalise
from lagrangian_jax.models.resnet import Block


class Segmentation(NamedTuple):
    """Outputs of the segmentation network, float32.

    Attributes:
      logits: logits of the images, (B, num_classes).
      foreground: probability that any class is seen at a pixel, (B, H, W) in [0, 1].
      attention: output of the head that weights the pixels in training, (B, H, W) in [0, 1].
    """

    logits: Array
    foreground: Array
    attention: Array


class SegmentationNetwork(nn.Module):
    r"""A ResNet that classifies every pixel, without a class for the background.

    A pixel with the logits :math:`u_k` belongs to the foreground with the probability

    .. math:: a = \mathrm{sigmoid}(\log \sum_k e^{u_k}) = \frac{\sum_k e^{u_k}}{1 + \sum_k e^{u_k}}

    and the logits of the image are the weighted mean of its pixels' logits, :math:`z_k = \sum u_k a / \sum a` in
    evaluation; in training the attention head gives the weights instead of a.

    ``network.apply(variables, images, train=False)`` gives logits (B, num_classes), with ``maps=True`` a
    `Segmentation`; ``train=True``, which updates the statistics in ``batch_stats``, always gives a `Segmentation`, all
    of which the method `segmentation` needs.

    The stem's 3x3 convolution is followed by four stages without ReLU at their exit. Their output, enlarged, and the
    stem's are concatenated and go through normalisation and ReLU into a 1x1 convolution, the classifier.

    Attributes:
      stages: blocks in each stage; the total stride is 8 with four.
      num_classes: classes of the labels.
      width: channels of the first stage; 64 in the original.
      mean, std: normalisation of the input per channel, or None.
      axis_name: mesh axis of the batch, for batch statistics over all devices.
      dtype: precision of convolutions; parameters, statistics and outputs are float32.

    Source: charlieLehman/yapwrap `models/implicit_attention.py`, the revision of April 2019 (772e6a6), the smallest of
    three. Its second attention head, which takes no part in the loss, is left out.
    """

    stages: Sequence[int] = (2, 2, 2, 2)
    num_classes: int = 10
    width: int = 64
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False, maps: bool = False) -> Array | Segmentation:
        options = dict(axis_name=self.axis_name, dtype=self.dtype)
        x = normalise(images, self.mean, self.std)
        x = Conv(self.width, 3, 1, 1, kernel_init=kaiming_fan_out, dtype=self.dtype, name="conv1")(x)
        stem = x = BatchNorm(**options, name="bn1")(x, train)
        attention = jax.nn.sigmoid(AttentionHead(self.width, **options, name="attn0")(stem, train).astype(jnp.float32))
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                x = EntryBlock(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    shortcut="shortcut",
                    kernel_init=kaiming_fan_out,
                    **options,
                    name=f"layer{stage + 1}_{index}",
                )(x, train)
        x = jnp.concatenate([resize_corners(x, stem.shape[1:3]), stem], axis=-1)
        x = nn.relu(BatchNorm(**options, name="classify_0")(x, train))
        classify = Conv(self.num_classes, 1, kernel_init=kaiming_fan_out, dtype=self.dtype, name="classify_2")
        pixels = classify(x).astype(jnp.float32)
        foreground = jax.nn.sigmoid(jax.nn.logsumexp(pixels, axis=-1))
        weights = (attention if train else foreground)[..., None]
        total = jnp.maximum(jnp.sum(weights, axis=(1, 2)), np.finfo(np.float32).tiny)
        logits = jnp.sum(pixels * weights, axis=(1, 2)) / total
        return Segmentation(logits, foreground, attention) if train or maps else logits


class EntryBlock(Block):
    """A basic block with a ReLU at its entry, before the convolutions only, instead of the one at its exit."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = nn.relu(self._conv(nn.relu(x), train, self.features, 3, self.stride, "conv1", "bn1"))
        y = self._conv(y, train, self.features, 3, 1, "conv2", "bn2")
        return y + self._shortcut(x, y.shape, train)


class AttentionHead(nn.Module):
    """The logit of each pixel's weight in training, (B, H, W): two 1x1 convolutions and a shortcut of one."""

    features: int
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(Conv, kernel_size=1, kernel_init=kaiming_fan_out, dtype=self.dtype)
        norm = functools.partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
        y = nn.relu(norm(name="bn1")(conv(self.features, name="conv1")(nn.relu(x)), train))
        y = norm(name="bn2")(conv(1, name="conv2")(y), train)
        return (y + norm(name="shortcut_1")(conv(1, name="shortcut_0")(x), train))[..., 0]


def resize_corners(x: Array, size: Sequence[int]) -> Array:
    """Bilinear interpolation from (B, h, w, C) to (B, H, W, C) that keeps the corner pixels where they are.

    PyTorch's `interpolate` with ``align_corners=True``; `jax.image.resize` keeps the picture's edges instead.

    >>> import jax.numpy as jnp
    >>> print(resize_corners(jnp.array([0.0, 3.0]).reshape(1, 1, 2, 1), (1, 4)).ravel())
    [0. 1. 2. 3.]
    """

    def weights(old, new):
        position = np.arange(new) * ((old - 1) / max(new - 1, 1))
        return jnp.asarray(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(old))), x.dtype)

    down, across = weights(x.shape[1], size[0]), weights(x.shape[2], size[1])
    return jnp.einsum("ph,bhwc,qw->bpqc", down, x, across, precision=lax.Precision.HIGHEST)


def foreground_probability(network: nn.Module, variables: Any, images: Array) -> Array:
    """The probability that each pixel is foreground, in evaluation mode: weights of the foreground-to-background ratio.

    Args:
      network: a `SegmentationNetwork`, from ``models.create("segmentation", ...)``.
      variables: its parameters and statistics.
      images: (B, H, W, C) float32 in [0, 1].

    Returns:
      (B, H, W) float32 in [0, 1].

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> network = lj.models.create("segmentation", width=2)
    >>> variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    >>> foreground_probability(network, variables, jnp.zeros((1, 8, 8, 3))).shape
    (1, 8, 8)
    """
    segmentation: Any = network.apply(variables, images, train=False, maps=True)
    return segmentation.foreground
