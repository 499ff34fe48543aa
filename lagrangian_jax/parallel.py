"""Devices: one mesh axis, ``data``; the state is replicated, batches are split by example.

`jax.pmap` is in maintenance mode since JAX 0.8; this is `jax.jit` around `jax.shard_map`, which it is built on now.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


def start() -> None:
    """Joins the other hosts of a pod or job; does nothing on a single host.

    Cloud TPU, SLURM, Open MPI and Kubernetes are recognised by `jax.distributed`; elsewhere set
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    if os.environ.get("JAX_NUM_PROCESSES"):
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    elif any(os.environ.get(name, "1") not in ("", "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")) or (
        len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    ):
        jax.distributed.initialize()


def mesh() -> Mesh:
    """All devices of all processes in one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def split(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Host arrays, this process's share of the batch, as global arrays split along ``axis``."""
    sharding = NamedSharding(mesh, P(*[None] * axis, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def per_device(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """`jax.shard_map` over the mesh; collectives inside name the axis `AXIS`."""
    # Gradients are summed over devices explicitly, where the reader sees it, so JAX need not track what varies.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
