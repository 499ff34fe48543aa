"""Several processes on one evaluation: each has a contiguous share of the examples."""

import itertools

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
