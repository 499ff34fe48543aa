"""Results of an attack on disk: one npz a row of the suite, written whole or not at all, and known by a fingerprint."""

import hashlib
import io
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from lagrangian_jax.evaluation.result import plain

VERSION = 2  # of the files


class Damaged(Exception):
    """The file is not what was written: cut short, altered, or of another program."""


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes arrays and ``about`` (JSON) so that the path holds either the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, about=np.array(json.dumps({"version": VERSION, **plain(about)})), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write the evaluation's results ({error.strerror})", str(path)) from error


def read(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and ``about`` of a file's content.

    Raises:
      Damaged: cut short or altered (the archive's checksums are verified).
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(str(arrays.pop("about")))
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, NotImplementedError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return arrays, about


def digest(*arrays: Any) -> str:
    """A short hash of arrays: types, shapes and values."""
    found = hashlib.blake2b(digest_size=12)
    for array in arrays:
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        array = np.ascontiguousarray(array)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.view(np.uint8).data if array.size else b"")
    return found.hexdigest()


def closure(function: Callable[..., Any], *shapes: Any) -> list[Any]:
    """The arrays that a function closes over, in the order of use: its weights, where they are not arguments."""
    found: list[Any] = []

    def collect(program: ClosedJaxpr | Jaxpr) -> None:
        if isinstance(program, ClosedJaxpr):
            found.extend(program.consts)
        for equation in program.eqns:
            for parameter in equation.params.values():
                for value in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                    if isinstance(value, (ClosedJaxpr, Jaxpr)):
                        collect(value)

    collect(jax.make_jaxpr(function)(*shapes))
    return found


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        found = []
        for key in sorted({*there, *here}):
            found += differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if there == here else [f"{name} is {there} there, {here} here"]
