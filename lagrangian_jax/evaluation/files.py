"""An attack's results on disk: one npz per row of the suite, written whole or not at all, known by a fingerprint."""

import hashlib
import io
import json
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from lagrangian_jax.evaluation.result import plain

VERSION = 2  # of the file format
# How far `apart` the logits of one and the same network may be: on the same device, where a GPU may choose another
# program each time; and on another device, or if the network computes with less than float32, such as the 8 bits of
# bfloat16. Measured: up to 0.022 between float32 and bfloat16.
ROUNDING, COARSE_ROUNDING = 0.005, 0.05


class Damaged(Exception):
    """The file is not what was written: cut short, altered, or from another program."""


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


class Sample(NamedTuple):
    """What tells apart networks that have the same arrays.

    Attributes:
      logits: (n, K), of the first n images.
      coarse: whether they are computed with less than float32.
    """

    logits: np.ndarray
    coarse: bool


def programs(function: Callable[..., Any], *shapes: Any) -> list[ClosedJaxpr | Jaxpr]:
    """What a function computes: its program and the programs inside it, in order of use."""

    def collect(program: ClosedJaxpr | Jaxpr) -> Iterator[ClosedJaxpr | Jaxpr]:
        yield program
        for equation in program.eqns:
            for parameter in equation.params.values():
                for value in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                    if isinstance(value, (ClosedJaxpr, Jaxpr)):
                        yield from collect(value)

    return list(collect(jax.make_jaxpr(function)(*shapes)))


def closure(computed: list[ClosedJaxpr | Jaxpr]) -> list[Any]:
    """The arrays that a function with these `programs` closes over: its weights, unless they are arguments."""
    return [array for program in computed if isinstance(program, ClosedJaxpr) for array in program.consts]


def coarse(computed: list[ClosedJaxpr | Jaxpr]) -> bool:
    """Whether a function with these `programs` computes anything with less than float32."""
    outputs = (output.aval for program in computed for equation in program.eqns for output in equation.outvars)
    types = {output.dtype for output in outputs if hasattr(output, "dtype")}
    return any(jnp.issubdtype(kind, jnp.floating) and kind.itemsize < 4 for kind in types)


def apart(there: np.ndarray, here: np.ndarray) -> float:
    """How far logits (n, K) are from others of the same images: ||here - there|| / ||there||.

    Classes that have one and the same logit in every image are left out: masked ones, for instance, whose logits are
    huge. Infinity if the shapes differ, or if one has a number where the other has none.
    """
    if there.shape != here.shape:
        return math.inf
    varies = ~np.all((there == there[:1]) & (here == there[:1]), axis=0)
    there, here = there[:, varies].astype(np.float64), here[:, varies].astype(np.float64)
    numbers = np.isfinite(there)
    if not np.array_equal(np.where(numbers, 0, there), np.where(np.isfinite(here), 0, here), equal_nan=True):
        return math.inf
    size, difference = np.linalg.norm(there[numbers]), np.linalg.norm(there[numbers] - here[numbers])
    return float(difference / size) if size else math.inf if difference else 0.0


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        found = []
        for key in sorted({*there, *here}):
            found += differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if there == here else [f"{name} is {there} there, {here} here"]
