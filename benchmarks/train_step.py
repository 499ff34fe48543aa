"""Speed of a training step: images per second, TFLOP/s, share of the measured peak, compilation, memory.

    python -m benchmarks.train_step --config=cifar10 --peer=torch
    python -m benchmarks.train_step --config=cifar10:lagrangian,fast --peer=torch --output=results/train_step.json

With ``--peer=torch`` the same step runs in PyTorch on the same device, in turns with ours, so that both see the same
machine; the ratio is of the medians. The images are random: speed does not depend on their content.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import operations
from benchmarks.output import write
from lagrangian_jax import config as configuration
from lagrangian_jax import parallel
from lagrangian_jax.build import build_method, build_network, build_optimizer, build_schedule
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, training_step
from lagrangian_jax.train import batch_indices


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=["torch"], help="compare with PyTorch on the same device")
    parser.add_argument(
        "--peer-options", default="channels_last", help="any of channels_last,bfloat16,compile,graph,released; or none"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="a round's length, at least one call")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    try:
        arguments, config = configuration.parse(argv, parser)
    except configuration.UsageError as error:
        return configuration.fail(str(error), code=2)
    configuration.prepare_jax(config)
    result = ours(config)
    sides = {"lagrangian_jax": result.pop("call")}
    steps = {"lagrangian_jax": result["steps_per_call"]}
    if arguments.peer:
        import torch

        from benchmarks import torch_step

        options = arguments.peer_options.split(",")
        sides["torch"] = torch_step.build(
            config.network.width,
            config.train.batch_size,
            "cuda" if jax.default_backend() == "gpu" else "cpu",
            channels_last="channels_last" in options,
            bfloat16="bfloat16" in options,
            compiled="compile" in options,
            graph="graph" in options,
            statistics=config.method.get("statistics", "train"),
            released="released" in options,
        )
        if jax.default_backend() == "gpu":
            step = sides["torch"]
            sides["torch"] = lambda: (step(), torch.cuda.synchronize())[0]
        steps["torch"] = 1
        result["peer"] = {"torch": torch.__version__, "options": options}
    times = in_turns(sides, arguments.rounds, arguments.seconds)
    seconds = {name: statistics.median(values) / steps[name] for name, values in times.items()}
    batch = config.train.batch_size
    rate = result["operations"] / seconds["lagrangian_jax"]
    result["peak_operations_per_second"] = peak(config.precision)
    result |= {
        "step_seconds": seconds,
        "images_per_second": {name: batch / value for name, value in seconds.items()},
        "tflops_per_second": rate / 1e12,
        "share_of_peak": rate / result["peak_operations_per_second"],
    }
    if arguments.peer:
        result["ratio"] = seconds["torch"] / seconds["lagrangian_jax"]
    show(result)
    write(arguments.output, result)
    return 0


def ours(config: configuration.ConfigDict) -> dict:
    """Our step, compiled: what is known about it, and ``call``, which runs the program once."""
    mesh = parallel.mesh()
    batch = config.train.batch_size
    per_call = config.train.steps_per_call or (1 if jax.default_backend() == "cpu" else 50)
    examples = batch * per_call * 2
    network, method = build_network(config, 10), build_method(config)
    optimizer = build_optimizer(config, build_schedule(config, 1000))
    shape = (config.data.image_size, config.data.image_size, 3)
    state = initial_state(
        jax.random.key(0), network, shape, optimizer, method.memory(examples), average=config.train.average > 0
    )
    state = parallel.replicate(state, mesh)
    rng = np.random.default_rng(0)
    images = parallel.replicate(rng.integers(0, 256, (examples, *shape), np.uint8), mesh)
    labels = parallel.replicate(rng.integers(0, 10, examples).astype(np.int32), mesh)
    index = parallel.split(batch_indices(0, 0, per_call, 2 * per_call, examples, batch), mesh, axis=1)
    step = training_step(network, method, optimizer, config.augmentation.to_dict(), 1000, config.train.average)
    run = resident_steps(step, mesh)
    counted = operations.count(run, state, images, labels, index) * mesh.size / per_call
    compiled, compile_seconds = timed_compilation(lambda: run.lower(state, images, labels, index).compile())
    memory = compiled.memory_analysis()

    def call() -> None:
        nonlocal state
        state, metrics = compiled(state, images, labels, index)
        jax.block_until_ready(metrics)

    device = jax.devices()[0]
    return {
        "call": call,
        "device": device.device_kind,
        "devices": mesh.size,
        "jax": jax.__version__,
        "network": configuration.plain(config.network),
        "method": configuration.plain(config.method),
        "precision": config.precision,
        "batch_size": batch,
        "steps_per_call": per_call,
        "operations": counted,
        "compile_seconds": compile_seconds,
        "memory_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes,
    }


def timed_compilation(compilation: Callable[[], Any]) -> tuple[Any, float]:
    """What a compilation returns and the seconds it takes. If the program was compiled before and is only read, the
    cache of compiled programs tells how long that took, in whole seconds."""
    saved = [0.0]

    def note(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/compilation_cache/compile_time_saved_sec":
            saved.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        started = time.perf_counter()
        compiled = compilation()
        return compiled, time.perf_counter() - started + sum(saved)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def peak(precision: str) -> float:
    """Operations per second of a large matrix product, the most that this machine gives in this precision."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(matrix, matrix))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best * jax.device_count()


def in_turns(sides: dict[str, Callable[[], None]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each side's calls, measured in alternating rounds after one call each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(rounds):
        for name, call in sides.items():
            call()  # the caches hold the other side's data
            until = time.perf_counter() + seconds
            while True:
                started = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - started)
                if time.perf_counter() > until:
                    break
    return times


def show(result: dict) -> None:
    lines = {
        "device": f"{result['devices']} x {result['device']}, jax {result['jax']}, {result['precision']}",
        "step": f"{result['method']['name']}, batch {result['batch_size']}, width {result['network']['width']}",
        "operations": f"{result['operations'] / 1e9:.1f} GFLOP a step",
    }
    for name, value in result["step_seconds"].items():
        lines[name] = f"{value:.4f} s a step, {result['images_per_second'][name]:.0f} images/s"
    lines["rate"] = f"{result['tflops_per_second']:.3f} TFLOP/s, {100 * result['share_of_peak']:.0f} % of the peak"
    lines["compilation"] = f"{result['compile_seconds']:.1f} s"
    lines["memory"] = f"{result['memory_bytes'] / 2**20:.0f} MiB"
    if "ratio" in result:
        peer = f"{result['peer']['torch']}, {', '.join(result['peer']['options'])}"
        lines["ratio"] = f"{result['ratio']:.2f} times the speed of PyTorch ({peer})"
    for name, text in lines.items():
        print(f"{name:15s} {text}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
