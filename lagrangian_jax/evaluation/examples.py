"""The examples of an evaluation, checked before anything is compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lagrangian_jax.attacks.inputs import check_inputs, to_float32
from lagrangian_jax.evaluation import files


class Examples:
    """Images (uint8 ones are converted only when used), labels, and their indices in the data set.

    Attributes:
      count: N.
      images: (N, H, W, C), float32 in [0, 1] or uint8.
      labels: (N,) int32.
      index: (N,) int64.
      classes: how many the network has, K.
      logits: the network's, of the first n images, (n, K).

    Raises:
      ValueError: an invalid argument; says which, what was given and what is valid.
    """

    def __init__(self, logits_fn: Callable[[Array], Array], images: Any, labels: Any, index: Any = None) -> None:
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim != 4:
            raise ValueError(f"images: expected shape (N, H, W, C), got {images.shape}")
        count = len(images)
        if count == 0 or images.size == 0:
            raise ValueError(f"images: expected at least one image, got shape {images.shape}")
        if images.dtype not in (np.float32, np.uint8):
            raise ValueError(f"images: expected float32 in [0, 1] or uint8, got {images.dtype}; {to_float32(images)}")
        if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):  # also false for NaN
            raise ValueError(f"images: expected values in [0, 1], got {images.min()} to {images.max()}")
        index = np.arange(count) if index is None else np.asarray(index)
        for name, values in (("labels", labels), ("index", index)):
            if values.shape != (count,):
                raise ValueError(f"{name}: expected shape ({count},), one per image; got {values.shape}")
            if not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"{name}: expected integers, got {values.dtype}")
        if index.min() < 0 or index.max() >= 2**32 or len(np.unique(index)) != count:
            raise ValueError("index: expected distinct values from 0 to 2**32 - 1")
        self.count, self.images = count, images
        self.labels, self.index = labels.astype(np.int32), index.astype(np.int64)
        few = self.floats(slice(0, 4))
        self.logits = np.asarray(check_inputs(logits_fn, few, np.zeros(len(few), np.int32))[2], np.float32)
        self.classes = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)).shape[1]
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(f"labels: expected values in [0, {self.classes}), got {labels.min()} to {labels.max()}")

    def digest(self) -> str:
        """A hash of the images, labels and indices."""
        return files.digest(self.images, self.labels, self.index)

    def floats(self, rows: Any) -> np.ndarray:
        """Some images as float32 in [0, 1]."""
        chosen = self.images[rows]
        return chosen.astype(np.float32) / np.float32(255) if chosen.dtype == np.uint8 else chosen
