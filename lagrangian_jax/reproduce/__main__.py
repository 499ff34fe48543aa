"""The paper's tables and figures again, on networks that are trained where they are missing.

    python -m lagrangian_jax.reproduce table1 --workdir=runs/paper --dry-run
    python -m lagrangian_jax.reproduce all --preset=quick --workdir=runs/quick

NAME is table1 to table7, f2b, figure2 to figure5, figure8, figure9, or all. Networks are kept in
``DIR/networks/<configuration>-<method>/`` and shared; given again, a command goes on where it stopped. Fields of a
configuration are set as ``--cifar10.train.epochs=10``. Exit codes: 0 done; 1 something was left out or stopped, and the
message says why; 2 wrong usage; 75 asked to stop and the state is saved: run the same command again.
"""

import argparse
import pathlib
import sys
from typing import Any

from lagrangian_jax import config as configuration
from lagrangian_jax.names import unknown


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lagrangian_jax.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="table1 ... table7, f2b, figure2 ... figure5, figure8, figure9, or all")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="where networks and results are kept")
    parser.add_argument("--preset", default="paper", help="paper, fast, slim, comparison or quick")
    parser.add_argument("--methods", default="", help="only networks of these training methods, separated by spaces")
    parser.add_argument(
        "--use", action="append", default=[], metavar="NAME=WORKDIR", help="a trained network elsewhere"
    )
    parser.add_argument("--dry-run", action="store_true", help="only says what would be done, and what it costs")
    parser.add_argument("--rate", type=float, help="passes a second on this device, for the seconds of --dry-run")
    arguments, rest = parser.parse_known_args(argv)
    try:
        configuration.prepare_jax(configuration.default())
        names, bench = prepare(arguments, rest)
    except (configuration.UsageError, ValueError) as error:
        return configuration.fail(str(error), code=2)
    work = (show_plan, names, bench, arguments.rate) if arguments.dry_run else (make, names, bench)
    return configuration.guarded(*work)


def prepare(arguments: argparse.Namespace, rest: list[str]) -> tuple[list[str], Any]:
    """The experiments' names and the workbench; raises ValueError for what is not valid."""
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
    for given in arguments.use:
        if "=" not in given:
            raise ValueError(f"--use: expected NAME=WORKDIR, as cifar10-lagrangian=runs/cifar10; got {given!r}")
    used = {name: pathlib.Path(path) for name, _, path in (given.partition("=") for given in arguments.use)}
    overrides = networks.read_overrides(rest)
    known = sorted({work.network.method for experiment in EXPERIMENTS.values() for work in experiment.work})
    if strange := set(methods) - set(known):
        raise unknown("method", min(strange), known)
    return names, workbench.Workbench(arguments.workdir, arguments.preset, overrides, used, methods)


def show_plan(names: list[str], bench: Any, rate: float | None) -> None:
    from lagrangian_jax.reproduce import plan
    from lagrangian_jax.reproduce.experiments import EXPERIMENTS

    print("\n".join(plan.lines(bench, [EXPERIMENTS[name] for name in names], rate)))


def make(names: list[str], bench: Any) -> None:
    """Makes one after the other; what cannot be made is told at the end, and is an error then."""
    from lagrangian_jax.reproduce import output
    from lagrangian_jax.reproduce.experiments import EXPERIMENTS

    bench.folder.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    for name in names:
        bench.left_out.clear()
        if not bench.chosen(EXPERIMENTS[name].work):
            continue  # nothing of it is asked for
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
