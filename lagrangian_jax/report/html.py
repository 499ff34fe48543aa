"""The report as one self-contained HTML page: everything inline, no script, nothing fetched, everything escaped."""

import base64
import importlib.resources
import io
import json
import re
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from lagrangian_jax.report import figures, tables
from lagrangian_jax.report.formats import ABSENT, Table
from lagrangian_jax.report.workdir import Run

SMALL = 64  # pixels: pictures up to this size are enlarged without smoothing, larger ones reduced to about twice this


def page(run: Run, panels: Sequence[tuple[figures.Panel, tuple[bytes, bytes]]]) -> str:
    """The page.

    Args:
      run: the work directory's contents.
      panels: the training's panels, each with its figure for light and for dark pages.
    """
    sections = [
        ("robustness", "Robustness", _robustness(run)),
        ("attacks", "Attacks", _attacks(run)),
        ("pictures", "Pictures", _pictures(run)),
        ("training", "Training", _training(panels)),
        ("settings", "Settings", _settings(run.config)),
        ("origin", "Origin", _origin(run)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in sections)
    body = [
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{heading}</h2>\n{content}\n</section>'
        for name, heading, content in sections
    ]
    template = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    version = (run.results.get("versions") or {}).get("lagrangian_jax", "")
    return string.Template(template).substitute(
        title=escape(f"{title(run)}: robustness report"),
        heading=escape(title(run)),
        lead=escape(lead(run)),
        headline=_headline(run),
        nav=f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        main="\n".join([_notice(run.notes), *body]),
        footer=escape(f"Written by lagrangian_jax {version}".rstrip() + f" from {run.workdir.resolve().name}/"),
    )


def title(run: Run) -> str:
    """The network, its training and the data in a few words."""
    network, method = tables.network(run), tables.method(run)
    data = (run.results.get("data") or {}).get("name") or _nested(run.config, "data", "name")
    parts = [
        "Network" if network == ABSENT else network.split(",")[0],
        f"trained with {method}" if method != ABSENT else "",
        f"on {data}" if data else "",
    ]
    return " ".join(part for part in parts if part)


def lead(run: Run) -> str:
    """Size, training, selection and evaluation in one or two sentences."""
    network, data = run.results.get("network") or {}, run.results.get("data") or {}
    training = run.results.get("training") or {}
    sentences = []
    size = [f"width {network['width']}" if network.get("width") else ""]
    size += [f"{network['parameters']:,} parameters" if network.get("parameters") else ""]
    spent = [
        f"{_amount(training[unit])} {unit.removesuffix('s') if training[unit] == 1 else unit}"
        for unit in ("epochs", "steps")
        if training.get(unit) is not None
    ]
    spent += [duration(training["seconds"])] if training.get("seconds") is not None else []
    if any(size):
        sentences.append(", ".join(filter(None, size)))
    if spent:
        sentences.append(f"trained for {', '.join(spent)}")
    selected = training.get("selected") or {}
    if selected.get("checkpoint"):
        epoch = f", epoch {_amount(selected['epoch'])}" if selected.get("epoch") is not None else ""
        share = selected.get("robust_accuracy")
        held = f", validation {tables.percent(share)} % robust" if share is not None else ""
        sentences.append(f"checkpoint: {selected['checkpoint']}{epoch}{held}")
    if run.attacks:
        images = tables.images(run)
        split = f" {data['split']}" if data.get("split") else ""
        suite = f", suite {run.results['suite']}" if run.results.get("suite") else ""
        seed = f", seed {run.results['seed']}" if run.results.get("seed") is not None else ""
        sentences.append(f"evaluated on {images}{split} images{suite}{seed}")
    text = "; ".join(sentences)
    return f"{text[:1].upper()}{text[1:]}." if text else "The run has not been evaluated."


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(3.14159), duration(754), duration(7380)
    ('3.14 s', '12 min 34 s', '2 h 03 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _headline(run: Run) -> str:
    """The few numbers to remember, each with what it is based on."""
    tiles = []
    attacks = [attack for attack in run.attacks if attack["total"]]
    clean = next((attack for attack in attacks if attack["name"] == "none"), None)
    if clean:
        tiles.append(("Clean accuracy", tables.accuracy(clean), _counts(clean)))
    for (name, value), members in zip(tables.run_means(run).items(), tables.mean_columns(run), strict=True):
        tiles.append((name, value, f"of {len(members)} attacks" if members else ""))
    worst = (run.results.get("summary") or {}).get("worst_case") or {}
    if worst.get("total"):
        tiles.append(("Worst case", worst["correct"] / worst["total"], _counts(worst)))
    crafted = [attack for attack in attacks if attack["name"] != "none"]
    if crafted:
        strongest = min(crafted, key=lambda attack: attack["correct"] / attack["total"])
        tiles.append(("Strongest attack", tables.accuracy(strongest), tables.label(strongest)))
    robust = [line["robust_accuracy"] for line in run.validation if line.get("robust_accuracy") is not None]
    if not attacks and robust:
        tiles.append(("Best on validation", max(robust), "robust accuracy"))
    shown = "".join(
        f'<div><dt>{name}</dt><dd class="value">{tables.percent(value)}<span class="unit"> %</span></dd>'
        f"<dd>{_norms(remark)}</dd></div>"
        for name, value, remark in tiles
        if value is not None
    )
    return f'<dl class="headline">{shown}</dl>' if shown else ""


def _notice(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    heading = '<h2 id="notice-title">Noteworthy</h2>'
    return f'<aside class="notice" aria-labelledby="notice-title">{heading}<ul>{items}</ul></aside>'


def _robustness(run: Run) -> str:
    table = tables.robustness(run)
    if not run.attacks or not table.header:
        return ""
    means = [heading in tables.MEANS for heading in table.header]
    marks = [' class="mean"' if mean else "" for mean in means]
    head = "".join(f'<th scope="col"{m}>{_norms(h)}</th>' for h, m in zip(table.header, marks, strict=True))
    row = "".join(f"<td{m}>{escape(cell)}</td>" for cell, m in zip(table.rows[0], marks, strict=True))
    remark = (run.results.get("data") or {}).get("remark")
    return "\n".join(
        [
            f"<p>{_norms(tables.explanation(run))}</p>",
            _scroll(f"<thead><tr>{head}</tr></thead><tbody><tr>{row}</tr></tbody>", "Robustness", "large"),
            f'<p class="note">{escape(str(remark))}</p>' if remark else "",
            _sources(table),
        ]
    )


def _attacks(run: Run) -> str:
    if not run.attacks:
        return ""
    table = tables.attacks(run)
    # The long parameters come last, so that a phone shows the accuracies first; a bar follows the number it shows.
    order = sorted(range(len(table.header)), key=lambda column: table.header[column] == "Parameters")
    place = [table.header[column] for column in order].index("Accuracy") + 1
    head = [f'<th scope="col"{_text(column, table)}>{_norms(table.header[column])}</th>' for column in order]
    head.insert(place, '<td class="text" aria-hidden="true"></td>')
    rows = []
    for attack, row in zip(run.attacks, table.rows, strict=True):
        cells = [f'<th scope="row" class="text">{_norms(row[0])}</th>']
        for column in order[1:]:
            wrap = ' class="text wrap"' if table.header[column] == "Parameters" else _text(column, table)
            cells.append(f"<td{wrap}>{escape(row[column])}</td>")
        cells.insert(place, f'<td class="text">{_bar(attack)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return "\n".join(
        [
            f"<p>{_norms(tables.ATTACKS_EXPLANATION)}</p>",
            _scroll(body, "Attacks"),
            _sources(table),
        ]
    )


def _bar(attack: Mapping[str, Any]) -> str:
    if not attack["total"]:
        return ""
    low, high = (100 * bound for bound in tables.wilson(attack["correct"], attack["total"]))
    share = 100 * attack["correct"] / attack["total"]
    return (
        '<span class="bar" aria-hidden="true">'
        f'<i style="width:{share:.2f}%"></i><b style="left:{low:.2f}%;width:{high - low:.2f}%"></b></span>'
    )


def _pictures(run: Run) -> str:
    """A table with a column per image and a row per attack; a cell holds image, perturbation and prediction."""
    rows = figures.picture_rows(run)
    if not rows:
        return ""
    names = run.class_names

    def name(label: int) -> str:
        return names[label] if names and 0 <= label < len(names) else str(label)

    labels = {int(i): int(y) for row in rows for i, y in zip(row.pictures.index, row.pictures.labels, strict=True)}
    head = "".join(
        f'<th scope="col">{escape(name(label))}<small>image {index}</small></th>' for index, label in labels.items()
    )
    body = []
    for row in rows:
        places = {int(index): place for place, index in enumerate(row.pictures.index)}
        magnified = None if row.perturbations is None else figures.around_grey(row.perturbations, row.factor)
        factor = "" if magnified is None else f"<small>perturbation × {row.factor:g}</small>"
        cells = []
        for index, label in labels.items():
            if index not in places:
                cells.append(f"<td>{ABSENT}</td>")
                continue
            place = places[index]
            predicted = int(row.pictures.predictions[place])
            state, mark = ("held", "✓") if predicted == label else ("fooled", "✗")
            said = f"predicted {name(predicted)}, is {name(label)}"
            images = _picture(row.pictures.images[place], f"Image {index}, {row.label}: {said}")
            if magnified is not None:
                alt = f"Perturbation of image {index} by {row.label}, magnified {row.factor:g} times"
                images += _picture(magnified[place], alt)
            cells.append(f'<td>{images}<span class="{state}">{mark} {escape(name(predicted))}</span></td>')
        body.append(f'<tr><th scope="row">{_norms(row.label)}{factor}</th>{"".join(cells)}</tr>')
    table = f'<thead><tr><th scope="col" class="text">Attack</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
    text = (
        "The true class is above each column, the network's prediction below each image: ✓ right, ✗ fooled. Below an "
        "adversarial image, its perturbation is shown around middle grey, magnified by the factor on the left."
    )
    return f"<p>{text}</p>\n{_scroll(table, 'Pictures', 'pictures')}"


def _picture(image: np.ndarray, alt: str) -> str:
    """An image in [0, 1], (H, W, 1 or 3), as an inline element: a PNG if small, a reduced JPEG if large."""
    from PIL import Image

    pixels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small = max(picture.size) <= SMALL
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture = picture.reduce(max(1, round(max(picture.size) / (2 * SMALL))))
        picture.save(buffer, "JPEG", quality=90, subsampling=0)
    source = _data_uri(buffer.getvalue(), "image/png" if small else "image/jpeg")
    width, height = picture.size
    mark = ' class="small"' if small else ""
    return f'<img{mark} src="{source}" width="{width}" height="{height}" alt="{escape(alt)}">'


def _training(panels: Sequence[tuple[figures.Panel, tuple[bytes, bytes]]]) -> str:
    shown = []
    for panel, (light, dark) in panels:
        width, height = (round(96 * side) for side in panel.size)
        shown.append(
            "<figure><picture>"
            f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark, "image/svg+xml")}">'
            f'<img src="{_data_uri(light, "image/svg+xml")}" width="{width}" height="{height}" '
            f'alt="{escape(panel.description)}"></picture></figure>'
        )
    return f'<div class="panels">{"".join(shown)}</div>' if shown else ""


def _settings(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    single = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    groups = [("General", single)] if single else []
    groups += [(name, _flat(value)) for name, value in config.items() if isinstance(value, Mapping) and value]
    text = "The resolved settings, as in <code>config.json</code>."
    return f'<p>{text}</p>\n<div class="cards">{"".join(_card(name, values) for name, values in groups)}</div>'


def _origin(run: Run) -> str:
    results = run.results
    if not results:
        return ""
    single = {name: results.get(name) for name in ("suite", "seed") if results.get(name) is not None}
    groups = [("Evaluation", single)]
    groups += [(name.capitalize(), _flat(results.get(name) or {})) for name in ("data", "network", "training")]
    groups += [(name.capitalize(), _flat(results.get(name) or {})) for name in ("device", "versions")]
    return f'<div class="cards">{"".join(_card(name, values) for name, values in groups if values)}</div>'


def _card(name: str, values: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(_value(value))}</dd>" for key, value in values.items())
    return f"<div><h3>{escape(name)}</h3><dl>{rows}</dl></div>"


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        first = ", ".join(_value(item) for item in value[:12])
        return f"{first}, … ({len(value)} in all)" if len(value) > 12 else first or "none"
    if isinstance(value, Mapping):
        return json.dumps(value, default=str)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return tables.parameter(value)
    return "none" if value is None else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _scroll(table: str, name: str, kind: str = "") -> str:
    """A table in its own container, which scrolls sideways with the mouse, a finger or the keyboard."""
    mark = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll" role="region" aria-label="{name}, table" tabindex="0"><table{mark}>{table}</table></div>'
    )


def _sources(table: Table) -> str:
    """The table to copy, in LaTeX and CSV."""
    return (
        "<details><summary>As LaTeX and CSV</summary>"
        f'<pre tabindex="0" aria-label="LaTeX">{escape(table.latex())}</pre>'
        f'<pre tabindex="0" aria-label="CSV">{escape(table.csv())}</pre></details>'
    )


def _norms(text: str) -> str:
    """Escaped text with the names of norms as mathematics."""
    text = re.sub(r"\blinf\b", "ℓ<sub>∞</sub>", escape(text))
    return re.sub(r"\bl([012])\b", r"ℓ<sub>\1</sub>", text)


def _text(column: int, table: Table) -> str:
    return ' class="text"' if column < table.left else ""


def _counts(counts: Mapping[str, Any]) -> str:
    return f"{counts['correct']:,} of {counts['total']:,} images"


def _amount(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _nested(values: Mapping[str, Any], *path: str) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None  # type: ignore[assignment]
    return values


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
