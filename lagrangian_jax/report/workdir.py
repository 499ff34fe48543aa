"""What a report reads: the files of a work directory. Damage is noted rather than fatal."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A few images of one attack: dataset indices (P,), images (P, H, W, C), labels (P,) and predictions (P,)."""

    index: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a work directory.

    Attributes:
      workdir: where it is.
      config: the resolved settings, nested; empty if absent.
      train: training lines of ``metrics.jsonl``, by step; the last one of lines that a resumed run repeated.
      validation: validation lines, likewise.
      results: ``results.json``; empty if absent.
      pictures: by attack name, for the attacks that kept some.
      notes: what is noteworthy: the run's own failures, then files that could not be read.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    train: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]
    pictures: Mapping[str, Pictures]
    notes: Sequence[str]

    @property
    def attacks(self) -> list[Mapping[str, Any]]:
        """The evaluated attacks in their order, ``none`` among them."""
        return list(self.results.get("attacks") or [])

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, if the settings or the results have them."""
        for data in (self.config.get("data"), self.results.get("data")):
            for field in ("class_names", "classes"):
                names = data.get(field) if isinstance(data, Mapping) else None
                if isinstance(names, Sequence) and not isinstance(names, str) and names:
                    return [str(name) for name in names]
        return None


def read(workdir: str | pathlib.Path) -> Run:
    """Reads a work directory.

    Files may be absent (a run that was stopped, an evaluation without training), and the last line of
    ``metrics.jsonl`` may be torn; what is there is used.

    Raises:
      ValueError: not a work directory, or results that this version cannot read.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"{workdir}: expected a work directory, found {'a file' if workdir.exists() else 'nothing'}")
    notes: list[str] = []
    config = _read_json(workdir / "config.json", notes)
    results = _read_json(workdir / "results.json", notes)
    lines = _read_lines(workdir / "metrics.jsonl", notes)
    if not (config or results or lines):
        found = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(f"{workdir}: not a work directory: no config.json, metrics.jsonl or results.json{found}")
    if results.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"{workdir / 'results.json'}: schema {results['schema']!r}, this version reads {SCHEMA}")
    pictures = {}
    for attack in results.get("attacks") or []:
        if absent := {"name", "correct", "total"} - set(attack):
            raise ValueError(f"{workdir / 'results.json'}: an attack without {', '.join(sorted(absent))}")
        path = workdir / "evaluation" / f"{attack['name']}.npz"
        found_pictures = _read_pictures(path, notes) if path.is_file() else None
        if found_pictures is not None:
            pictures[attack["name"]] = found_pictures
    return Run(
        workdir=workdir,
        config=config,
        train=_by_step(lines, "train"),
        validation=_by_step(lines, "validation"),
        results=results,
        pictures=pictures,
        notes=[
            *(f"Training stopped: {line.get('message')}" for line in _by_step(lines, "failure")),
            *(str(note) for note in results.get("failures") or []),
            *notes,
        ],
    )


def _read_json(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        notes.append(f"{path.name} could not be read: {error}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} could not be read: expected an object, found {type(value).__name__}")
        return {}
    return value


def _read_lines(path: pathlib.Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines, damaged = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            damaged += bool(text.strip())
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int | float):
            lines.append(line)
        else:
            damaged += 1
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged {'line' if damaged == 1 else 'lines'} left out")
    return lines


def _by_step(lines: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    latest = {line["step"]: line for line in lines if line.get("kind") == kind}
    return [latest[step] for step in sorted(latest)]


def _read_pictures(path: pathlib.Path, notes: list[str]) -> Pictures | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "pictures" not in arrays or "picture_index" not in arrays:
                return None
            index, images = arrays["picture_index"], arrays["pictures"].astype(np.float32)
            rows = {int(value): row for row, value in enumerate(arrays["index"])}
            chosen = [rows[int(value)] for value in index]
            labels, predictions = arrays["label"][chosen], arrays["prediction"][chosen]
        if images.ndim != 4 or len(images) != len(index) or images.shape[-1] not in (1, 3):
            raise ValueError(f"pictures of shape {images.shape} for {len(index)} indices")
    except Exception as error:  # a damaged archive raises errors of many kinds; the report goes on without its pictures
        notes.append(f"evaluation/{path.name} could not be read: {type(error).__name__}: {error}")
        return None
    return Pictures(index, images, labels, predictions)
