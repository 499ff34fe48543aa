"""Writes the README's tables from the committed results: ``python results/readme.py`` (``--check`` only compares).

Each folder of ``results/`` is a group of comparable runs: ``<group>/<run>/results.json``, with a ``README.md`` that
says what was run; ``<group>/<name>.json`` and ``.png`` are results of ``python -m lagrangian_jax.reproduce``.
"""

import json
import pathlib
import sys

from lagrangian_jax import report
from lagrangian_jax.reproduce import experiments, output
from lagrangian_jax.reproduce.experiments import EXPERIMENTS

ROOT = pathlib.Path(__file__).resolve().parent
START, END = "<!-- results -->", "<!-- /results -->"


def tables() -> str:
    parts = []
    for group in sorted(path for path in ROOT.iterdir() if (path / "README.md").exists()):
        runs = sorted(path.parent for path in group.glob("*/results.json"))
        parts.append((group / "README.md").read_text().strip())
        parts += [report.compare(runs).markdown().strip()] if runs else []
        for path in sorted(group.glob("*.json")):
            found = json.loads(path.read_text())
            table = output.table(found).markdown().strip()
            figure = path.with_suffix(".png")
            picture = f"![{found['title']}]({figure.relative_to(ROOT.parent)})\n\n" if figure.exists() else ""
            parts.append(f"<details><summary>{found['title']}</summary>\n\n{picture}{table}\n\n</details>")
    return "\n\n".join([*parts, not_run()])


def not_run() -> str:
    """The experiments that no result is of; those on CIFAR-10 need the methods that no run is of, too."""
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
    readme = ROOT.parent / "README.md"
    text = readme.read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1]
    wanted = f"{before}{START}\n{tables()}\n{END}{after}"
    if "--check" in arguments:
        return 0 if wanted == text else 1
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
