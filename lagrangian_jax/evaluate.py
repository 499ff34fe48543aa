"""Evaluates a network with a suite of attacks, without training.

    python -m lagrangian_jax.evaluate --config=configs/cifar10.py --weights=model.safetensors \
        --suite=cifar10_table1 --workdir=runs/model

``--weights`` is a file (safetensors, a PyTorch state dict, Flax msgpack), an orbax directory, or the work directory of
a training run; the configuration names the network and the data set, for instance those of a published checkpoint:

    --config=cifar10 --config.network.name=resnet32 --config.network.normalisation=imagenet

An attack whose rows are in the work directory is not run again. With AutoAttack in the suite, the work directory gets
``model_info.json``, the result in RobustBench's form.
"""

import argparse
import pathlib
import sys

from ml_collections import ConfigDict

from lagrangian_jax import config as configuration


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lagrangian_jax.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, type=configuration.path, help="a file, or a work directory")
    parser.add_argument("--suite", help="overrides config.evaluation.suite")
    parser.add_argument("--workdir", required=True, type=configuration.path, help="for rows, results and the report")
    try:
        arguments, config = configuration.parse(argv, parser)
        if arguments.suite:
            config.evaluation.suite = arguments.suite
        configuration.prepare_jax(config)
    except configuration.UsageError as error:
        return configuration.fail(str(error), code=2)
    return configuration.guarded(_evaluate_weights, config, arguments.workdir, arguments.weights)


def _evaluate_weights(config: ConfigDict, workdir: pathlib.Path, weights: pathlib.Path) -> None:
    from lagrangian_jax import data, evaluation, interop, parallel
    from lagrangian_jax.build import build_network, check_evaluation
    from lagrangian_jax.harness import evaluate
    from lagrangian_jax.workdir import (
        made_with,
        open_workdir,
        other_images,
        same_network,
        summary_of_training,
        weights_file,
    )

    trained_with = made_with(weights)
    with configuration.usage():
        evaluation.suites.get(config.evaluation.suite)  # refuse an unknown name before anything is loaded
        same_network(weights, "--weights", config)
    file = weights_file(weights, "--weights")
    parallel.start()
    dataset = data.load(ConfigDict({**config.data, "validation": 0}))  # nothing is trained, so hold nothing out
    with configuration.usage():
        check_evaluation(config, dataset)
    network = build_network(config, len(dataset.classes))
    size = config.data.image_size
    variables = interop.load(file, network, (size, size, 3))
    notes = other_images(weights, config, dataset)
    with open_workdir(workdir, config):
        evaluate(config, workdir, dataset, variables, summary_of_training(weights), trained_with, notes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
