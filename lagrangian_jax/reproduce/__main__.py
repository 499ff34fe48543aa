"""Reproduces the paper's tables and figures, and trains the networks that are missing.

    python -m lagrangian_jax.reproduce table1 --workdir=runs/paper --dry-run
    python -m lagrangian_jax.reproduce all --preset=quick --workdir=runs/quick

NAME is table1 to table7, f2b, figure2 to figure5, figure8, figure9, or all. Networks are kept in
``DIR/networks/<configuration>-<method>/`` and shared; the same command, given again, resumes where it stopped. Set
fields of a configuration as ``--cifar10.train.epochs=10``. Exit codes: 0 done; 1 something was left out or stopped, and
the message says why; 2 wrong usage; 75 asked to stop, with the state saved: run the same command again.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from lagrangian_jax import config as configuration
from lagrangian_jax.names import unknown


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lagrangian_jax.reproduce",
        description=__doc__.splitlines()[0],
        epilog="Set fields of a configuration as --CONFIGURATION.FIELD=VALUE, such as --cifar10.train.epochs=10.",
    )
    parser.add_argument("name", help="table1 ... table7, f2b, figure2 ... figure5, figure8, figure9, or all")
    parser.add_argument("--workdir", required=True, type=configuration.path, help="where networks and results are kept")
    parser.add_argument("--preset", default="paper", help="paper, fast, slim, comparison or quick")
    parser.add_argument("--methods", default="", help="only networks of these training methods, separated by spaces")
    parser.add_argument(
        "--use", action="append", default=[], metavar="NAME=WORKDIR", help="a trained network elsewhere"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done, and what it costs")
    parser.add_argument("--rate", type=_rate, help="passes per second that --dry-run assumes; otherwise measured")
    arguments, rest = parser.parse_known_args(argv)
    try:
        configuration.prepare_jax(configuration.default())
        names, bench = prepare(arguments, rest)
    except (configuration.UsageError, ValueError) as error:
        return configuration.fail(str(error), code=2)
    work = (show_plan, names, bench, arguments.rate) if arguments.dry_run else (make, names, bench)
    return configuration.guarded(*work)


def prepare(arguments: argparse.Namespace, rest: list[str]) -> tuple[list[str], Any]:
    """The experiments' names and the workbench; raises ValueError for invalid arguments."""
    import jax

    from lagrangian_jax.reproduce import networks, workbench
    from lagrangian_jax.reproduce.experiments import EXPERIMENTS

    names = list(EXPERIMENTS) if arguments.name == "all" else [arguments.name]
    methods = tuple(arguments.methods.split())
    if names[0] not in EXPERIMENTS:
        raise unknown("table or figure", arguments.name, (*EXPERIMENTS, "all"))
    if arguments.preset not in networks.PRESETS:
        raise unknown("preset", arguments.preset, networks.PRESETS)
    if arguments.preset == "quick":
        jax.config.update("jax_disable_most_optimizations", True)  # nearly all of its time is compilation
    every = {work.network.name: work.network for experiment in EXPERIMENTS.values() for work in experiment.work}
    known = sorted({network.method for network in every.values()})
    if strange := set(methods) - set(known):
        parts = " ".join(methods).replace(",", " ")
        if set(parts.split()) <= set(known):  # some names contain a comma
            raise ValueError(f"--methods: separate them by spaces, --methods='{parts}'; got {arguments.methods!r}")
        raise unknown("method", min(strange), known)
    used = dict(_elsewhere(given, every) for given in arguments.use)
    overrides = networks.read_overrides(rest)
    bench = workbench.Workbench(arguments.workdir, arguments.preset, overrides, used, methods)
    chosen = {name: bench.chosen(EXPERIMENTS[name].work) for name in names}
    if not any(chosen.values()):
        there = sorted({work.network.method for name in names for work in EXPERIMENTS[name].work if not work.helps})
        raise ValueError(f"--methods: {arguments.name} is of {', '.join(there)}; got {arguments.methods!r}")
    wanted = dict.fromkeys(each.network for work in chosen.values() for each in work)
    networks.check_overrides(list(wanted), arguments.preset, overrides)
    return [name for name in names if chosen[name]], bench


def _elsewhere(given: str, every: Mapping[str, Any]) -> tuple[str, pathlib.Path]:
    """The network's name and its work directory, from ``--use``."""
    name, _, text = given.partition("=")
    path = pathlib.Path(text).expanduser()
    if not text:
        raise ValueError(f"--use: expected NAME=WORKDIR, such as cifar10-lagrangian=runs/cifar10; got {given!r}")
    if name not in every:
        raise unknown("network", name, every)
    if not (path / "weights.safetensors").is_file():
        raise ValueError(f"--use: {path} holds no trained network (weights.safetensors)")
    return name, path


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of passes above 0, got {text}")
    return rate


def show_plan(names: list[str], bench: Any, rate: float | None) -> None:
    from lagrangian_jax.reproduce import plan
    from lagrangian_jax.reproduce.experiments import EXPERIMENTS

    print("\n".join(plan.lines(bench, [EXPERIMENTS[name] for name in names], rate)))


def make(names: list[str], bench: Any) -> None:
    """Makes one after the other; raises an error at the end that says what could not be made."""
    from lagrangian_jax.reproduce import output
    from lagrangian_jax.reproduce.experiments import EXPERIMENTS

    bench.folder.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    for name in names:
        bench.left_out.clear()
        try:
            outcome = EXPERIMENTS[name].make(bench, EXPERIMENTS[name].work)
        except (ValueError, FileNotFoundError, configuration.NotFinite) as error:
            bench.left_out.append(str(error))
        else:
            print(f"\n{output.write(bench.folder, name, EXPERIMENTS[name], outcome, bench).text()}", flush=True)
            print(f"\n{name}: {bench.folder / name}.md", flush=True)
        missing += [f"{name}: {reason}" for reason in bench.left_out]
    if missing:
        raise ValueError("left out:\n  " + "\n  ".join(missing) if len(missing) > 1 else missing[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
