"""What faster arithmetic changes: logits, predictions and robust accuracy of a trained network on test images.

    python -m benchmarks.exactness --config=cifar10:lagrangian,slim --weights=runs/slim --output=results/exactness.json

``plain`` is float32 under ``jax.default_matmul_precision("highest")``, with convolutions computed as they are defined;
``float32`` is the default (Winograd convolutions on a CPU, whatever the device does elsewhere); ``bfloat16`` is
``--config.precision=bfloat16``, as in the preset ``fast``. PGD attacks the network in the arithmetic being measured.
"""

import argparse
import functools
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.output import write
from lagrangian_jax import config as configuration
from lagrangian_jax import data, evaluation, interop
from lagrangian_jax.build import build_network
from lagrangian_jax.harness import test_images
from lagrangian_jax.models.forward import apply
from lagrangian_jax.workdir import weights_file

ARITHMETIC = {"plain": ("float32", "highest"), "float32": ("float32", "default"), "bfloat16": ("bfloat16", "default")}
ATTACKS = {"pgd_linf": {"bound": 8 / 255, "steps": 10}, "pgd_l2": {"bound": 1.0, "steps": 10}}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, type=pathlib.Path, help="a file of weights, or a work directory")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    try:
        arguments, config = configuration.parse(argv, parser)
    except configuration.UsageError as error:
        return configuration.fail(str(error), code=2)
    configuration.prepare_jax(config)
    return configuration.guarded(_measure, config, arguments.weights, arguments.output)


def _measure(config: ConfigDict, weights: pathlib.Path, output: pathlib.Path | None) -> None:
    dataset = data.load(config.data)
    size, images = config.data.image_size, test_images(config, dataset)
    network = build_network(config, len(dataset.classes))
    variables = interop.load(weights_file(weights, "--weights"), network, (size, size, 3))
    result = {
        "seed": config.seed,
        "data": {"name": dataset.name, "remark": dataset.remark, "examples": len(images.labels)},
        **compare(config, len(dataset.classes), variables, images),
    }
    for name, row in result["arithmetic"].items():
        print(f"{name:10s}" + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    write(output, result)


def compare(config: ConfigDict, classes: int, variables: Any, images: data.Split) -> dict[str, Any]:
    """Per arithmetic: largest and rms change of a logit, and changed predictions, against ``plain``; accuracies."""
    found: dict[str, dict[str, float]] = {}
    pixels, batch = images.images.astype(np.float32) / np.float32(255), config.evaluation.batch_size
    exact = None
    for name, (precision, products) in ARITHMETIC.items():
        config = config.copy_and_resolve_references().unlock()
        config.precision = precision
        network = build_network(config, classes)
        with jax.default_matmul_precision(products):
            logits_fn = jax.jit(functools.partial(apply, network, variables))
            parts = [logits_fn(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
            logits = np.concatenate([np.asarray(part, np.float64) for part in parts])
            robust = evaluation.run(
                functools.partial(apply, network),
                images.images,
                images.labels,
                suite=[evaluation.Row(name, parameters=values) for name, values in ATTACKS.items()],
                key=config.seed,
                batch_size=batch,
                index=images.indices,
                variables=variables,
            )
        exact = logits if exact is None else exact
        found[name] = {
            "largest_change": float(np.max(np.abs(logits - exact))),
            "rms_change": float(np.sqrt(np.mean((logits - exact) ** 2))),
            "changed_predictions": int(np.sum(logits.argmax(-1) != exact.argmax(-1))),
            "clean": float(np.mean(logits.argmax(-1) == images.labels)),
            **{attack.name: attack.accuracy for attack in robust.attacks},
        }
    rms = float(np.sqrt(np.mean(exact**2)))  # type: ignore[operator]
    return {"rms_logit": rms, "attacks": {name: dict(values) for name, values in ATTACKS.items()}, "arithmetic": found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
