"""What the layers of a training step cost on a CPU, for several ways to compute them, and how sums round.

    python -m benchmarks.layers --output=results/layers.json

XLA's library YNN computes ``all`` that it can by default; products and ``sums`` only, as `config.prepare_jax` sets it
(convolutions go to Eigen); or ``none``. ``plain`` is ``sums`` without Winograd convolutions. The shapes are those of a
ResNet-18's four stages. Milliseconds are the least of several rounds, in turns, so that all ways see the same machine;
the error of a sum over the batch and positions is relative, against float64.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.output import write
from lagrangian_jax.config import YNN
from lagrangian_jax.models.layers import BatchNorm, convolution

SHAPES = ((32, 64), (16, 128), (8, 256), (4, 512))  # pixels a side, channels
WAYS: dict[str, tuple[dict[str, Any], str]] = {  # the compiler's options, and the precision of products
    "all": ({}, "default"),
    "sums": ({"xla_cpu_experimental_ynn_fusion_type": YNN}, "default"),
    "none": ({"xla_cpu_experimental_ynn_fusion_type": ""}, "default"),
    "plain": ({"xla_cpu_experimental_ynn_fusion_type": YNN}, "highest"),
}


def convolve(x: Array, kernel: Array) -> Array:
    return convolution(x, kernel, 1, ((1, 1), (1, 1)))


def normalise(x: Array) -> Array:
    layer = BatchNorm()
    return layer.apply(layer.init(jax.random.key(0), x, train=False), x, train=True, mutable=["batch_stats"])[0]


PIECES: dict[str, Callable[[Array, Array, Array], Any]] = {
    "convolution": lambda x, kernel, y: convolve(x, kernel),
    "its input gradient": lambda x, kernel, y: jax.vjp(lambda x: convolve(x, kernel), x)[1](y),
    "its kernel gradient": lambda x, kernel, y: jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](y),
    "normalisation": lambda x, kernel, y: normalise(x),
    "its gradient": lambda x, kernel, y: jax.vjp(normalise, x)[1](y),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    options = parser.parse_args(arguments)
    rows = [measure(options.batch, size, channels, options.rounds) for size, channels in SHAPES]
    write(options.output, {"rows": rows})
    return 0


def measure(batch: int, size: int, channels: int, rounds: int) -> dict[str, Any]:
    """Measures and prints, at one shape and for each of `WAYS`: milliseconds of each piece, and the error of a sum."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(0.5, 1, (batch, size, size, channels)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(0, (9 * channels) ** -0.5, (3, 3, channels, channels)), jnp.float32)
    calls = {
        name: {way: jax.jit(piece, compiler_options=options) for way, (options, _) in WAYS.items()}
        for name, piece in PIECES.items()
    }
    least = {name: dict.fromkeys(WAYS, np.inf) for name in PIECES}
    for _ in range(rounds + 1):  # the first compiles
        for name, by in calls.items():
            for way, call in by.items():
                with jax.default_matmul_precision(WAYS[way][1]):
                    started = time.perf_counter()
                    jax.block_until_ready(call(x, kernel, y))
                    least[name][way] = min(least[name][way], 1000 * (time.perf_counter() - started))
    exact = np.sum(np.asarray(x), (0, 1, 2), np.float64)
    errors = {
        way: float(np.max(np.abs(jax.jit(lambda x: jnp.sum(x, (0, 1, 2)), compiler_options=options)(x) / exact - 1)))
        for way, (options, _) in WAYS.items()
    }
    print(f"{f'{batch} x {size} x {size} x {channels}':34s}" + "".join(f"{way:>10}" for way in WAYS))
    for name, by in least.items():
        print(f"  {name:32s}" + "".join(f"{value:10.2f}" for value in by.values()) + "  ms")
    print(f"  {'error of a sum':32s}" + "".join(f"{value:10.1e}" for value in errors.values()))
    return {"shape": x.shape, "milliseconds": least, "error_of_a_sum": errors}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
