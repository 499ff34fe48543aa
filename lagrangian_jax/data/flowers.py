"""Images in class folders, ``FOLDER/<class>/*.jpg``: Kaggle's flowers-recognition, or any data set laid out like it."""

import dataclasses
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from lagrangian_jax.data import cache, records
from lagrangian_jax.data.dataset import DataError, Dataset, divide, hold_out
from lagrangian_jax.data.images import read_image

SUFFIXES = {".jpg", ".jpeg", ".png"}
TEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files; a `Source`."""

    files: tuple[pathlib.Path, ...]
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return read_image(self.files[row], str(self.files[row])), int(self.labels[row])

    def take(self, rows: np.ndarray) -> "FolderSource":
        return FolderSource(tuple(self.files[row] for row in rows), self.labels[rows], self.indices[rows])


def load(config: Any) -> Dataset:
    """Images in ``FOLDER/<class>``, or in ``FOLDER/train/<class>`` and ``FOLDER/test/<class>`` (or ``val``).

    In the first layout, a fifth of every class is the test set (the paper does not say how it split the images). It is
    the same in every run on the same files. Adding, removing or renaming a file divides the images anew, so that some
    of those trained on may end up in the test set; a run's ``data.json`` lists its images, so this is noticed.

    FOLDER is ``config.dir``, by default ``flowers`` in the directory of the TFDS data sets. All files are decoded once
    before training; the cache remembers that they can be read.
    """
    folder = (
        pathlib.Path(config.dir).expanduser() if getattr(config, "dir", "") else records.directory(config) / "flowers"
    )
    if not folder.is_dir():
        raise DataError(
            f"flowers: {folder} is not a directory; set --config.data.dir to one with a folder of images for each "
            "class, for instance the unpacked https://www.kaggle.com/datasets/alxmamaev/flowers-recognition"
        )
    test_folder = next((folder / name for name in ("test", "val") if _folders(folder / name)), None)
    if test_folder and _folders(folder / "train"):
        classes = _classes(folder / "train")
        train, test = _source(folder / "train", classes), _source(test_folder, classes)
        remark = f"{len(train):,} training and {len(test):,} test images from class folders."
    else:
        classes = _classes(folder)
        everything = _source(folder, classes)
        train, test = map(everything.take, hold_out(everything.labels, round(TEST_SHARE * len(everything))))
        remark = (
            f"{len(everything):,} images from class folders; {len(test):,} of them, fixed, are the test set. "
            "The paper's own split and its list of removed images are not published."
        )
    files = train.files + test.files
    mark = cache.folder(config) / f"folders-{cache.fingerprint(sorted(files))}.npz"
    cache.cached(mark, ["count"], lambda: _check(files))
    return Dataset(
        name="flowers",
        # A name that is not UTF-8, from a Windows archive, say, could not be written into a report. Its bytes are
        # escaped (L\xf6wenzahn), so that no two folders become one class.
        classes=tuple(os.fsencode(name).decode(errors="backslashreplace") for name in classes),
        **divide(train, test, getattr(config, "validation", 0)),
        remark=remark,
    )


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inside if path.is_dir() and not path.name.startswith(".")]


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _classes(folder: pathlib.Path) -> tuple[str, ...]:
    """The names of the class folders; raises DataError if there are fewer than two, or one is empty."""
    empty = [path for path in _folders(folder) if not _images(path)]
    classes = tuple(path.name for path in _folders(folder) if path not in empty)
    if len(classes) < 2:
        raise DataError(
            f"flowers: {folder} holds {len(classes)} folders with images ({', '.join(sorted(SUFFIXES))}); "
            "expected one for each of at least two classes"
        )
    if empty:
        raise DataError(f"flowers: {empty[0]} holds no image ({', '.join(sorted(SUFFIXES))}); add images or remove it")
    return classes


def _source(folder: pathlib.Path, classes: tuple[str, ...]) -> FolderSource:
    """The images in a folder of class folders; raises DataError if one of these is not in ``classes``."""
    other = [path for path in _folders(folder) if path.name not in classes]
    if other:
        raise DataError(f"flowers: {other[0]} is of no class that is trained on: {', '.join(classes)}")
    images = {path.name: _images(path) for path in _folders(folder)}
    files = tuple(file for name in classes for file in images.get(name, ()))
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(images.get(name, ())) for name in classes])
    return FolderSource(files, labels, np.arange(len(files), dtype=np.int32))


def _check(files: tuple[pathlib.Path, ...]) -> dict[str, np.ndarray]:
    def error(file: pathlib.Path) -> str:
        try:
            read_image(file, str(file))
        except DataError as damaged:
            return str(damaged)
        return ""

    with ThreadPoolExecutor() as pool:
        errors = [message for message in pool.map(error, files) if message]
    if errors:
        more = f"\n... and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise DataError("\n".join(errors[:5]) + more)
    return {"count": np.array(len(files))}
