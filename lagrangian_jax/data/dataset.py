"""What a data set is: three splits, each resident in memory or read image by image, and how a split is divided."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

SEED = 20210327  # for every fixed division of a data set; the run's own seed never moves an image between splits


class DataError(ValueError):
    """Data that is missing, damaged or not what the configuration says; the message says where and what to do."""


class Split(NamedTuple):
    """Images in memory.

    Attributes:
      images: (N, H, W, C) uint8.
      labels: (N,) int32.
      indices: (N,) int32, each image's position in the published training or test set.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def take(self, rows: np.ndarray | slice) -> "Split":
        """The given rows, in the given order."""
        return Split(self.images[rows], self.labels[rows], self.indices[rows])


class Source(Protocol):
    """Images read one at a time, in any order, from any process (its pickle is small); `stream` makes batches of it.

    Attributes:
      labels: (N,) int32.
      indices: (N,) int32, each image's position in the published training or test set.
    """

    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        """An RGB image of any size, and its label."""
        ...

    def take(self, rows: np.ndarray) -> "Source":
        """The given rows, in the given order."""
        ...


class Dataset(NamedTuple):
    """A data set, from `lagrangian_jax.data.load`.

    Attributes:
      name: the registered name.
      classes: the names of the classes, by label.
      train: the images to train on; those of ``validation`` are not among them.
      validation: held-out training images, for choosing a checkpoint; may be empty.
      test: images for measurements only.
      remark: what a reader of a result must know about the data, in a sentence or two; may be empty.
    """

    name: str
    classes: tuple[str, ...]
    train: Split | Source
    validation: Split | Source
    test: Split | Source
    remark: str


def hold_out(labels: np.ndarray, count: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Divides rows at random into kept and ``count`` held-out ones; each class keeps its share to within one image.

    Args:
      labels: (N,) integers.
      count: how many to hold out.
      seed: for the draw.

    Returns:
      (kept, held out), ascending row numbers.

    >>> kept, held = hold_out(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 2)
    >>> len(kept), len(held), sorted(int(row >= 4) for row in held)
    (6, 2, [0, 1])
    """
    if np.ndim(labels) != 1:
        raise DataError(f"labels: expected (N,), a class's number each; got {np.shape(labels)}")
    if not 0 <= count <= len(labels):
        raise DataError(f"count: expected 0 to {len(labels)} images to hold out, got {count}")
    rng = np.random.default_rng(seed)
    # Each image gets a quantile within its class, in random order. The images below a common quantile are a fair share
    # of every class; the small random term decides which classes give one more when the shares are not whole.
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        quantile[rng.permutation(rows)] = (np.arange(len(rows)) + rng.uniform()) / len(rows)
    order = np.argsort(quantile, kind="stable")
    return np.sort(order[count:]), np.sort(order[:count])


def divide(train: Any, test: Any, validation: int) -> dict[str, Any]:
    """Holds ``validation`` images out of ``train``; returns the three splits under `Dataset`'s names for them."""
    if validation and not 0 <= validation < len(train.labels):
        raise DataError(
            f"data.validation: expected 0 to {len(train.labels) - 1} of the {len(train.labels)} training images, "
            f"got {validation}; set --config.data.validation=N"
        )
    kept, held = hold_out(train.labels, validation)
    return {"train": train.take(kept), "validation": train.take(held), "test": test}
