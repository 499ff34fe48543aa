"""ImageNet-100: every tenth class of ImageNet by WordNet id, from a TFDS directory."""

import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from lagrangian_jax.data import cache, records
from lagrangian_jax.data.dataset import DataError, Dataset, divide
from lagrangian_jax.data.images import read_image
from lagrangian_jax.progress import progress_bar

EVERY = 10
SPLITS = ("train", "validation")


class RecordSource:
    """Records of a TFDS split; a `Source`. Each process that receives one opens the files itself."""

    def __init__(self, path: pathlib.Path, split: str, labels: np.ndarray, indices: np.ndarray):
        self.path, self.split, self.labels, self.indices = path, split, labels, indices
        self._opened: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        if self._opened is None:
            self._opened = records.open_split(self.path, self.split)
        record = int(self.indices[row])
        (content,) = records.read(self._opened, [record])
        name = f"{self.path}, record {record} of {self.split} ({content['file_name'].decode()})"
        return read_image(io.BytesIO(content["image"]), name), int(self.labels[row])

    def take(self, rows: np.ndarray) -> "RecordSource":
        return RecordSource(self.path, self.split, self.labels[rows], self.indices[rows])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def load(config: Any) -> Dataset:
    """About 126,000 training images; the test set is ImageNet's validation set, 50 images per class.

    Finding their records takes one pass over all of ImageNet, some minutes; the result is kept in the cache directory.
    """
    path = records.find("imagenet2012", config)
    names = records.label_names(path)
    if list(names) != sorted(names) or len(names) % EVERY:
        raise DataError(f"{path}: expected labels sorted by WordNet id, a multiple of {EVERY} of them")
    file = cache.folder(config) / f"imagenet100-{path.name}-{cache.fingerprint(records.files(path))}.npz"
    parts = [f"{split}_{part}" for split in SPLITS for part in ("labels", "records")]
    index = cache.cached(file, parts, lambda: {**_index(path, SPLITS[0]), **_index(path, SPLITS[1])})
    train, test = (RecordSource(path, split, index[f"{split}_labels"], index[f"{split}_records"]) for split in SPLITS)
    classes = names[::EVERY]
    for split in (train, test):
        absent = set(range(len(classes))) - set(split.labels.tolist())
        if absent:
            raise DataError(f"{path}: {split.split} holds no image of {', '.join(classes[label] for label in absent)}")
    return Dataset(
        name="imagenet100",
        classes=classes,
        **divide(train, test, getattr(config, "validation", 0)),
        remark=f"Every {EVERY}th class of ImageNet by WordNet id; the test set is ImageNet's validation set.",
    )


def _index(path: pathlib.Path, split: str) -> dict[str, np.ndarray]:
    """Labels and record numbers of the selected classes, sorted by file name: the same on every machine."""
    source = records.open_split(path, split)
    found = []
    with progress_bar(len(source), "image", f"{path.name} {split} labels, once") as bar:
        for record, row in enumerate(records.read(source)):
            if row["label"] % EVERY == 0:
                found.append((row["file_name"], row["label"] // EVERY, record))
            bar.update()
    found.sort()
    return {
        f"{split}_labels": np.array([label for _, label, _ in found], np.int32),
        f"{split}_records": np.array([record for _, _, record in found], np.int32),
    }
