"""What a training step of each method costs: evaluations of the network, operations and seconds, next to PGD-10's.

    python -m benchmarks.methods --output=results/methods.json
    python -m benchmarks.methods --methods=standard,lagrangian,pgd_linf --config.network.width=64

Evaluations and operations are counted in the programs, with the parameters and the network of configs/cifar10.py.
Seconds are measured, in turns, with the configuration and presets of ``--config``, in which each method replaces the
one named there; the default is a slim network that a CPU can afford. `pgd_linf` is PGD-10, unless a preset changes it;
`pgd_5` is the same with 5 steps, which according to the paper costs as much as a Lagrangian step. Carlini and Wagner's
attack ends early where it can; the count is the most that it may take.
"""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import operations
from benchmarks.output import write
from benchmarks.train_step import in_turns, ours
from lagrangian_jax import config as configuration
from lagrangian_jax import methods
from lagrangian_jax.build import build_method, build_network, build_optimizer
from lagrangian_jax.names import unknown
from lagrangian_jax.parallel import AXIS
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, training_step

NAMES = (*methods.names(), "pgd_5")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="", help="comma-separated; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of measurement; 0 counts only")
    parser.add_argument("--seconds", type=float, default=0.0, help="per method and round; at least two steps")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    parser.add_argument("--config", default="cifar10:slim", help="as for training; each method replaces its method")
    arguments, overrides = parser.parse_known_args(argv)
    names = arguments.methods.split(",") if arguments.methods else NAMES
    try:
        configurations = {name: measured(name, arguments.config, overrides) for name in names}
        config = configurations[names[0]]
        configuration.prepare_jax(config)
        for each in configurations.values():
            build_method(each)  # raises for values that it does not take
    except (configuration.UsageError, ValueError) as error:
        return configuration.fail(str(error), code=2)
    rows = {name: count(paper(name)) for name in names}
    result: dict[str, Any] = {"methods": rows}
    if arguments.rounds:
        steps = {name: ours(configurations[name]) for name in names}
        times = in_turns({name: step["call"] for name, step in steps.items()}, arguments.rounds, arguments.seconds)
        for name, values in times.items():
            rows[name]["seconds"] = statistics.median(values) / steps[name]["steps_per_call"]
        network = configuration.plain(config.network)
        device = {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
        result["measured"] = {
            **device,
            "config": arguments.config,
            "network": network,
            "precision": config.precision,
            "batch_size": config.train.batch_size,
            "methods": {name: step["method"] for name, step in steps.items()},
        }
    for row in rows.values():
        for unit in ("operations", "seconds"):
            for base in ("standard", "pgd_linf"):
                if unit in row and base in rows:
                    row[f"{unit}_over_{base}"] = row[unit] / rows[base][unit]
    show(rows)
    write(arguments.output, result)
    return 0


def paper(name: str) -> ConfigDict:
    """The paper's CIFAR-10 recipe for a method; for ``pgd_5`` that of `pgd_linf` with 5 steps."""
    if name != "pgd_5":
        return configuration.load(f"cifar10:{name}")
    config = configuration.load("cifar10:pgd_linf")
    config.method.steps = 5
    return config


def measured(name: str, spec: str, overrides: Sequence[str]) -> ConfigDict:
    """The configuration ``FILE[:method,preset,...]``, with another method instead of that one.

    Args:
      name: one of `NAMES`.
      spec: as in ``--config``.
      overrides: as ``--config.field=value``; each must suit the method.

    >>> config = measured("pgd_linf", "cifar10:lagrangian,fast", ["--config.method.steps=7"])
    >>> config.method.statistics, config.method.steps, config.precision
    ('eval', 7, 'bfloat16')
    """
    if name not in NAMES:
        raise unknown("method", name, NAMES)
    method, steps = ("pgd_linf", ["--config.method.steps=5"]) if name == "pgd_5" else (name, [])
    file, _, options = spec.partition(":")
    first, *presets = options.split(",")
    presets = presets if first in methods.names() else [first, *presets]
    given = [f"--config={file}:{','.join([method, *presets])}", *steps, *overrides]
    try:
        return configuration.parse(given, argparse.ArgumentParser())[1]
    except configuration.UsageError as error:
        raise configuration.UsageError(f"{name}: {error}") from error


def count(config: ConfigDict) -> dict[str, float]:
    """What one step costs, after any warm-up.

    Returns:
      ``gradients`` of the network by the images and other ``passes``, both for the attack alone; and ``operations`` of
      the whole step with its update, in units of one pass of the network over the batch.
    """
    method, network = build_method(config), build_network(config, 10)
    rounds = config.method.get("steps", 1)
    gradients, passes = evaluations(method, rounds)
    batch, size = config.train.batch_size, config.data.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    optimizer = build_optimizer(config, lambda step: 0.1)

    def new_state():
        return initial_state(jax.random.key(0), network, images.shape[1:], optimizer, method.memory(batch))

    state = jax.eval_shape(new_state)
    step = training_step(network, method, optimizer, None, 1, 0.0)
    run = resident_steps(step, Mesh(np.array(jax.devices()[:1]), (AXIS,)))
    labels, index = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch,), (1, batch)))
    pixels = jax.ShapeDtypeStruct(images.shape, jnp.uint8)
    whole = operations.count(run, state, pixels, labels, index, rounds=rounds)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    one = operations.count(lambda variables, images: network.apply(variables, images, train=False), variables, images)
    return {"gradients": gradients, "passes": passes, "operations": whole / one}


class Probe(nn.Module):
    """One matrix product: a pass is a product of the logits' size, a gradient by the images adds one of the images'."""

    @nn.compact
    def __call__(self, images, train=False, features=False):
        logits = nn.Dense(7)(images.reshape(len(images), -1))
        return (logits, [images]) if features else logits


def evaluations(method: methods.Method, rounds: int = 1) -> tuple[float, float]:
    """How many gradients by the images and how many other passes a method's attack takes, counted in its program.

    Args:
      method: from `methods.create`.
      rounds: how often loops run whose end depends on what they compute.

    >>> evaluations(methods.create("lagrangian"))
    (5.0, 0.0)
    """
    images, labels = jnp.zeros((5, 16, 16, 3)), jnp.zeros(5, jnp.int32)
    params = Probe().init(jax.random.key(0), images)["params"]
    keys = jax.random.split(jax.random.key(0), 5)

    def craft(keys, params, images, rows, epoch):
        network = methods.Network(Probe(), params, {})
        return method.craft(keys, network, methods.Batch(images, labels, labels), rows, epoch)

    def products_of(size):
        def cost(equation: core.JaxprEqn) -> float:
            is_product = equation.primitive.name == "dot_general"
            return float(is_product and equation.outvars[0].aval.shape == (5, size))

        return operations.total(cost, craft, keys, params, images, method.memory(5), 0.0, rounds=rounds)

    gradients = products_of(images[0].size)
    return gradients, products_of(7) - gradients


def show(rows: dict[str, dict[str, float]]) -> None:
    print(f"{'':15s} gradients  passes  operations  / standard  / pgd_linf    seconds  / standard  / pgd_linf")
    for name, row in rows.items():
        line = f"{name:15s} {row['gradients']:9.0f} {row['passes']:7.0f}"
        for unit in ("operations", "seconds"):
            for column, width in ((unit, 12), (f"{unit}_over_standard", 12), (f"{unit}_over_pgd_linf", 12)):
                line += f" {row[column]:{width - 1}.2f}" if column in row else " " * width
        print(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
