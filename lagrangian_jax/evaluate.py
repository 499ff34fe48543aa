"""Evaluates a network with a suite of attacks, without training.

    python -m lagrangian_jax.evaluate --config=configs/cifar10.py --weights=model.safetensors \
        --suite=cifar10_table1 --workdir=runs/model

``--weights`` is a file (safetensors, a PyTorch state dict, Flax msgpack), an orbax directory, or the work directory of
a training run; the configuration says which network and data set, for instance of a published checkpoint

    --config=cifar10 --config.network.name=resnet32 --config.network.normalisation=imagenet

An attack whose rows are in the work directory is not run again. With AutoAttack in the suite, the work directory gets
``model_info.json``, the result in RobustBench's form.
"""

import argparse
import contextlib
import functools
import json
import pathlib
import sys
from typing import Any

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
    from lagrangian_jax.workdir import made_with, open_workdir, same_network, summary_of_training, weights_file

    trained_with = made_with(weights)
    with configuration.usage():
        evaluation.suites.get(config.evaluation.suite)  # an unknown name is told before anything is loaded
        same_network(weights, "--weights", config)
    file = weights_file(weights, "--weights")
    parallel.start()
    dataset = data.load(config.data)
    with configuration.usage():
        check_evaluation(config, dataset)
    network = build_network(config, len(dataset.classes))
    size = config.data.image_size
    variables = interop.load(file, network, (size, size, 3))
    with open_workdir(workdir, config):
        evaluate(config, workdir, dataset, variables, summary_of_training(weights), trained_with)


def evaluate(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: Any,
    variables: Any,
    training: dict[str, Any] | None,
    trained_with: dict[str, Any] | None = None,
) -> None:
    """Runs the configured suite on the test set, writes ``results.json`` and the report, prints the table.

    Args:
      config: its ``evaluation`` section says what to run.
      workdir: where rows of finished attacks are kept and looked for.
      dataset: from `data.load`.
      variables: weights of the configured network.
      training: the summary of the training run, or None.
      trained_with: the plain configuration of the training run, where it is another than ``config``.
    """
    import jax

    from lagrangian_jax import interop, report
    from lagrangian_jax.workdir import write_whole

    result = attack(config, workdir, dataset, variables, test_images(config, dataset), config.evaluation.suite)
    if jax.process_index() != 0:
        return
    results = to_json(result, config, dataset, training, trained_with)
    write_whole(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    info = interop.model_info(results)
    if info is not None:
        write_whole(workdir / "model_info.json", json.dumps(info, indent=2) + "\n")
    print(report.write(workdir))
    print(f"\nreport: {workdir / 'report.html'}")


def test_images(config: ConfigDict, dataset: Any) -> Any:
    """The test images that a configuration evaluates on, a `data.Split`: all, or a fixed subset."""
    from lagrangian_jax import data
    from lagrangian_jax.train import read_shares

    test = dataset.test
    if config.evaluation.examples:
        test = test.take(data.hold_out(test.labels, min(config.evaluation.examples, len(test.labels)))[1])
    return read_shares(test, config.data.image_size, config.data.workers)


def attack(config: ConfigDict, workdir: pathlib.Path, dataset: Any, variables: Any, images: Any, suite: Any) -> Any:
    """`lagrangian_jax.evaluation.run` on the configured network, with progress bars; SIGTERM keeps what is done.

    Args:
      config, workdir, dataset, variables: of `evaluate`.
      images: a `data.Split`.
      suite: a name or rows.
    """
    import jax
    from tqdm import tqdm

    from lagrangian_jax import evaluation
    from lagrangian_jax.build import build_network, distance_weights
    from lagrangian_jax.models.forward import apply
    from lagrangian_jax.signals import Signals

    network = build_network(config, len(dataset.classes))
    bars: dict[str, tqdm] = {}

    def progress(name: str, done: int, total: int) -> None:
        if jax.process_index() == 0:
            if name not in bars:
                bar = tqdm(total=total, desc=name, unit="image", file=sys.stderr, dynamic_ncols=True)
                bars[name] = opened.enter_context(bar)
            bars[name].update(done - bars[name].n)
            if done == total:
                bars[name].close()

    # A bar that is open when an attack stops ends its line before the message that says so.
    with Signals() as signals, contextlib.ExitStack() as opened:
        return evaluation.run(
            functools.partial(apply, network),
            images.images,
            images.labels,
            suite=suite,
            key=config.seed,
            batch_size=config.evaluation.batch_size,
            index=images.indices,
            variables=variables,
            distances=distance_weights(config),
            workdir=workdir,
            progress=progress,
            stop=signals.received,
        )


def to_json(
    result: Any,
    config: ConfigDict,
    dataset: Any,
    training: dict[str, Any] | None,
    trained_with: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``results.json``: the evaluation's, and what data, network and training it is of.

    With ``training`` also the configuration that it followed (``trained_with``, else ``config``), less what may differ
    between its sittings.
    """
    from lagrangian_jax.workdir import fixed

    results = result.to_json()
    results["data"] |= {"name": dataset.name, "split": "test", "remark": dataset.remark, "classes": dataset.classes}
    given = {name: value for name, value in configuration.plain(config.network).items() if value is not None}
    results["network"] |= given | {"precision": config.precision}
    results["training"] = training
    followed = trained_with or configuration.plain(config)
    results["configuration"] = fixed(followed) if training else None  # that of others is not known
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
