"""Data sets: small ones resident in memory as uint8, large ones read image by image and streamed.

``load(config)`` makes a `Dataset` from the configuration's ``data`` section. Resident splits are augmented on the
device (`augmentation.augment`); `stream` makes batches of the others, and `resident` reads one of them into memory.
"""

from collections.abc import Callable
from typing import Any

from lagrangian_jax.data import cifar10, digits, flowers, imagenet100
from lagrangian_jax.data.dataset import DataError, Dataset, Source, Split, hold_out
from lagrangian_jax.data.stream import resident, stream
from lagrangian_jax.names import unknown

__all__ = ["DATASETS", "DataError", "Dataset", "Source", "Split", "hold_out", "load", "names", "resident", "stream"]

DATASETS: dict[str, Callable[[Any], Dataset]] = {
    "digits": digits.load,
    "cifar10": cifar10.load,
    "cifar10_three_classes": cifar10.load_three_classes,
    "imagenet100": imagenet100.load,
    "flowers": flowers.load,
}


def names() -> tuple[str, ...]:
    """The registered data sets."""
    return tuple(DATASETS)


def load(config: Any) -> Dataset:
    """The data set that a configuration describes.

    Args:
      config: an object with the attribute ``name`` and, where they matter, ``dir`` (where the data is; by default
        TFDS_DATA_DIR or ~/tensorflow_datasets), ``validation`` (how many training images to hold out; default 0),
        ``image_size``, ``workers`` (threads that decode; default: one per core), ``cache_dir``.

    Returns:
      a `Dataset`. Which image is in which split depends only on the data set and ``validation``, not on any seed.

    Raises:
      ValueError: for an unknown name; the nearest is suggested.
      DataError: (a ValueError) for data that is missing, damaged, or too small for ``validation``.
    """
    if config.name not in DATASETS:
        raise unknown("data set", config.name, DATASETS)
    dataset = DATASETS[config.name](config)
    if not isinstance(dataset, Dataset):
        found = type(dataset).__name__
        raise DataError(f"data set {config.name!r}: expected its function to return a data.Dataset; got a {found}")
    return dataset
