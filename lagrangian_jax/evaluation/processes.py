"""Several processes on one evaluation: shares of the examples, and exchange of results on the hosts."""

import io
import itertools
from collections.abc import Mapping

import jax
import numpy as np


def rounds(done: np.ndarray, size: int) -> list[np.ndarray]:
    """What is left of this process's contiguous share, in chunks; as many chunks, some empty, in every process."""
    count, processes = len(done), jax.process_count()
    bounds = [count * process // processes for process in range(processes + 1)]
    left = [first + np.flatnonzero(~done[first:last]) for first, last in itertools.pairwise(bounds)]
    number = max(-(-len(share) // size) for share in left)
    mine = left[jax.process_index()]
    return [mine[start : start + size] for start in range(0, number * size, size)]


def broadcast(content: bytes) -> bytes:
    """The first process's bytes, in every process."""
    return _exchange(content)[0]


def gather(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Every process's arrays, in every process; names are the same in all, shapes need not be."""
    if jax.process_count() == 1:
        return [dict(arrays)]
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    found = []
    for content in _exchange(packed.getvalue()):
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            found.append({name: archive[name] for name in archive.files})
    return found


def _exchange(content: bytes) -> list[bytes]:
    if jax.process_count() == 1:
        return [content]
    from jax.experimental.multihost_utils import process_allgather

    sizes = np.asarray(process_allgather(np.array([len(content)], np.int32))).reshape(-1)
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    gathered = np.asarray(process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]
