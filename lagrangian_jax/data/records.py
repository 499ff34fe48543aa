"""Reads data sets that TensorFlow Datasets prepared, without TensorFlow."""

import json
import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from lagrangian_jax.data.dataset import DataError

CHUNK = 1024  # records per read: enough for the reader's threads, few enough to hold in memory


def directory(config: Any) -> pathlib.Path:
    """Where data sets are: ``config.dir``, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    given = getattr(config, "dir", "") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(given).expanduser()


def find(name: str, config: Any) -> pathlib.Path:
    """The newest prepared version of a data set, ``<directory>/<name>/<version>``.

    Raises:
      DataError: if there is none, or only in a format without random access; the message has the command
        that prepares it.
    """
    found = readable(name, directory(config))
    if not found:
        raise DataError(
            f"{name}: not found in {directory(config) / name} "
            "(from --config.data.dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets). "
            f"Prepare it once with: {_command(name, directory(config))}"
        )
    return max(found, key=lambda path: _version(path.name))


def readable(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """The prepared versions of a data set that have random access; empty if none is prepared.

    Raises:
      DataError: if all prepared versions are in other formats. TFDS keeps to the format that it finds in a folder, so
        the message says how to prepare the data set in another one.
    """
    prepared = [path.parent for path in (folder / name).glob("*/dataset_info.json") if _version(path.parent.name)]
    found = [path for path in prepared if _format(path) == "array_record"]
    if prepared and not found:
        other = folder / "array_record"
        raise DataError(
            f"{name}: {prepared[0]} was prepared as {_format(prepared[0])}, which only TensorFlow reads. "
            f"Name another folder, with {shlex.quote(f'TFDS_DATA_DIR={other}')} or "
            f"{shlex.quote(f'--config.data.dir={other}')}, and prepare it there once with: {_command(name, other)}"
        )
    return found


def _command(name: str, folder: pathlib.Path) -> str:
    return (
        "pip install 'lagrangian_jax[prepare]' && "
        f"python -m lagrangian_jax.data.prepare {name} --dir {shlex.quote(str(folder))}"
    )


def _version(name: str) -> tuple[int, ...]:
    parts = name.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def _format(path: pathlib.Path) -> str:
    try:
        return json.loads((path / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path / 'dataset_info.json'}: cannot be read ({error})") from error


def open_split(path: pathlib.Path, split: str) -> Any:
    """Random access to a split's records: dicts, in which ``image`` is the undecoded file."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    files = builder.info.splits[split].filepaths
    for file in files:
        if not os.path.exists(file):
            raise DataError(
                f"{file}: missing, though {path / 'dataset_info.json'} lists it; prepare the data set again"
            )
    return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """The record files of all splits, sorted."""
    return sorted(path.glob("*.array_record*"))


def label_names(path: pathlib.Path) -> tuple[str, ...]:
    """The names of the classes, in the order of the labels."""
    try:
        return tuple((path / "label.labels.txt").read_text().split("\n")[:-1])
    except OSError as error:
        raise DataError(f"{path / 'label.labels.txt'}: cannot be read ({error}); prepare the data set again") from error


def read(source: Any, rows: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
    """The records in the given order (all by default), read in chunks."""
    rows = list(range(len(source)) if rows is None else rows)
    place = f"{source.dataset_info.data_dir}, {source.split}"
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        try:
            contents = source.__getitems__(chunk)
        except Exception as error:  # the reader's own errors differ by version and have no common class
            raise DataError(f"{place}: records {chunk[0]} to {chunk[-1]} cannot be read ({error})") from error
        for row, content in zip(chunk, contents, strict=True):
            if any(value is None for value in content.values()):  # what the reader makes of a truncated file
                raise DataError(f"{place}: record {row} is empty; a file is damaged, prepare the data set again")
            yield content
