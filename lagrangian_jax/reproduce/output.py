"""What an experiment leaves: ``<name>.json``, tables beside the paper's numbers, and the figure."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from lagrangian_jax.evaluation.result import plain
from lagrangian_jax.report import figures
from lagrangian_jax.report.formats import ABSENT, Table, picture
from lagrangian_jax.reproduce.experiment import Experiment, Outcome
from lagrangian_jax.reproduce.workbench import Workbench, origin
from lagrangian_jax.workdir import write_whole

SCHEMA = 1


def write(folder: pathlib.Path, name: str, experiment: Experiment, outcome: Outcome, bench: Workbench) -> Table:
    """Writes ``name.json``, ``.md``, ``.tex``, ``.csv``, and a figure as ``.svg`` and ``.png``; returns the table."""
    found = to_json(name, experiment, outcome, bench)
    write_whole(folder / f"{name}.json", json.dumps(found, indent=2) + "\n")
    shown = table(found)
    drawn = f"{picture(name, experiment.title)}\n\n" if outcome.figure else ""
    write_whole(folder / f"{name}.md", f"# {experiment.title}\n\n{drawn}{shown.markdown()}")
    write_whole(folder / f"{name}.tex", shown.latex())
    write_whole(folder / f"{name}.csv", shown.csv())
    if outcome.figure:
        figures.save(folder, name, *outcome.figure)
        (folder / f"{name}.png").write_bytes(figures.render(*outcome.figure, figures.PAPER, form="png", dpi=200))
    return shown


def to_json(name: str, experiment: Experiment, outcome: Outcome, bench: Workbench) -> dict[str, Any]:
    """All of an outcome, with the software and machine that made it, its networks, and the seconds it took."""
    rows = []
    for key in dict.fromkeys([*outcome.rows, *outcome.paper]):
        here = {column: value for column, value in outcome.rows.get(key, {}).items() if math.isfinite(value)}
        printed = dict(outcome.paper.get(key, {}))
        difference = {column: here[column] - printed[column] for column in printed if column in here}
        label = outcome.labels.get(key, key)
        rows.append({"row": key, "label": label, "here": here, "paper": printed, "difference": difference})
    return plain(
        {
            "schema": SCHEMA,
            "name": name,
            "title": experiment.title,
            "preset": bench.preset,
            **origin(),
            "seconds": outcome.seconds,
            "heading": outcome.heading,
            "columns": outcome.columns,
            "rows": rows,
            "networks": outcome.networks,
            "details": outcome.details,
            "remarks": [
                *outcome.remarks,
                *dict.fromkeys(entry["data"]["remark"] for entry in outcome.networks.values()),
            ],
            "left_out": bench.left_out,
        }
    )


def table(found: Mapping[str, Any]) -> Table:
    """The rows of a result's JSON: measured here, the paper's, and the difference, where the paper has a number."""
    columns = [
        key for key in found["columns"] if any(key in row["here"] or key in row["paper"] for row in found["rows"])
    ]
    lines, printed = [], any(row["paper"] for row in found["rows"])
    for row in found["rows"]:
        label = row["label"]
        if row["here"]:
            lines.append([label, *["here"] * printed, *(_cell(row["here"].get(key)) for key in columns)])
            label = ""
        if row["paper"]:
            lines.append([label, "paper", *(_cell(row["paper"].get(key)) for key in columns)])
        if row["difference"]:
            lines.append(["", "difference", *(_cell(row["difference"].get(key), "+") for key in columns)])
    counts = {network["data"].get("examples") for network in found["networks"].values()} - {None}
    images = f"; {', '.join(f'{count:,}' for count in sorted(counts))} test images" if counts else ""
    about = f"Preset {found['preset']!r}; {found['device']['count']} x {found['device']['kind']}{images}."
    notes = [about, *found["remarks"], *(f"Left out: {reason}" for reason in found["left_out"])]
    header = [found["heading"], *[""] * printed, *(found["columns"][key] for key in columns)]
    return Table(header, lines, left=1 + printed, notes=notes)


def _cell(value: Any, sign: str = "") -> str:
    finite = isinstance(value, int | float) and math.isfinite(value)
    return f"{round(value, 2) + 0.0:{sign}.2f}" if finite else ABSENT  # never -0.00
