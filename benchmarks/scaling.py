"""Scaling of the training step: measured on virtual devices, counted in the compiled program, and modelled on paper.

    python -m benchmarks.scaling --config=cifar10:lagrangian,slim --output=results/scaling.json

Virtual CPU devices share the machine's cores, so the step gets no faster on more of them; what is measured is what
splitting the program adds: its time over that of one device with the same global batch. The collectives are those of
the compiled program: what it sends does not depend on what it runs on. The model applies the counted operations and
bytes to hardware whose figures are stated below.
"""

import argparse
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import hlo, operations
from benchmarks.output import write
from lagrangian_jax import config as configuration
from lagrangian_jax import parallel
from lagrangian_jax.build import build_method, build_network, build_optimizer, build_regularisation, build_schedule
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import streaming_step, training_step

DEVICES = (1, 2, 4, 8)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(program: str) -> dict[str, dict[str, int]]:
    """Counts the collectives in the text of a compiled program, by kind: how many, and the bytes of their results.

    One inside a loop is counted once.

    >>> collectives("%x = f32[8,4]{1,0} all-reduce(%y), replica_groups={}\\n"
    ...             "%z = (f32[2]{0}, s32[3]{0}) all-reduce-start(%a, %b), channel_id=1")
    {'all-reduce': {'count': 2, 'bytes': 148}}
    """
    found: dict[str, dict[str, int]] = {}
    for kind in COLLECTIVES:
        lines = re.findall(rf"= (.*?) {kind}(?:-start)?\(", program)
        if lines:
            found[kind] = {"count": len(lines), "bytes": sum(map(hlo.size_of, lines))}
    return found


class Hardware(NamedTuple):
    """A cluster on paper.

    Attributes:
      name: what it is.
      devices: how many.
      operations: per second and device, in dense bfloat16 products, as published.
      share: the share of these that the step reaches.
      bandwidth: bytes per second that one device sends in an all-reduce, as published.
      latency: seconds of a small all-reduce over all devices.
      input: images per second that all hosts together decode.
    """

    name: str
    devices: int
    operations: float
    share: float
    bandwidth: float
    latency: float
    input: float


# Peak rates and link speeds as published. An H200's NVLink 4 gives 450 GB/s a direction; a v5e chip's four ICI links
# 4 x 400 Gbit/s, of which a ring all-reduce over a 16 x 16 torus uses two at a time. A host core decodes, crops and
# resizes about 150 ImageNet images per second; an H200 host has 192 of them, a v5e host 224 for 8 chips.
CORE = 150.0
HARDWARE = (
    Hardware("8 x H200, one host", 8, 989e12, 0.40, 450e9, 30e-6, 192 * CORE),
    Hardware("TPU v5e-256", 256, 197e12, 0.40, 100e9, 60e-6, 32 * 224 * CORE),
)


def modelled(hardware: Hardware, operations: float, sent: float, count: int, batch: int) -> dict[str, float]:
    """Seconds of a step on paper.

    Args:
      hardware: the cluster.
      operations: of one example.
      sent: bytes of all all-reduces in a step.
      count: number of all-reduces in a step.
      batch: examples in a step, over all devices.
    """
    n = hardware.devices
    compute = math.ceil(batch / n) * operations / (hardware.operations * hardware.share)
    reduce = 2 * (n - 1) / n * sent / hardware.bandwidth + count * hardware.latency
    return {"compute": compute, "all-reduce": reduce, "input": batch / hardware.input}


def smallest_efficient_batch(hardware: Hardware, operations: float, sent: float, count: int, share: float = 0.8) -> int:
    """The smallest batch at which all devices pay off: computing is at least ``share`` of a step whose all-reduce does
    not overlap it."""
    batch = hardware.devices
    while True:
        times = modelled(hardware, operations, sent, count, batch)
        if times["compute"] >= share * (times["compute"] + times["all-reduce"]):
            return batch
        batch += hardware.devices


def step_of(config: configuration.ConfigDict, batch: int) -> tuple[Any, tuple[Any, ...]]:
    """The jitted training step of a configuration on all devices of this process, and arguments for it."""
    mesh = parallel.mesh()
    network, method = build_network(config, 100), build_method(config)
    optimizer = build_optimizer(config, build_schedule(config, 1000))
    shape = (config.data.image_size, config.data.image_size, 3)
    average = config.train.average
    state = initial_state(jax.random.key(0), network, shape, optimizer, method.memory(batch), average=average > 0)
    step = training_step(network, method, optimizer, None, 1000, average, build_regularisation(config))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (batch, *shape), np.uint8), rng.integers(0, 10, batch).astype(np.int32)
    split = parallel.split((images, labels, np.arange(batch, dtype=np.int32)), mesh)
    return streaming_step(step, mesh, batch), (parallel.replicate(state, mesh), *split)


def measure(config: configuration.ConfigDict, seconds: float) -> dict[str, Any]:
    """Measures the step on this process's devices: median seconds, and the collectives of its program."""
    run, (state, *batch) = step_of(config, config.train.batch_size)
    compiled = run.lower(state, *batch).compile()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < until:
        started = time.perf_counter()
        state, metrics = compiled(state, *batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - started)
    return {
        "devices": jax.device_count(),
        "step_seconds": statistics.median(times[1:]),
        "collectives": collectives(compiled.as_text()),
    }


def counted(config: configuration.ConfigDict) -> dict[str, Any]:
    """Operations of one example and collectives of a step, from the program for two devices; runs nothing."""
    run, arguments = step_of(config, 2 * jax.device_count())
    return {
        "operations": operations.count(run, *arguments) / 2,  # counted for one device's share, two examples
        "collectives": collectives(run.lower(*arguments).compile().as_text()),
    }


def paper(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The model of a configuration's step on each `HARDWARE`."""
    sent = found["collectives"]["all-reduce"]["bytes"]
    count = found["collectives"]["all-reduce"]["count"]
    rows = []
    for hardware in HARDWARE:
        least = smallest_efficient_batch(hardware, found["operations"], sent, count)
        times = modelled(hardware, found["operations"], sent, count, least)
        rate = least / (times["compute"] + times["all-reduce"])
        rows.append(
            {
                "hardware": hardware.name,
                "batch": least,
                "batch_a_device": least // hardware.devices,
                "milliseconds": {part: 1e3 * value for part, value in times.items()},
                "images_per_second": rate,
                "input_images_per_second": hardware.input,
            }
        )
    return {"config": name, **found, "model": rows}


def in_a_process(devices: int, *arguments: str) -> dict[str, Any]:
    """Runs this module with so many virtual devices, which must be set before JAX starts; returns its JSON."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument("--paper", default="cifar10:lagrangian,fast imagenet100:lagrangian,fast", help="configurations")
    parser.add_argument("--child", choices=["measure", "count"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    try:
        arguments, config = configuration.parse(argv, parser)
    except configuration.UsageError as error:
        return configuration.fail(str(error), code=2)
    if arguments.child:
        found = measure(config, arguments.seconds) if arguments.child == "measure" else counted(config)
        print(json.dumps(found))
        return 0
    result: dict[str, Any] = {"config": arguments.config, "batch_size": config.train.batch_size, "measured": []}
    # Once in each order, so that whatever else the machine does affects all alike.
    ascending = [in_a_process(devices, *argv, "--child=measure") for devices in DEVICES]
    descending = [in_a_process(devices, *argv, "--child=measure") for devices in reversed(DEVICES)]
    for one, other in zip(ascending, reversed(descending), strict=True):
        turns = [one["step_seconds"], other["step_seconds"]]
        result["measured"].append({**one, "step_seconds": statistics.mean(turns), "turns": turns})
    result["paper"] = [
        paper(name, in_a_process(2, f"--config={name}", "--child=count")) for name in arguments.paper.split()
    ]
    result["hardware"] = [hardware._asdict() for hardware in HARDWARE]
    show(result)
    write(arguments.output, result)
    return 0


def show(result: dict[str, Any]) -> None:
    print(f"{result['config']}, global batch {result['batch_size']}, on virtual devices of one CPU\n")
    print("| devices | seconds a step | times one device | all-reduces | MB |\n| --: | --: | --: | --: | --: |")
    for row in result["measured"]:
        sums = row["collectives"].get("all-reduce", {"count": 0, "bytes": 0})
        slower = row["step_seconds"] / result["measured"][0]["step_seconds"]
        print(
            f"| {row['devices']} | {row['step_seconds']:.3f} | {slower:.2f} | {sums['count']} | "
            f"{sums['bytes'] / 1e6:.2f} |"
        )
    kinds = {kind for row in result["measured"] for kind in row["collectives"]}
    print(f"\nKinds of collectives: {', '.join(sorted(kinds)) or 'none'}.\n")
    print("On paper, the smallest batch at which computing is 80 % of the step:\n")
    print("| recipe | hardware | GFLOP an image | all-reduces, MB | batch (a device) | compute, sums ms | images/s |")
    print("| :-- | :-- | --: | --: | --: | --: | --: |")
    for recipe in result["paper"]:
        sums = recipe["collectives"]["all-reduce"]
        for row in recipe["model"]:
            times = row["milliseconds"]
            print(
                f"| {recipe['config']} | {row['hardware']} | {recipe['operations'] / 1e9:.1f} | {sums['count']}, "
                f"{sums['bytes'] / 1e6:.1f} | {row['batch']} ({row['batch_a_device']}) | {times['compute']:.2f}, "
                f"{times['all-reduce']:.2f} | {row['images_per_second']:,.0f} |"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
