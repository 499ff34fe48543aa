"""AlexNet (Krizhevsky 2014, the one-column form) for ImageNet and, shrunk, for CIFAR: the network behind LPIPS.

Submodules carry PyTorch's names (``features_3`` here is ``features.3`` there), so weights map by name.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.models.layers import Conv, Dense, normalise, torch_bias_uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class AlexNet(nn.Module):
    """AlexNet on images (B, H, W, C) in [0, 1]; returns float32 logits (B, num_classes).

    In training the classifier drops half of its inputs if a random key named ``dropout`` is given,
    ``network.apply(variables, images, train=True, rngs={"dropout": key})``; without one nothing is dropped, so that a
    training step without dropout runs it like any other network.

    Attributes:
      num_classes: outputs.
      width: channels of the first convolution; the others have 3, 6, 4 and 4 times as many, and the two hidden layers
        64 times as many. 64 in the publications.
      stem: "cifar" (3x3 stride 2, 2x2 pooling; perceptual-advex's) or "imagenet" (11x11 stride 4, 3x3 pooling;
        torchvision's).
      mean, std: normalisation of the input per channel, or None; ImageNet's, also for CIFAR, as in perceptual-advex.
      dtype: precision of convolutions and matrix products; parameters and logits are float32. Products of float32 have
        full precision on any device, unlike in other networks, because LPIPS compares images that hardly differ.
    """

    num_classes: int = 10
    width: int = 64
    stem: str = "cifar"
    mean: Sequence[float] | None = IMAGENET_MEAN
    std: Sequence[float] | None = IMAGENET_STD
    dtype: Any = jnp.float32

    def setup(self):
        if self.stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet'; got {self.stem!r}")
        width = self.width
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype, precision=lax.Precision.HIGHEST)
        if self.stem == "imagenet":
            self.features_0 = conv(width, 11, stride=4, padding=2)
            self.features_3 = conv(3 * width, 5, padding=2)
        else:
            self.features_0 = conv(width, 3, stride=2, padding=1)
            self.features_3 = conv(3 * width, 3, padding=1)
        self.features_6 = conv(6 * width, 3, padding=1)
        self.features_8 = conv(4 * width, 3, padding=1)
        self.features_10 = conv(4 * width, 3, padding=1)

    def _check(self, images: Array, smallest: int) -> None:
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"images: AlexNet ({self.stem} stem) needs {smallest} pixels a side or more; got shape {images.shape}"
            )

    def _pool(self, x: Array) -> Array:
        size = 3 if self.stem == "imagenet" else 2
        return nn.max_pool(x, (size, size), (2, 2))

    def feature_maps(self, images: Array) -> list[Array]:
        """The outputs of the five convolutions, after their ReLU: what LPIPS compares. Needs no classifier weights.

        ``network.apply(variables, images, method="feature_maps")``; at 32x32 pixels (CIFAR) maps of 16, 8, 4, 4 and 4
        pixels a side, at 224x224 (ImageNet) of 55, 27, 13, 13 and 13.
        """
        self._check(images, 31 if self.stem == "imagenet" else 7)
        first = nn.relu(self.features_0(normalise(images, self.mean, self.std)))
        second = nn.relu(self.features_3(self._pool(first)))
        third = nn.relu(self.features_6(self._pool(second)))
        fourth = nn.relu(self.features_8(third))
        return [first, second, third, fourth, nn.relu(self.features_10(fourth))]

    @nn.compact
    def __call__(self, images: Array, train: bool = False, features: bool = False) -> Any:
        """Logits; with ``features`` also the five feature maps, for self-LPIPS."""
        self._check(images, 63 if self.stem == "imagenet" else 15)
        maps = self.feature_maps(images)
        x = self._pool(maps[-1])
        if self.stem == "imagenet":
            x = adaptive_average_pool(x, 6)
        # PyTorch flattens channels first, so its weights fit as they are.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        hidden = 64 * self.width
        keep = not (train and self.has_rng("dropout"))
        x = nn.Dropout(0.5, deterministic=keep)(x)
        x = nn.relu(self._dense(hidden, x, "classifier_1"))
        x = nn.Dropout(0.5, deterministic=keep)(x)
        x = nn.relu(self._dense(hidden, x, "classifier_4"))
        logits = self._dense(self.num_classes, x, "classifier_6").astype(jnp.float32)
        return (logits, maps) if features else logits

    def _dense(self, features: int, x: Array, name: str) -> Array:
        bias_init = torch_bias_uniform(x.shape[-1])
        return Dense(features, bias_init=bias_init, dtype=self.dtype, name=name)(x)


def adaptive_average_pool(x: Array, size: int) -> Array:
    """Averages (B, H, W, C) over ``size`` x ``size`` nearly equal windows, like PyTorch's `AdaptiveAvgPool2d`."""
    if x.shape[1:3] == (size, size):
        return x

    def windows(length):
        start = np.arange(size) * length // size
        stop = -(-np.arange(1, size + 1) * length // size)
        inside = (np.arange(length) >= start[:, None]) & (np.arange(length) < stop[:, None])
        return jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)

    down, across = windows(x.shape[1]), windows(x.shape[2])
    return jnp.einsum("ph,bhwc,qw->bpqc", down, x, across, precision=lax.Precision.HIGHEST)
