"""Reads PyTorch's files without PyTorch, and without running anything in them.

A file of ``torch.save`` consists of a pickle that describes tensors and of the raw bytes of their storages: a zip
archive since PyTorch 1.6, one pickle after another before. A pickle names functions to call. Here, the few names that
rebuild tensors yield records of what to read, and every other name yields a dictionary that keeps the fields of its
object and none of its code. So any file can be opened, whatever else its author put into it.
"""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the old format
_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Tensor(NamedTuple):
    """A view into a storage, given by its key in the file and its type; offset and strides are in elements."""

    storage: tuple[str, np.dtype]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, storages: Callable[[str], bytes]) -> np.ndarray:
        key, dtype = self.storage
        strides = tuple(dtype.itemsize * stride for stride in self.strides)
        # NumPy checks that the view lies inside the bytes.
        return np.ndarray(self.shape, dtype, storages(key), dtype.itemsize * self.offset, strides)


class Fields(dict):
    """Stands in for an object of any class: keeps its fields, and none of its code."""

    def __new__(cls, *_: Any, **__: Any) -> "Fields":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)

    def append(self, _: Any) -> None:
        pass

    extend = add = append
    __hash__ = object.__hash__  # type: ignore[assignment]


class _Unpickler(pickle.Unpickler):
    """Imports nothing: `find_class` is a pickle's only way to a function. Records the storages' types."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="utf-8")
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: Tensor(storage, offset, tuple(shape), tuple(strides))
        if module == "torch" and name in _DTYPES:
            return lambda: np.dtype(_DTYPES[name])
        return type(name, (Fields,), {})  # a new class each time, so that nothing a pickle sets on it stays

    def persistent_load(self, pid: Any) -> Any:
        kind, make_dtype, key = pid[:3]
        if kind == "module":  # in old files: a class, with its source code
            return make_dtype
        dtype = make_dtype()
        if not isinstance(dtype, np.dtype) or any(pid[5:]):
            raise pickle.UnpicklingError(f"a storage of an unknown kind: {pid!r}")
        self.dtypes[str(key)] = dtype
        return str(key), dtype


def read(path: str | os.PathLike) -> Any:
    """The object in a file of ``torch.save``, with the tensors in dictionaries as NumPy arrays.

    Raises:
      ValueError: if it is no such file, or a damaged one.
      OSError: if it cannot be opened.
    """
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            return _read_zip(file) if zipped else _read_legacy(file)
        except Exception as error:  # a damaged pickle can fail in any way
            raise ValueError(f"{os.fspath(path)} is not a PyTorch file that can be read: {error}") from error


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        root = next((name.removesuffix("data.pkl") for name in names if name.split("/")[1:] == ["data.pkl"]), None)
        if root is None:
            raise ValueError("the archive has no data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        described = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        return _with_arrays(described, lambda key: archive.read(f"{root}data/{key}"))


def _read_legacy(file: IO[bytes]) -> Any:
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("it does not begin like one")
    for _ in ("version of the format", "sizes on the machine"):
        _Unpickler(file).load()
    unpickler = _Unpickler(file)
    described = unpickler.load()
    storages = {}
    for key in _Unpickler(file).load():
        count = struct.unpack("<q", file.read(8))[0]
        storages[key] = file.read(count * unpickler.dtypes[key].itemsize)
    return _with_arrays(described, storages.__getitem__)


def _with_arrays(value: Any, storages: Callable[[str], bytes]) -> Any:
    """Reads the tensors in nested dictionaries, in place."""
    waiting, seen = [value], set()
    while waiting:
        group = waiting.pop()
        if isinstance(group, dict) and id(group) not in seen:
            seen.add(id(group))
            group.update({k: v.read(storages) for k, v in group.items() if isinstance(v, Tensor)})
            waiting += group.values()
    return value
