"""The targets for an accelerator beside the measurements, as a Markdown table.

    python -m benchmarks.targets DIR

DIR holds what ``bash benchmarks/accelerator.sh DIR`` wrote. What is missing there is shown as not measured.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

Result = dict[str, Any]
EPOCH, EPOCHS = 48_976, 100  # of the `fast` preset: training images (1,024 are held out), and epochs
TEST_IMAGES = 10_000


class Target(NamedTuple):
    """One line of the table.

    Attributes:
      what: what is measured.
      name: the JSON file, without its suffix.
      value: computes the measured value from the file's content.
      limit: the value wanted, in the unit shown.
      most: whether the limit is an upper one (times) or a lower one (speeds).
      unit: shown after numbers.
    """

    what: str
    name: str
    value: Callable[[Result], float]
    limit: float
    most: bool
    unit: str = ""


def training_minutes(result: Result) -> float:
    """100 epochs with compilation, counting every step at the method's cost, although the 3 clean epochs cost less."""
    steps = EPOCH // result["batch_size"] * EPOCHS
    return (steps * result["step_seconds"]["lagrangian_jax"] + result["compile_seconds"]) / 60


def step_over(other: str) -> Callable[[Result], float]:
    return lambda result: result["methods"]["lagrangian"]["seconds"] / result["methods"][other]["seconds"]


def suite_minutes(result: Result) -> float:
    """The suite on the whole test set: its seconds grow with the number of images, its compilation does not."""
    return _whole_test_set(result, [result["suite"]])


def autoattack_minutes(result: Result) -> float:
    """Its four attacks, each on every image, as if the network withstood them all: the most that it may take."""
    return _whole_test_set(result, result["attacks"])


def _whole_test_set(result: Result, parts: list[Result]) -> float:
    more = TEST_IMAGES / result["images"]
    return sum(part["seconds"] * more + part["compile_seconds"] for part in parts) / 60


TARGETS = (
    Target("100 epochs of CIFAR-10, `fast`", "train_fast_tuned", training_minutes, 8, True, " min"),
    Target(
        "its step, share of the measured peak", "train_fast_tuned", lambda r: 100 * r["share_of_peak"], 20, False, " %"
    ),
    Target("its step against PyTorch, eager", "train_fast_eager", lambda r: r["ratio"], 3, False, " times"),
    Target("its step against PyTorch, tuned", "train_fast_tuned", lambda r: r["ratio"], 1.3, False, " times"),
    Target("the paper's step, batch 50, against eager", "train_paper_eager", lambda r: r["ratio"], 5, False, " times"),
    Target("the same against PyTorch, tuned", "train_paper_tuned", lambda r: r["ratio"], 1.3, False, " times"),
    Target("`cifar10_table1`, 10,000 images", "suite", suite_minutes, 5, True, " min"),
    Target("AutoAttack, 10,000 images", "autoattack", autoattack_minutes, 10, True, " min"),
    Target("Lagrangian step / PGD-5's", "methods", step_over("pgd_5"), 1.05, True),
    Target("Lagrangian step / PGD-10's", "methods", step_over("pgd_linf"), 0.55, True),
    Target("Lagrangian step / Fast-LPA-10's", "methods", step_over("pat"), 0.40, True),
    Target("second start to the first step", "start", lambda r: r["seconds"]["warm"], 10, True, " s"),
    Target("step as fed / on resident data, CIFAR-10", "input_resident", lambda r: r["ratio"], 1.02, True),
    Target("the same, streaming at 224 pixels", "input_streaming", lambda r: r["ratio"], 1.02, True),
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    print(table(parser.parse_args(argv).directory))
    return 0


def table(directory: pathlib.Path) -> str:
    lines = ["| what | target | measured | |", "| --- | --- | --- | --- |"]
    devices, budget = set(), directory / "budget"
    tiny = budget.exists() and budget.read_text().strip() != "full"
    for target in TARGETS:
        path = directory / f"{target.name}.json"
        wanted = f"{'at most' if target.most else 'at least'} {target.limit:g}{target.unit}"
        measured, verdict = "not measured yet", ""
        if path.exists():
            result = json.loads(path.read_text())
            devices |= {device for device in (result.get("device"), result.get("measured", {}).get("device")) if device}
            try:
                value = target.value(result)
            except KeyError:  # a tiny budget leaves methods out
                pass
            else:
                measured = f"{value:.3g}{target.unit}"
                met = value <= target.limit if target.most else value >= target.limit
                verdict = "" if tiny else "met" if met else "not met"
        lines.append(f"| {target.what} | {wanted} | {measured} | {verdict} |")
    on = [f"\nOn {', '.join(sorted(devices))}."] if devices else []
    return "\n".join([*lines, *on, *["A tiny budget: it measures nothing."] * tiny])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
