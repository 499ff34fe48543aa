"""Devices: one mesh axis, ``data``; the state is replicated, batches are split by example. Processes: what they
exchange outside compiled programs.

`jax.pmap` has been in maintenance mode since JAX 0.8; this is `jax.jit` around `jax.shard_map`, which underlies it now.
"""

import io
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lagrangian_jax.names import UsageError

AXIS = "data"
_KNOWN = "raised in every process"
T = TypeVar("T")


def start() -> None:
    """Joins the other hosts of a pod or job; does nothing on a single host.

    Jobs of several processes are recognised under SLURM, Open MPI and in GKE's TPU node pools. On a Cloud TPU slice,
    set LAGRANGIAN_JAX_DISTRIBUTED=1 (a single TPU host cannot be told from a slice without asking the network);
    elsewhere, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. The scripts in ``launch/`` do so.

    Raises:
      ValueError: JAX_NUM_PROCESSES is set without the other two, or JAX_PLATFORMS begins with cuda and there is no GPU.
    """
    environment = os.environ.get
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM away from `signals`
    if environment("JAX_NUM_PROCESSES"):
        missing = [name for name in ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID") if not environment(name)]
        if missing:
            raise ValueError(f"JAX_NUM_PROCESSES is set; {' and '.join(missing)} must be set, too")
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    elif (
        # SLURM's count is that of a step of srun; the allocation's is also set in its shells and notebooks.
        any(environment(name, "1") not in ("", "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
        or len(environment("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
        or environment("LAGRANGIAN_JAX_DISTRIBUTED") == "1"
    ):
        jax.distributed.initialize()
    platforms = jax.config.values["jax_platforms"] or ""
    if platforms.startswith("cuda") and jax.default_backend() == "cpu":  # JAX falls back silently
        raise ValueError(f"JAX_PLATFORMS={platforms} asks for a GPU, and JAX found none on this machine")


def mesh() -> Mesh:
    """All devices of all processes along one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies a tree, which is the same in every process, to every device."""
    sharding = NamedSharding(mesh, P())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), np.shape(leaf))

    return jax.tree.map(place, tree)


def split(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Global arrays split along ``axis``, from host arrays that hold this process's share of the batch."""
    sharding = NamedSharding(mesh, P(*[None] * axis, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def per_device(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """`jax.shard_map` over the mesh; collectives inside name the axis `AXIS`."""
    # Gradients are summed over devices explicitly, where the reader sees it, so JAX need not track what varies.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def agreed(mesh: Mesh) -> Callable[[bool], bool]:
    """``raised(flag)``: whether any process raised its flag at the previous call; all get the same answer.

    The answer comes one call late, so that no device waits for a host. A single process gets its flag back at once.
    """
    if jax.process_count() == 1:
        return lambda flag: flag
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
    pending: list[jax.Array] = []

    def raised(flag: bool) -> bool:
        pending.append(largest(split(np.full(len(mesh.local_devices), flag, np.int32), mesh)))
        return len(pending) > 1 and bool(pending.pop(0))

    return raised


def broadcast(content: bytes) -> bytes:
    """Sends the first process's bytes to every process."""
    if jax.process_count() == 1:
        return content
    from jax.experimental.multihost_utils import broadcast_one_to_all

    size = _size(broadcast_one_to_all(_words(len(content))))
    words = np.zeros(-(-size // 4), np.uint32)  # the broadcast is a sum over processes, in which the others are zero
    if jax.process_index() == 0:
        words.view(np.uint8)[:size] = np.frombuffer(content, np.uint8)
    return np.asarray(broadcast_one_to_all(words)).tobytes()[:size] if size else b""


def broadcast_arrays(arrays: list[np.ndarray] | None, like: list[Any]) -> list[np.ndarray]:
    """Sends the first process's arrays to every process, bit for bit.

    Args:
      arrays: those of the first process; ignored in the others, where None will do.
      like: leaves with their shapes and types.
    """
    content = broadcast(b"".join(array.tobytes() for array in arrays or ()))
    ends = np.cumsum([math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in like])
    starts = [0, *ends[:-1]]
    return [
        np.frombuffer(content[start:end], leaf.dtype).reshape(leaf.shape)
        for leaf, start, end in zip(like, starts, ends, strict=True)
    ]


def gather(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Sends every process's arrays to every process; the names must be the same in all, the shapes need not be."""
    if jax.process_count() == 1:
        return [dict(arrays)]
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    found = []
    for content in _exchange(packed.getvalue()):
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            found.append({name: archive[name] for name in archive.files})
    return found


def together(function: Callable[[], T]) -> T | None:
    """Calls a function in the first process alone; an error in it that a user can cause is raised in every process.

    Returns:
      what the function returns; None in the other processes.

    Raises:
      UsageError, ValueError, OSError: as raised by the function.
    """
    kinds = {kind.__name__: kind for kind in (UsageError, ValueError, OSError)}
    found: T | None = None
    error: ValueError | OSError | None = None
    if jax.process_index() == 0:
        try:
            found = function()
        except (ValueError, OSError) as caught:
            error = caught
    name = next((name for name, kind in kinds.items() if isinstance(error, kind)), None)
    # JSON, since a message may hold a path whose name is no text.
    name, message = json.loads(broadcast(json.dumps([name, str(error)]).encode()))
    if name:
        raise known(error or kinds[name](message))
    return found


def known(error: Exception) -> Exception:
    """Marks an error that every process raises."""
    error.add_note(_KNOWN)
    return error


def leave_if_alone(error: Exception, code: int, trace: bool = False) -> None:
    """Ends this process at once after an error that is not `known` to the others: at a normal exit JAX would wait for
    them, while they wait for this process in the next exchange; this way they notice that it is gone, and end too.
    """
    if jax.distributed.is_initialized() and _KNOWN not in getattr(error, "__notes__", ()):
        if trace:
            traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(code)


def _exchange(content: bytes) -> list[bytes]:
    if jax.process_count() == 1:
        return [content]
    from jax.experimental.multihost_utils import process_allgather

    sizes = [_size(words) for words in np.asarray(process_allgather(_words(len(content)))).reshape(-1, 2)]
    padded = np.zeros(max(1, *sizes), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    gathered = np.asarray(process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]


def _words(size: int) -> np.ndarray:
    """A size as two words of 32 bits, since JAX has no others by default; see `_size`."""
    return np.array(divmod(size, 2**32), np.uint32)


def _size(words: Any) -> int:
    high, low = map(int, words)
    return 2**32 * high + low
