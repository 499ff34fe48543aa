"""The least time that arithmetic and memory allow: counted operations and bytes per image, and seconds on a card.

    python -m benchmarks.floors --config=cifar10:lagrangian,fast
    python -m benchmarks.floors --config=cifar10:lagrangian,fast --compile --output=results/floors.json
    python -m benchmarks.floors --config=cifar10:lagrangian,fast --compile --target=h100

Bytes are counted in two ways. The first is for the convolutions alone: each reads its operands and writes its result,
and everything else is fused into them, without further passes over activations. The second, with ``--compile``, is
XLA's count for the program that it compiles for this device, which has such passes; the update and a step of the attack
are compiled apart, since XLA counts a loop's body only once. ``--target`` is a device that need not be at hand:
``h100`` (with ``jax[cuda12]`` installed), or a TPU topology like ``v5e:2x2`` (with ``jax[tpu]``; takes minutes).
``--text=FOLDER`` keeps the programs, for reading.
"""

import argparse
import math
import os
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.extend import core
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import hlo, operations
from benchmarks.output import write
from lagrangian_jax import config as configuration
from lagrangian_jax import losses, methods
from lagrangian_jax.build import build_method, build_network, build_optimizer
from lagrangian_jax.models.forward import bind
from lagrangian_jax.parallel import AXIS
from lagrangian_jax.state import TrainState, initial_state
from lagrangian_jax.step import resident_steps, training_step

IMAGES = 50_000  # in an epoch


class Card(NamedTuple):
    """A card's measured rates: operations per second of large bfloat16 products, bytes per second of copies."""

    name: str
    operations: float
    bandwidth: float


CARDS = (Card("H100", 790e12, 3.0e12), Card("H200", 790e12, 4.3e12))
# What XLA's compiler must know about an H100 that is not there: NVIDIA's figures, in XLA's notation.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048  fpus_per_core: 128
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536  registers_per_block_limit: 65536  core_count: 132
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="also ask XLA for the bytes of its program")
    parser.add_argument("--target", help="compile for h100 or a TPU topology instead of this device")
    parser.add_argument("--text", type=pathlib.Path, help="a folder in which to keep the compiled programs")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    try:
        arguments, config = configuration.parse(argv, parser)
    except configuration.UsageError as error:
        return configuration.fail(str(error), code=2)
    configuration.prepare_jax(config)
    if arguments.target:
        jax.config.update("jax_enable_compilation_cache", False)  # it reads no programs for a device that is not there
    result = {"config": arguments.config, "precision": config.precision, **counted(config)}
    if arguments.compile or arguments.target:
        result["target"] = arguments.target
        parts = compiled(config, device(arguments.target), arguments.text)
        result["compiled"] = parts
        result["bytes"]["compiled"] = parts["update"] + config.method.get("steps", 0) * parts["attack_step"]
    result["epoch_seconds"] = {card.name: floors(card, result["operations"], result["bytes"]) for card in CARDS}
    show(result)
    write(arguments.output, result)
    return 0


def floors(card: Card, operations: float, moved: dict[str, float]) -> dict[str, float]:
    """Seconds per epoch, by what bounds them; the largest is the floor."""
    times = {"arithmetic": operations / card.operations, **{k: v / card.bandwidth for k, v in moved.items()}}
    return {name: IMAGES * value for name, value in times.items()}


def counted(config: configuration.ConfigDict) -> dict[str, Any]:
    """``operations`` and ``bytes`` (of the convolutions) per image of a training step; nothing is compiled."""
    run, arguments = step_of(config, build_method(config))
    batch = config.train.batch_size
    with jax.default_matmul_precision("highest"):  # plain convolutions: a CPU's own way is no floor
        moved = operations.total(convolution_bytes, run, *arguments)
        counted = operations.count(run, *arguments)
    return {"operations": counted / batch, "bytes": {"convolutions": moved / batch}}


def convolution_bytes(equation: core.JaxprEqn) -> float:
    """Bytes that a convolution or matrix product reads and writes, if none of them are kept in a cache."""
    if not operations.is_product(equation):
        return 0.0
    arrays = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    return float(sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays))


def device(target: str | None) -> jax.Device:
    """What programs are compiled for: the first device here, or one that need not be at hand."""
    if target is None:
        return jax.devices()[0]
    if target == "h100":
        options = {"topology": "1x1x1", "target_config": H100}
        return topologies.get_topology_desc(target, "cuda", **options).devices[0]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no server to ask which slice this is
    return topologies.get_topology_desc(target, "tpu").devices[0]


def compiled(config: configuration.ConfigDict, device: jax.Device, folder: pathlib.Path | None) -> dict[str, float]:
    """Bytes per image that XLA's programs read and write: ``update``, and ``attack_step``, of which a step has several.

    What an operation reads and writes counts in full, as if there were no cache.
    """
    mesh = Mesh(np.array([device]), (AXIS,))
    run, arguments = step_of(config, methods.create("standard"), mesh)
    state, batch = arguments[0], config.train.batch_size
    forward_of = config.method.get("statistics", "train")
    network = build_network(config, 10)

    def gradient(params, batch_stats, images, labels):
        def objective(images):
            logits, statistics = bind(network, params, forward_of)(images, batch_stats)
            return jnp.sum(losses.margin(logits, labels, 1.0)), statistics

        return jax.grad(objective, has_aux=True)(images)

    images = jax.ShapeDtypeStruct(arguments[1].shape, jnp.float32)
    programs = {
        "update": (run, arguments),
        "attack_step": (jax.jit(gradient), (state.params, state.batch_stats, images, arguments[2])),
    }
    found = {}
    for name, (function, given) in programs.items():
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P())), given)
        program = function.lower(*given).compile()
        text, analysis = program.as_text(), program.cost_analysis()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.txt").write_text(text)
        found[name] = (float(analysis["bytes accessed"]) if analysis else hlo.accessed(text)) / batch
    return found


def step_of(
    config: configuration.ConfigDict, method: methods.Method, mesh: Mesh | None = None
) -> tuple[Any, tuple[TrainState, Any, Any, Any]]:
    """One training step on a resident batch, and the shapes of its arguments."""
    network, batch, size = build_network(config, 10), config.train.batch_size, config.data.image_size
    optimizer = build_optimizer(config, lambda step: 0.1)

    def new_state() -> TrainState:
        return initial_state(jax.random.key(0), network, (size, size, 3), optimizer, method.memory(batch))

    step = training_step(network, method, optimizer, config.augmentation.to_dict(), 1, 0.0)
    run = resident_steps(step, mesh or Mesh(np.array(jax.devices()[:1]), (AXIS,)))
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    labels, index = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch,), (1, batch)))
    return run, (jax.eval_shape(new_state), images, labels, index)


def show(result: dict[str, Any]) -> None:
    print(f"{result['config']}, {result['precision']}: {result['operations'] / 1e9:.2f} GFLOP an image")
    for name, value in result["bytes"].items():
        print(f"  {name:13s} {value / 1e6:7.1f} MB an image")
    for name, value in result.get("compiled", {}).items():
        print(f"    {name:11s} {value / 1e6:7.2f}")
    for card, times in result["epoch_seconds"].items():
        print(f"{card}: " + ", ".join(f"{name} {value:.2f}" for name, value in times.items()) + " s an epoch")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
