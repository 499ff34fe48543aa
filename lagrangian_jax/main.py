"""Trains, evaluates and reports: ``python -m lagrangian_jax.main --config=configs/cifar10.py --workdir=runs/cifar10``.

Resumes the run in the work directory, if there is one. Exit codes: 0, done; 1, failed, and the message says why; 2,
wrong usage; 75, asked to stop, and the state is saved: run the same command again; 130, ended at once by Ctrl-C.
"""

import argparse
import json
import pathlib
import re
import sys
from typing import Any

from ml_collections import ConfigDict

from lagrangian_jax import config as configuration


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lagrangian_jax.main", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=configuration.path, help="for all output; runs/<configuration> by default")
    try:
        arguments, config = configuration.parse(argv, parser)
        configuration.prepare_jax(config)
    except configuration.UsageError as error:
        return configuration.fail(str(error), code=2)
    name = re.sub(r"[^\w.-]+", "-", pathlib.Path(arguments.config).name.replace(".py", "")).strip("-")
    return configuration.guarded(run, config, arguments.workdir or pathlib.Path(f"runs/{name}"))


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, evaluates and reports in ``workdir``."""
    from lagrangian_jax import data, evaluation, parallel
    from lagrangian_jax.build import check, check_evaluation, initial_variables
    from lagrangian_jax.harness import evaluate
    from lagrangian_jax.workdir import open_workdir

    with configuration.usage():
        evaluation.suites.get(config.evaluation.suite)  # reports an unknown name now, not after training
    parallel.start()
    dataset = data.load(config.data)
    with configuration.usage():
        check(config, dataset)  # a configuration that cannot run claims no work directory
        check_evaluation(config, dataset)
        if config.init_from and not (workdir / "checkpoints").exists():  # a resumed run has its own
            initial_variables(config, len(dataset.classes))
    with open_workdir(workdir, config):
        trained = train_and_keep(config, workdir, dataset)
        evaluate(config, workdir, dataset, trained.variables, trained.summary)


def train_and_keep(config: ConfigDict, workdir: pathlib.Path, dataset: Any) -> Any:
    """Calls `lagrangian_jax.train.train` and writes its outcome to ``weights.safetensors`` and ``training.json``."""
    import jax

    from lagrangian_jax import interop, report
    from lagrangian_jax.build import build_network
    from lagrangian_jax.train import train
    from lagrangian_jax.workdir import write_whole

    try:
        trained = train(config, workdir, dataset)
    except configuration.NotFinite:
        if jax.process_index() == 0:
            report.write(workdir)  # shows the failure and the metrics that led to it
        raise
    if jax.process_index() == 0:
        write_whole(workdir / "training.json", json.dumps(trained.summary, indent=2) + "\n")
        weights = workdir / ".weights.safetensors"
        interop.save(weights, build_network(config, len(dataset.classes)), trained.variables)
        weights.replace(workdir / "weights.safetensors")
    return trained


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
