"""Evaluates a configuration: runs its suite on the test images, and keeps the results in the work directory."""

import contextlib
import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lagrangian_jax import config as configuration
from lagrangian_jax import data, evaluation, interop, report
from lagrangian_jax.build import build_network, distance_weights
from lagrangian_jax.models.forward import apply
from lagrangian_jax.progress import progress_bar
from lagrangian_jax.signals import Signals
from lagrangian_jax.train import read_shares
from lagrangian_jax.workdir import fixed, write_whole


def evaluate(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    variables: Any,
    training: dict[str, Any] | None,
    trained_with: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Runs the configured suite on the test set, writes ``results.json`` and the report, and prints the table.

    Args:
      config: its ``evaluation`` section says what to run.
      workdir: where rows of finished attacks are kept and looked for.
      dataset: from `data.load`.
      variables: weights of the configured network.
      training: the summary of the training run, or None.
      trained_with: the plain configuration of the training run, if it differs from ``config``.
      notes: what a reader of the results must know about the weights; also printed at once.
    """
    if jax.process_index() == 0:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    result = attack(config, workdir, dataset, variables, test_images(config, dataset), config.evaluation.suite)
    if jax.process_index() != 0:
        return
    results = to_json(result, config, dataset, training, trained_with)
    results["failures"] = [*notes, *results["failures"]]
    write_whole(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    info = interop.model_info(results)
    if info is not None:
        write_whole(workdir / "model_info.json", json.dumps(info, indent=2) + "\n")
    print(report.write(workdir))
    print(f"\nreport: {workdir / 'report.html'}")


def test_images(config: ConfigDict, dataset: data.Dataset) -> data.Split:
    """The test images that a configuration evaluates on: all, or a fixed subset."""
    test = dataset.test
    if config.evaluation.examples:
        test = test.take(data.hold_out(test.labels, min(config.evaluation.examples, len(test.labels)))[1])
    return read_shares(test, config.data.image_size, config.data.workers)


def attack(
    config: ConfigDict,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    variables: Any,
    images: data.Split,
    suite: str | Sequence[evaluation.Row],
) -> evaluation.Result:
    """`lagrangian_jax.evaluation.run` on the configured network, with progress bars; on SIGTERM it keeps what is done.

    Args:
      config, workdir, dataset, variables: as in `evaluate`.
      images: from `test_images`, or other images of the data set.
      suite: a name or rows.
    """
    network = build_network(config, len(dataset.classes))
    bars: dict[str, Any] = {}

    def progress(name: str, done: int, total: int) -> None:
        if jax.process_index() == 0:
            if name not in bars:
                bars[name] = opened.enter_context(progress_bar(total, "image", name))
            bars[name].update(done - bars[name].n)
            if done == total:
                bars[name].close()

    # If a bar is open when an attack stops, its line has to end before the message that says so.
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
    result: evaluation.Result,
    config: ConfigDict,
    dataset: data.Dataset,
    training: dict[str, Any] | None,
    trained_with: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``results.json``: the result, and which data, network and training it belongs to.

    With ``training``, it also has the configuration that the training followed (``trained_with``, else ``config``),
    without the fields that may differ between its sittings.
    """
    results = result.to_json()
    results["data"] |= {"name": dataset.name, "split": "test", "remark": dataset.remark, "classes": dataset.classes}
    given = {name: value for name, value in configuration.plain(config.network).items() if value is not None}
    results["network"] |= given | {"precision": config.precision}
    results["training"] = training
    followed = trained_with or configuration.plain(config)
    results["configuration"] = fixed(followed) if training else None  # unknown for weights from elsewhere
    return results
