"""Trains, evaluates, reports: ``python -m lagrangian_jax.main --config=configs/cifar10.py --workdir=runs/cifar10``.

Goes on where a work directory stopped. Exit codes: 0 done; 1 stopped (the message says why); 2 wrong input; 75 asked to
stop, state saved, run the same command again.
"""

import argparse
import os
import pathlib
import sys

from lagrangian_jax import config as configuration


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lagrangian_jax.main", description=__doc__)
    parser.add_argument("--workdir", help="where everything is written; runs/<configuration> by default")
    try:
        arguments, config = configuration.parse(argv, parser)
        name = arguments.config.removesuffix(".py").replace(".py:", "-").replace(":", "-").replace(",", "-")
        workdir = pathlib.Path(arguments.workdir or f"runs/{pathlib.Path(name).name}")
        if config.deterministic:
            configuration.make_deterministic()
        return run(config, workdir)
    except configuration.UsageError as error:
        configuration.fail(str(error))
        return 2


def run(config: "configuration.ConfigDict", workdir: pathlib.Path) -> int:
    """Trains, evaluates and reports in ``workdir``; returns the exit code."""
    from lagrangian_jax import data, parallel, report
    from lagrangian_jax.evaluation.workdir import evaluate
    from lagrangian_jax.train import Interrupted, NotFinite, train
    from lagrangian_jax.workdir import open_workdir

    try:
        parallel.start()
        with open_workdir(workdir, config):
            dataset = data.load(config.data)
            trained = train(config, workdir, dataset)
            evaluate(config, workdir, dataset, trained.variables, trained.summary)
            print(report.write(workdir))
            print(f"\nreport: {workdir / 'report.html'}")
    except Interrupted as stopped:
        configuration.fail(str(stopped))
        return os.EX_TEMPFAIL
    except (NotFinite, ValueError, OSError) as error:
        configuration.fail(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
