"""Packs a training run into a few small files, and unpacks it elsewhere, where it resumes.

    python -m lagrangian_jax.pack runs/cifar10 packed/cifar10
    python -m lagrangian_jax.pack packed/cifar10 runs/cifar10 --unpack

A packed run holds the last checkpoint, what evaluating the best one needs, the configuration, the record of its images
and the metrics so far, in safetensors files of less than 16 MB each, and a ``manifest.json`` with their checksums.
Parameters, statistics, averages and the method's memory are kept to the bit; the optimizer's momentum is rounded to
bfloat16 (to 8 significant bits, an error of at most 2^-9 of each value), which halves its size. The work directory is
not changed. Rows of attacks and reports are left out, since they can be made again.
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from lagrangian_jax import config as configuration

VERSION = 1
MANIFEST = "manifest.json"
PART_BYTES = 15 * 2**20  # of tensors per file, which stays below 16 MB with its header
TEXTS = ("config.json", "data.json", "metrics.jsonl")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lagrangian_jax.pack", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path, help="a work directory; with --unpack, a folder of packed files")
    parser.add_argument("target", type=pathlib.Path, help="a folder that does not exist yet")
    parser.add_argument("--unpack", action="store_true", help="unpack source into target, a work directory")
    arguments = parser.parse_args(argv)
    return configuration.guarded(unpack if arguments.unpack else pack, arguments.source, arguments.target)


def pack(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Packs a work directory into a folder.

    Args:
      workdir: work directory of a run that has a checkpoint and is not training now.
      folder: must be empty, or not exist.

    Raises:
      ValueError: there is no run or no whole checkpoint, the work directory is in use, or the folder is not empty.
    """
    from lagrangian_jax.workdir import open_workdir

    _check_free(folder)
    if not (workdir / "config.json").is_file():
        raise ValueError(f"{workdir} is not the work directory of a run: it has no config.json")
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    with open_workdir(workdir, config):
        step, tree, position = _checkpoint(workdir / "checkpoints" / "last", None)
        states = {"last": {"step": step, "position": position, "state": _rounded(tree)}}
        if position["best"] is not None:
            at, tree, best_position = _checkpoint(workdir / "checkpoints" / "best", position["best"]["step"])
            states["best"] = {"step": at, "position": best_position, "state": _evaluated(tree)}
        texts = {name: (workdir / name).read_bytes() for name in TEXTS if (workdir / name).is_file()}
    with _whole(folder) as making:
        writer = _Writer(making)
        content: Any = {
            "version": VERSION,
            "states": {name: {**state, "state": writer.tree(name, state["state"])} for name, state in states.items()},
            "texts": {name: writer.tree(name, np.frombuffer(text, np.uint8)) for name, text in texts.items()},
        }
        content["parts"] = writer.finish()
        (making / MANIFEST).write_text(json.dumps({"sha256": _digest(content), **content}) + "\n")
    total = sum(part["bytes"] for part in content["parts"])
    print(f"step {step} in {len(content['parts']) + 1} files, {total / 1e6:.1f} MB: {folder}")


def unpack(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """Unpacks a run into a work directory, in which the command that started it resumes it.

    Args:
      folder: from `pack`.
      workdir: must be empty, or not exist.

    Raises:
      ValueError: a file is missing, cut short or changed (the message says which), or the work directory is not empty.
    """
    from lagrangian_jax.checkpoint import Checkpoints

    _check_free(workdir)
    reader = _Reader(folder)
    with _whole(workdir) as making:
        for name, state in reader.content["states"].items():
            checkpoints = Checkpoints(making / "checkpoints" / name, keep=2)
            checkpoints.write(state["step"], reader.tree(state["state"]), state["position"])
            checkpoints.close()
        for name, text in reader.content["texts"].items():
            (making / name).write_bytes(reader.tree(text).tobytes())
    print(f"step {reader.content['states']['last']['step']}: {workdir}")


def _checkpoint(folder: pathlib.Path, step: int | None) -> tuple[int, Any, dict[str, Any]]:
    from lagrangian_jax.checkpoint import Checkpoints

    found = None
    if folder.is_dir():
        checkpoints = Checkpoints(folder, keep=2)
        found = checkpoints.read(step)
        checkpoints.close()
    if found is None or step not in (None, found[0]):
        raise ValueError(f"{folder} holds no {'checkpoint' if step is None else f'whole checkpoint of step {step}'}")
    return found


def _rounded(tree: Any) -> Any:
    """The state with the momentum in bfloat16."""
    return {**tree, "opt_state": _map(_to_bfloat16, tree["opt_state"])}


def _evaluated(tree: Any) -> Any:
    """The best state, with zeros, which pack to nothing, in place of what only training needs."""
    unused = ["opt_state", "memory", *(["params", "batch_stats"] if tree["average"] else [])]
    return {**tree, **{name: _map(np.zeros_like, tree[name]) for name in unused}}


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array


def _map(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map(function, value) for value in tree)
    return tree if tree is None else function(tree)


class _Writer:
    """Fills files with tensors, split where a file is full; a tree becomes JSON that says where its tensors are."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder, self._pieces, self._size = folder, dict[str, np.ndarray](), 0
        self._parts: list[dict[str, Any]] = []

    def tree(self, name: str, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: self.tree(f"{name}.{key}", value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return {"": "list", "items": [self.tree(f"{name}.{i}", value) for i, value in enumerate(tree)]}
        return tree if tree is None else self._array(name, np.asarray(tree))

    def finish(self) -> list[dict[str, Any]]:
        if self._pieces:
            self._close()
        return self._parts

    def _array(self, name: str, array: np.ndarray) -> dict[str, Any]:
        flat, places, start = array.reshape(-1), list[int](), 0
        restored = "float32" if array.dtype == ml_dtypes.bfloat16 else str(array.dtype)
        if np.any(flat):
            while start < len(flat):
                room = (PART_BYTES - self._size) // array.itemsize
                if not room:
                    self._close()
                    continue
                piece = flat[start : start + room]
                self._pieces[name] = piece
                places.append(len(self._parts))
                self._size += piece.nbytes
                start += len(piece)
        return {"": "array", "name": name, "dtype": restored, "shape": list(array.shape), "parts": places}

    def _close(self) -> None:
        from safetensors.numpy import save

        name = f"part-{len(self._parts):03d}.safetensors"
        content = save(self._pieces)
        (self._folder / name).write_bytes(content)
        self._parts.append({"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        self._pieces, self._size = {}, 0


class _Reader:
    """Reads the tensors of packed files, once all files are checked."""

    def __init__(self, folder: pathlib.Path) -> None:
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"{folder} holds no packed run: it has no {MANIFEST}")
        try:
            self.content: dict[str, Any] = json.loads(path.read_text())
            whole = self.content.pop("sha256") == _digest(self.content)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise ValueError(f"{path} is damaged: pack the run again, or copy the file again")
        if self.content["version"] != VERSION:
            raise ValueError(f"{path}: its format has version {self.content['version']}; expected {VERSION}")
        self._parts = [self._part(folder / part["file"], part["sha256"]) for part in self.content["parts"]]

    def tree(self, described: Any) -> Any:
        if described is None:
            return None
        if described.get("") == "list":
            return [self.tree(item) for item in described["items"]]
        if described.get("") == "array":
            return self._array(described)
        return {key: self.tree(value) for key, value in described.items()}

    def _part(self, path: pathlib.Path, sha256: str) -> dict[str, np.ndarray]:
        from safetensors import deserialize

        if not path.is_file():
            raise ValueError(f"{path} is missing")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{path} is damaged, as its checksum differs: copy the file again")
        return {name: np.frombuffer(found["data"], _DTYPES[found["dtype"]]) for name, found in deserialize(content)}

    def _array(self, described: dict[str, Any]) -> np.ndarray:
        dtype, shape = np.dtype(described["dtype"]), described["shape"]
        if not described["parts"]:
            return np.zeros(shape, dtype)
        pieces = [self._parts[part][described["name"]] for part in described["parts"]]
        return np.concatenate(pieces).astype(dtype).reshape(shape)


_DTYPES: dict[str, Any] = {  # safetensors' names of what a state or a method's memory may hold
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    "F32": np.float32,
    "F64": np.float64,
    "I32": np.int32,
    "I64": np.int64,
    "U32": np.uint32,
    "U8": np.uint8,
}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_free(folder: pathlib.Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; give a folder that does not exist yet")


@contextlib.contextmanager
def _whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that is renamed to ``folder`` once complete, or moved into it if that exists, empty."""
    folder = folder.resolve()  # "." has no name
    making = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(parents=True)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error.strerror}") from error
    try:
        yield making
        if folder.is_dir():  # stays, since a shell may be in it; the manifest comes last
            for path in sorted(making.iterdir(), reverse=True):
                path.replace(folder / path.name)
        else:
            making.replace(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
