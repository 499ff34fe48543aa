"""Writes the README's results and ``docs/results.md`` from the committed results: ``python results/readme.py``.

``--check`` only compares. Each folder of ``results/`` with a ``README.md`` is a group of comparable runs:
``<group>/<run>/results.json``, and ``<group>/<name>.json`` and ``.png`` from ``python -m lagrangian_jax.reproduce``.
The part of the group's page before ``<!-- more -->`` is also shown in the README.
"""

import json
import pathlib
import sys

from lagrangian_jax import report
from lagrangian_jax.reproduce import experiments, output
from lagrangian_jax.reproduce.experiments import EXPERIMENTS

ROOT = pathlib.Path(__file__).resolve().parent
README, PAGE = ROOT.parent / "README.md", ROOT.parent / "docs" / "results.md"
START, END, MORE = "<!-- results -->", "<!-- /results -->", "<!-- more -->"


def readme() -> str:
    """The README with its results brought up to date: the introduction and the runs of each group."""
    before, rest = README.read_text().split(START)
    parts = [f"{introduction(group)}\n\n{runs(group)}".replace("## ", "### ", 1) for group in groups()]
    return f"{before}{START}\n{paragraphs(*parts, not_run())}\n{END}{rest.split(END)[1]}"


def page() -> str:
    """``docs/results.md``: each group's whole page, its runs, and its tables and figures of the paper."""
    parts = ["# Results", not_run()]
    for group in groups():
        text = (group / "README.md").read_text().partition(MORE)[2].strip()
        parts += [introduction(group), runs(group), text, *map(analysis, sorted(group.glob("*.json")))]
    return f"{paragraphs(*parts)}\n"


def groups() -> list[pathlib.Path]:
    """The groups' folders, longest training first."""
    return sorted((path.parent for path in ROOT.glob("*/README.md")), key=lambda group: (-epochs(group), group))


def epochs(group: pathlib.Path) -> int:
    found = [json.loads(path.read_text()) for path in group.glob("*/results.json")]
    return max((run["training"]["epochs"] for run in found if run.get("training")), default=0)


def introduction(group: pathlib.Path) -> str:
    return (group / "README.md").read_text().partition(MORE)[0].strip()


def runs(group: pathlib.Path) -> str:
    return report.compare(sorted(path.parent for path in group.glob("*/results.json"))).markdown().strip()


def analysis(path: pathlib.Path) -> str:
    found, figure = json.loads(path.read_text()), path.with_suffix(".png")
    title = found["title"]
    picture = f"![{title}](../results/{figure.relative_to(ROOT).as_posix()})" if figure.exists() else ""
    return paragraphs(f"### {title}", picture, output.table(found).markdown().strip())


def paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def not_run() -> str:
    """Says which experiments have no result yet, and which of Table 1's methods, which they need, have no run."""
    left = [name for name in EXPERIMENTS if not list(ROOT.glob(f"*/{name}.json"))]
    runs = [json.loads(path.read_text()) for path in ROOT.glob("*/*/results.json")]
    runs = [run for run in runs if run.get("training")]
    trained = {
        run["training"]["method"] + ",early_stopping" * (run["training"]["selected"]["checkpoint"] == "best")
        for run in runs
    }
    methods = [name for name in experiments.TABLE1 if name not in trained]
    widest = max(run["network"]["width"] for run in runs)
    missing = [
        f"{what}: {', '.join(f'`{name}`' for name in names)}"
        for what, names in (("on networks of any size", left), ("of the methods of Table 1", methods))
        if names
    ]
    not_yet = f"Not run yet, {'; '.join(missing)}. " if missing else ""
    return f"{not_yet}The widest network trained so far is of width {widest}; the paper's is of 64."


def main(arguments: list[str]) -> int:
    wanted = {README: readme(), PAGE: page()}
    if "--check" in arguments:
        return int(any(not path.exists() or path.read_text() != text for path, text in wanted.items()))
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
