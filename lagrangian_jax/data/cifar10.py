"""CIFAR-10 from a TFDS directory, and its first three classes (the paper's comparison with Carlini-Wagner training)."""

import io
import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lagrangian_jax.data import cache, records
from lagrangian_jax.data.dataset import DataError, Dataset, Split, divide
from lagrangian_jax.data.images import read_image

SIZES = {"train": 50_000, "test": 10_000}


def load(config: Any) -> Dataset:
    """50,000 training and 10,000 test images of 32x32 pixels, in the order in which they were published.

    They are decoded once and kept in the cache directory (184 MB), from where later starts read them.
    """
    return _dataset(config, "cifar10", slice(None))


def load_three_classes(config: Any) -> Dataset:
    """Airplane, automobile and bird: 15,000 training and 3,000 test images."""
    return _dataset(config, "cifar10_three_classes", slice(3))


def _dataset(config: Any, name: str, classes: slice) -> Dataset:
    if getattr(config, "image_size", 0) not in (0, 32):
        raise DataError(f"image_size: CIFAR-10 is 32x32, got {config.image_size}")
    path = records.find("cifar10", config)
    labels = records.label_names(path)[classes]
    file = cache.folder(config) / f"cifar10-{path.name}-{cache.fingerprint(records.files(path))}.npz"
    parts = [f"{split}_{part}" for split in SIZES for part in ("images", "labels")]
    arrays = cache.cached(file, parts, lambda: _read(path, getattr(config, "workers", 0) or os.cpu_count() or 1))
    train, test = (_split(arrays, split, len(labels)) for split in SIZES)
    return Dataset(
        name=name,
        classes=labels,
        **divide(train, test, getattr(config, "validation", 0)),
        remark=_remark(records.directory(config).resolve().parent / "cifar10_not_exact.json", train, test),
    )


def _split(arrays: dict[str, np.ndarray], name: str, classes: int) -> Split:
    images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
    split = Split(images, labels, np.arange(len(labels), dtype=np.int32))
    return split if classes == 10 else split.take(labels < classes)


def _read(path: pathlib.Path, threads: int) -> dict[str, np.ndarray]:
    """Decodes both splits and puts them in the order of their ids, ``train_00000`` onwards."""
    arrays: dict[str, np.ndarray] = {}
    for split, count in SIZES.items():
        source = records.open_split(path, split)
        images, labels = np.empty((count, 32, 32, 3), np.uint8), np.full(count, -1, np.int32)

        def place(rows, source=source, images=images, labels=labels):
            for row in records.read(source, rows):
                name = row["id"].decode()
                position = int(name.rpartition("_")[2])
                images[position] = read_image(io.BytesIO(row["image"]), f"{path}, record {name}")
                labels[position] = row["label"]

        chunks = np.array_split(np.arange(len(source)), max(1, len(source) // records.CHUNK))
        with ThreadPoolExecutor(threads) as pool:  # Pillow decodes outside the interpreter lock
            list(pool.map(place, chunks))
        if (labels < 0).any():
            raise DataError(f"{path}: lacks {int((labels < 0).sum())} of {count} {split} images; prepare it again")
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays


def _remark(inexact: pathlib.Path, train: Split, test: Split) -> str:
    """How many images differ from the published pixels, as far as a JSON file beside the TFDS directory lists them."""
    try:
        listed = json.loads(inexact.read_text())
        counts = [int(np.isin(split.indices, listed[name]).sum()) for name, split in (("train", train), ("test", test))]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{inexact}: expected lists of image numbers under 'train' and 'test' ({error!r})") from error
    if not any(counts):
        return ""
    return (
        f"{counts[0]} of the {len(train.labels):,} training images and {counts[1]} of the {len(test.labels):,} test "
        "images were decoded from JPEG and differ slightly from the published pixels."
    )
