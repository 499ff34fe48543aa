"""Reports: tables (plain text, Markdown, LaTeX, CSV), figures, and one self-contained HTML page of a work directory.

``python -m lagrangian_jax.report WORKDIR`` rewrites a run's report; with several work directories it compares them.
"""

import json
import os
import pathlib
import re
from collections.abc import Sequence

from lagrangian_jax.report import figures, html, tables
from lagrangian_jax.report.formats import Table, markdown, picture
from lagrangian_jax.report.workdir import Run, read

__all__ = ["Table", "compare", "figures", "read", "tables", "write"]


def write(workdir: str | pathlib.Path) -> str:
    """Writes ``report.html``, ``report.md`` and ``figures/`` from the files of a work directory.

    Args:
      workdir: a work directory with at least one of ``config.json``, ``metrics.jsonl`` and ``results.json``;
        ``evaluation/`` may be absent.

    Returns:
      the table of attacks as plain text, for the terminal.

    Raises:
      ValueError: not a work directory, or one of another version.
    """
    run = read(workdir)
    folder = run.workdir / "figures"
    folder.mkdir(exist_ok=True)
    panels = [(panel, figures.save(folder, panel.name, panel, panel.size)) for panel in figures.training(run)]
    drawn = [(panel.name, panel.title) for panel, _ in panels]
    if run.attacks:
        figures.save(folder, "robustness", *figures.robustness(run))
        drawn.insert(0, ("robustness", "Accuracy under each attack"))
    rows = figures.picture_rows(run)
    if rows:
        (folder / "pictures.png").write_bytes(figures.render(*figures.pictures(rows), figures.PAPER, form="png"))
    _replace(run.workdir / "report.md", _markdown(run, drawn, pictures=bool(rows)))
    _replace(run.workdir / "report.html", html.page(run, panels))
    return tables.terminal(run)


def compare(workdirs: Sequence[str | pathlib.Path]) -> Table:
    """The runs of several work directories in one table, in the paper's columns."""
    return tables.compare([read(workdir) for workdir in workdirs])


def _markdown(run: Run, drawn: Sequence[tuple[str, str]], pictures: bool) -> str:
    parts = [f"# {markdown(html.title(run))}", markdown(html.lead(run))]
    if run.notes:
        parts += ["## Noteworthy", "\n".join(f"- {markdown(note)}" for note in run.notes)]
    if run.attacks:
        remark = (run.results.get("data") or {}).get("remark")
        parts += ["## Robustness", markdown(tables.explanation(run)), tables.robustness(run).markdown()]
        parts += [markdown(str(remark))] if remark else []
        parts += ["## Attacks", markdown(tables.ATTACKS_EXPLANATION), tables.attacks(run).markdown()]
    if pictures:
        text = "Adversarial images and their perturbations, magnified around middle grey"
        parts += ["## Pictures", f"![{text}](figures/pictures.png)"]
    if drawn:
        parts += ["## Figures", *(picture(f"figures/{name}", text) for name, text in drawn)]
    if run.config:
        parts += ["## Settings", _fenced(json.dumps(run.config, indent=2, default=str, ensure_ascii=False))]
    origin = {name: run.results[name] for name in ("versions", "device", "seed") if name in run.results}
    if origin:
        parts += ["## Origin", _fenced(json.dumps(origin, indent=2, default=str, ensure_ascii=False))]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}json\n{text}\n{fence}"


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
