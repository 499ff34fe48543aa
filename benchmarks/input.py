"""Whether the device waits for its data: a training step fed as in training, against one on resident data.

    python -m benchmarks.input --config=cifar10:lagrangian,fast
    python -m benchmarks.input --config=imagenet100:lagrangian,fast --output=results/input_imagenet.json

A configuration whose data live on the device is fed indices; one that streams is fed from JPEG files of ImageNet's
usual size, 500 x 375, written to a temporary folder. Both sides run the same program, in turns. Waiting is the share of
a fed run that the host spends on getting batches before it can launch the next step. It costs time only where the
device has no work left meanwhile; the ratio tells how much.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.output import write
from lagrangian_jax import config as configuration
from lagrangian_jax import data, parallel
from lagrangian_jax.build import build_method, build_network, build_optimizer, build_schedule
from lagrangian_jax.data.flowers import FolderSource
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, streaming_step, training_step
from lagrangian_jax.train import batch_indices

STREAMED = ("imagenet100", "flowers")
CLASSES = 10


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side, in turns")
    parser.add_argument("--calls", type=int, default=4, help="calls of the program in a round")
    parser.add_argument("--files", type=int, default=1024, help="number of files to stream, at least a batch")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    try:
        arguments, config = configuration.parse(argv, parser)
    except configuration.UsageError as error:
        return configuration.fail(str(error), code=2)
    configuration.prepare_jax(config)
    network, optimizer = build_network(config, CLASSES), build_optimizer(config, build_schedule(config, 100))
    shape = (config.data.image_size, config.data.image_size, 3)
    state = initial_state(jax.random.key(0), network, shape, optimizer)
    state = parallel.replicate(state, parallel.mesh())
    with contextlib.ExitStack() as stack:
        if config.data.name in STREAMED:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            source = photographs(pathlib.Path(folder), max(arguments.files, config.train.batch_size))
            times = measure(state, *streamed(config, source, stack), arguments.rounds, arguments.calls)
        else:
            times = measure(state, *resident(config), arguments.rounds, arguments.calls)
    result = {
        "config": arguments.config,
        "batch_size": config.train.batch_size,
        "image_size": config.data.image_size,
        **times,
    }
    show(result)
    write(arguments.output, result)
    return 0


def show(result: dict[str, Any]) -> None:
    seconds = result["step_seconds"]
    print(f"{result['config']}, batch {result['batch_size']}")
    print(f"{seconds['fed']:.4f} s a step as fed, {seconds['resident']:.4f} on data there, ratio {result['ratio']:.3f}")
    print(f"{100 * result['waiting']:.1f} % of the time the host waited for a batch")


def resident(config: configuration.ConfigDict) -> tuple[Callable, int, Iterator[tuple], int]:
    """``run(state, *batch)``, steps per call, batches, and how many of them are made ahead; for resident images."""
    mesh, size, batch = parallel.mesh(), config.data.image_size, config.train.batch_size
    count = config.train.steps_per_call or (1 if jax.default_backend() == "cpu" else 50)
    examples, rng = 2 * count * batch, np.random.default_rng(0)
    pixels = rng.integers(0, 256, (examples, size, size, 3), np.uint8)
    images, labels = parallel.replicate((pixels, rng.integers(0, CLASSES, examples).astype(np.int32)), mesh)

    def batches() -> Iterator[tuple]:
        step = 0
        while True:
            index = batch_indices(0, step, count, 2 * count, examples, batch)
            yield images, labels, parallel.split(index, mesh, axis=1)
            step += count

    return resident_steps(step_of(config, config.augmentation.to_dict()), mesh), count, batches(), 0


def streamed(
    config: configuration.ConfigDict, source: data.Source, stack: contextlib.ExitStack
) -> tuple[Callable, int, Iterator[tuple], int]:
    """The same, for images that are decoded on the fly."""
    mesh = parallel.mesh()
    stream = data.stream(
        source,
        batch_size=config.train.batch_size,
        train=True,
        image_size=config.data.image_size,
        workers=config.data.workers,
    )
    stack.callback(stream.close)

    def batches() -> Iterator[tuple]:
        for batch in stream:
            yield parallel.split((batch["images"], batch["labels"], batch["index"]), mesh)

    # Each worker's threads read ahead, and it buffers two more batches; without workers, this process's threads do.
    ahead = 5 * config.data.workers or (os.cpu_count() or 1) + 1
    return streaming_step(step_of(config, None), mesh, len(source)), 1, batches(), ahead


def step_of(config: configuration.ConfigDict, augmentation: dict | None) -> Callable:
    network, method = build_network(config, CLASSES), build_method(config)
    return training_step(network, method, build_optimizer(config, build_schedule(config, 100)), augmentation, 100, 0.0)


def measure(
    state: Any,
    run: Callable,
    steps: int,
    batches: Iterator[tuple],
    ahead: int,
    rounds: int,
    calls: int,
) -> dict[str, Any]:
    """Median seconds per step, fed and on one resident batch; the share of a fed round spent on getting batches."""
    resident_batch = next(batches)
    state, metrics = run(state, *resident_batch)  # compiles
    jax.block_until_ready(metrics)
    times: dict[str, list[float]] = {"fed": [], "resident": []}
    waits = []
    for _ in range(rounds):
        for side, values in times.items():
            for _ in range(ahead if side == "fed" else 0):
                next(batches)  # those made beforehand would hide how long one takes
            wait, before = 0.0, None
            started = time.perf_counter()
            for _ in range(calls):
                asked = time.perf_counter()
                batch = next(batches) if side == "fed" else resident_batch
                wait += time.perf_counter() - asked
                state, metrics = run(state, *batch)
                jax.block_until_ready(before)  # one call late, as in training
                before = metrics
            jax.block_until_ready(metrics)
            values.append((time.perf_counter() - started) / (calls * steps))
            if side == "fed":
                waits.append(wait / (time.perf_counter() - started))
    seconds = {side: statistics.median(values) for side, values in times.items()}
    ratio = seconds["fed"] / seconds["resident"]
    return {"step_seconds": seconds, "ratio": ratio, "waiting": statistics.median(waits)}


def photographs(folder: pathlib.Path, count: int) -> FolderSource:
    """Writes JPEG files as detailed as photographs, about 100 kB each: noise of several scales."""
    rng, files = np.random.default_rng(0), []
    for number in range(count):
        if number < 16:
            layers = [rng.normal(size=(375 // scale + 1, 500 // scale + 1, 3)) for scale in (1, 4, 64)]
            image = sum(
                deviation * np.kron(layer, np.ones((scale, scale, 1)))[:375, :500]
                for layer, scale, deviation in zip(layers, (1, 4, 64), (10, 20, 40), strict=True)
            )
            content = Image.fromarray(np.clip(128 + image, 0, 255).astype(np.uint8))
        files.append(folder / f"{number}.jpg")
        if number < 16:
            content.save(files[-1], quality=90)
        else:
            files[-1].write_bytes(files[number % 16].read_bytes())
    return FolderSource(tuple(files), (np.arange(count) % CLASSES).astype(np.int32), np.arange(count))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
