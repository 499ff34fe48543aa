"""The tables of a report.

Accuracies are percentages of exact counts. The means are the paper's: plain means of accuracies over columns of its
Tables 1 and 2, without the clean accuracy. The worst case is the share of examples that are correct in every column.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lagrangian_jax.evaluation import suites
from lagrangian_jax.report.formats import ABSENT, Table
from lagrangian_jax.report.workdir import Run

# Columns of the paper's Tables 1 and 2, in their order, then others: the key in results.json -> the heading.
COLUMNS = {
    "clean": "Clean",
    "lpa": "LPA",
    "linf": "linf",
    "l2": "l2",
    "recolor": "Recolor",
    "stadv": "StAdv",
    "elastic": "Elastic",
    "jpeg": "JPEG",
    "fog": "Fog",
    "gabor": "Gabor",
    "snow": "Snow",
    "noise": "Noise",
    "blur": "Blur",
    "pgd0": "PGD0",
    "lagrangian": "Lagrangian",
    "fgsm": "FGSM",
    "mpgd": "MPGD",
}
MEANS = ("Unseen mean", "Union mean", "Worst case")
ATTACKS_EXPLANATION = (
    "Each attack with its parameters. The interval is Wilson's, at 95%; norms are means over all images, on pixel "
    "values in [0, 1]; so is SSIM, the structural similarity to the clean image. Gradients and forwards are "
    "evaluations per image, on average; seconds are without compilation."
)


def robustness(run: Run) -> Table:
    """One row: accuracies in the paper's columns, then unseen mean, union mean and worst case."""
    accuracies = column_accuracies(run)
    means = run_means(run)
    cells = [*map(percent, accuracies.values()), *map(percent, means.values()), worst_case(run)]
    header = [*map(heading, accuracies), *MEANS]
    kept = [i for i, cell in enumerate(cells) if cell != ABSENT]
    return Table([header[i] for i in kept], [[cells[i] for i in kept]], left=0)


def attacks(run: Run) -> Table:
    """A row per attack: parameters, counts, accuracy with its 95% Wilson interval, mean norms, seconds, evaluations."""
    header = ["Attack", "Parameters", "Correct", "Accuracy", "95% interval", "Mean l0", "Mean l2", "Mean linf", "SSIM"]
    header += ["Seconds", "Compile", "Gradients", "Forwards", "Attacked"]
    measures = (("l0", 1), ("l2", 3), ("linf", 4), ("ssim", 3))
    rows = []
    for attack in run.attacks:
        rows.append(
            [
                label(attack),
                parameters(attack.get("parameters") or {}),
                f"{attack['correct']}/{attack['total']}",
                percent(accuracy(attack)),
                interval(attack["correct"], attack["total"]),
                *(number(attack.get(f"mean_{name}"), digits) for name, digits in measures),
                *(number(attack.get(field), 1) for field in ("seconds", "compile_seconds")),
                *(_evaluations(attack, field) for field in ("gradient_evaluations", "forward_passes")),
                _attacked(attack),
            ]
        )
    return _without_empty_columns(Table(header, rows, left=2))


def terminal(run: Run) -> str:
    """What the command line prints last: a line per attack, the worst case, the means, and the notes."""
    full = attacks(run)
    notes = [f"note: {note}" for note in run.notes]
    if not full.rows:
        return "\n".join(["No attack was evaluated.", *notes])
    shown = ("Attack", "Correct", "Accuracy", "95% interval", "Mean l2", "Seconds")
    chosen = [full.header.index(name) for name in shown if name in full.header]
    rows = [[row[column] for column in chosen] for row in full.rows]
    total = (run.results.get("summary") or {}).get("worst_case") or {}
    if total.get("total"):
        counts = (f"{total['correct']}/{total['total']}", worst_case(run), interval(total["correct"], total["total"]))
        rows.append(["Worst case", *counts, *[""] * (len(chosen) - 4)])
    for name, value in run_means(run).items():
        if value is not None:
            rows.append([name, "", percent(value), *[""] * (len(chosen) - 3)])
    return Table([full.header[column] for column in chosen], rows, notes=notes).text()


def compare(runs: Sequence[Run]) -> Table:
    """One row per run in the paper's columns; the best cell of each column is emphasised.

    If runs share a column but not the attack behind it, or not the data, a note below the table says so.
    """
    accuracies = [column_accuracies(run) for run in runs]
    keys = sorted({key for row in accuracies for key in row}, key=_column_order)
    header = ["Run", "Method", "Network", "Images", *map(heading, keys), *MEANS]
    rows = []
    for name, run, row in zip(run_names(runs), runs, accuracies, strict=True):
        values = [percent(row.get(key)) for key in keys]
        means = [percent(value) for value in run_means(run).values()]
        rows.append([name, method(run), network(run), images(run), *values, *means, worst_case(run)])
    table = _without_empty_columns(Table(header, rows, left=3))
    first = table.header.index("Images") + 1 if "Images" in table.header else table.left
    return dataclasses.replace(table, best=_best(table, first), notes=_differences(runs, keys))


def column_accuracies(run: Run) -> dict[str, float]:
    """Accuracies by column, in the paper's order.

    Attacks without a column are only in the table of attacks. If only the clean images have a column, every attack is
    its own column.
    """
    columns = {key: attack["correct"] / attack["total"] for key, attack in _column_attacks(run).items()}
    summary = run.results.get("summary") or {}
    if summary.get("clean") is not None:
        columns.setdefault("clean", summary["clean"])
    return dict(sorted(columns.items(), key=lambda item: _column_order(item[0])))


def run_means(run: Run) -> dict[str, float | None]:
    """Unseen and union mean, as the evaluation computed them; None if one of their columns is missing."""
    summary = run.results.get("summary") or {}
    return {MEANS[0]: summary.get("unseen_mean"), MEANS[1]: summary.get("union_mean")}


def mean_columns(run: Run) -> tuple[Sequence[str], Sequence[str]]:
    """The columns of the unseen mean and of the union mean, from the paper's Table 1 or 2; empty without means."""
    return suites.means_of(column_accuracies(run))


def worst_case(run: Run) -> str:
    """The percentage of examples that are correct in every column."""
    counts = (run.results.get("summary") or {}).get("worst_case") or {}
    return percent(counts["correct"] / counts["total"]) if counts.get("total") else ABSENT


def accuracy(attack: Mapping[str, Any]) -> float | None:
    return attack["correct"] / attack["total"] if attack["total"] else None


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a share: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    >>> [round(float(x), 4) for x in wilson(0, 100)]
    [0.0, 0.037]
    """
    if not total:
        return 0.0, 1.0
    z = 1.959963984540054  # the normal distribution's 97.5% quantile
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = ((centre + sign * half) / (1 + z * z / total) for sign in (-1, 1))
    return (0.0 if correct == 0 else low), (1.0 if correct == total else high)


def interval(correct: int, total: int) -> str:
    low, high = wilson(correct, total)
    return f"{100 * low:.2f} to {100 * high:.2f}"


def percent(share: float | None) -> str:
    return ABSENT if share is None or not math.isfinite(share) else f"{100 * share:.2f}"


def number(value: Any, digits: int = 0) -> str:
    """A number with ``digits`` decimals."""
    finite = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.{digits}f}" if finite else ABSENT


def parameters(values: Mapping[str, Any]) -> str:
    """Parameters in one line, budgets of pixel values as multiples of 1/255.

    >>> parameters({"bound": 8 / 255, "steps": 40, "random_start": False, "step_size": 0.1})
    'bound 8/255, steps 40, random_start false, step_size 0.1'
    """
    return ", ".join(f"{name} {parameter(value)}" for name, value in values.items())


def parameter(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        scaled = value * 255
        if len(repr(value)) > 8 and 0 < abs(scaled) < 255 and abs(scaled - round(scaled)) < 1e-4:
            return f"{round(scaled)}/255"
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def label(attack: Mapping[str, Any]) -> str:
    return str(attack.get("label") or attack["name"])


def heading(key: str) -> str:
    return COLUMNS.get(key, key)


def explanation(run: Run) -> str:
    """What the numbers of the robustness table are, and which columns its means are over."""
    parts = ["Accuracy in per cent under each attack."]
    unseen, union = mean_columns(run)
    if unseen:
        further = [key for key in union if key not in unseen]
        parts.append(f"Unseen mean: the plain mean of {', '.join(map(heading, unseen))}.")
        parts.append(f"Union mean: the plain mean of these and {', '.join(map(heading, further))}.")
    if worst_case(run) != ABSENT:
        parts.append("Worst case: the share of images that are classified correctly in every one of these columns.")
    return " ".join(parts)


def images(run: Run) -> str:
    """How many images were attacked; several numbers if attacks differ."""
    totals = sorted({attack["total"] for attack in run.attacks}, reverse=True)
    return " / ".join(f"{total:,}" for total in totals) or ABSENT


def method(run: Run) -> str:
    """The training method; absent for weights from elsewhere, whatever the settings name."""
    if run.results and not (run.results.get("training") or run.train):
        return ABSENT
    name = (run.results.get("training") or {}).get("method") or run.config.get("method")
    if isinstance(name, Mapping):
        name = name.get("name")
    return str(name) if name else ABSENT


def network(run: Run) -> str:
    described = run.results.get("network") or run.config.get("network") or run.config.get("model") or {}
    if not isinstance(described, Mapping):
        return str(described)
    parts = [described.get("name"), f"width {described['width']}" if described.get("width") else None]
    return ", ".join(str(part) for part in parts if part) or ABSENT


def _data(run: Run) -> str:
    described = run.results.get("data") or {}
    return " ".join(str(described[key]) for key in ("name", "split") if described.get(key)) or "without a name"


def run_names(runs: Sequence[Run]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart.

    >>> import pathlib, types
    >>> run_names([types.SimpleNamespace(workdir=pathlib.Path(p)) for p in ("/a/x", "/b/x")])
    ['a/x', 'b/x']
    """
    parts = [run.workdir.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts), default=1)):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(path[1:]) for path in parts]


def _evaluations(attack: Mapping[str, Any], field: str) -> str:
    """An average count, with "<=" if it is an upper bound because the attack may end early."""
    value = attack.get(field)
    text = number(value, 0 if isinstance(value, int) or (value or 0) % 1 == 0 else 1)
    return f"<= {text}" if text != ABSENT and attack.get("cost_exact") is False else text


def _attacked(attack: Mapping[str, Any]) -> str:
    """How many examples the attack ran on, by stage if it has several; absent if it always ran on all."""
    counts = attack.get("stages") or [attack.get("attacked") or attack["total"]]
    return ABSENT if set(counts) == {attack["total"]} else " ".join(map(str, counts))


def _column_attacks(run: Run) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for attack in run.attacks:
        column = "clean" if attack["name"] == "none" else attack.get("column")
        if column and attack["total"]:
            found.setdefault(str(column), attack)
    if set(found) <= {"clean"}:
        found |= {label(attack): attack for attack in run.attacks if attack["name"] != "none" and attack["total"]}
    return found


def _column_order(key: str) -> tuple[int, str]:
    order = list(COLUMNS)
    return (order.index(key), "") if key in COLUMNS else (len(order), key)


def _without_empty_columns(table: Table) -> Table:
    kept = [c for c in range(len(table.header)) if any(row[c] not in (ABSENT, "") for row in table.rows)]
    return dataclasses.replace(
        table,
        header=[table.header[c] for c in kept],
        rows=[[row[c] or ABSENT for c in kept] for row in table.rows],
        left=sum(c < table.left for c in kept),
    )


def _best(table: Table, first: int) -> frozenset[tuple[int, int]]:
    best = set()
    for column in range(first, len(table.header) if len(table.rows) > 1 else 0):
        values = {r: float(row[column]) for r, row in enumerate(table.rows) if row[column] != ABSENT}
        best |= {(r, column) for r, value in values.items() if value == max(values.values())}
    return frozenset(best)


def _differences(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    by_run = [_column_attacks(run) for run in runs]
    notes = []
    for key in keys:
        seen = {f"{a['attack'] if 'attack' in a else a['name']}: {parameters(a.get('parameters') or {})}"
                for a in (attacks.get(key) for attacks in by_run) if a}  # fmt: skip
        if len(seen) > 1 and key != "clean":
            notes.append(f"Column {heading(key)} holds different attacks: {'; '.join(sorted(seen))}.")
    data = {_data(run) for run in runs if run.results}
    if len(data) > 1:
        notes.append(f"The runs are on different data: {'; '.join(sorted(data))}.")
    if len({images(run) for run in runs if run.attacks}) > 1:
        notes.append("The runs were evaluated on different numbers of images.")
    return notes
