"""Figures of a report, and the palette and styles that every figure of the project shares.

A figure is a function ``draw(figure, theme)`` on a matplotlib figure; `save` renders it for light and for dark pages.
Nothing here touches matplotlib's global state or a display: figures are made without pyplot.
"""

import dataclasses
import io
import math
import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lagrangian_jax.report import tables
from lagrangian_jax.report.workdir import Pictures, Run

# Hues that stay distinct in every common form of colour blindness; their lightness differs too. Use them in this order,
# and with a second channel: dashes (`LINES`) or markers.
COLOURS = ("blue", "vermillion", "green", "purple", "sky", "ochre")
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 3)), "-")


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a page: its background, ink, secondary ink, grid lines, and the palette by name."""

    background: str
    ink: str
    muted: str
    grid: str
    colours: Mapping[str, str]
    sheet: str = "none"  # what is painted behind a figure; "none" shows the page's background


LIGHT = Theme(
    background="#ffffff",
    ink="#1b1f24",
    muted="#57606a",
    grid="#e3e6ea",
    colours=types.MappingProxyType(
        dict(zip(COLOURS, ("#035aa5", "#b14900", "#08986e", "#7f3d72", "#377cc4", "#ae8e03"), strict=True))
    ),
)
DARK = Theme(
    background="#14171a",
    ink="#e6e8eb",
    muted="#9aa4af",
    grid="#2d333b",
    colours=types.MappingProxyType(
        dict(zip(COLOURS, ("#4a9ee9", "#f07a35", "#33d79b", "#dc9ace", "#8fd0f5", "#e6c14a"), strict=True))
    ),
)
# For files that are shown on either kind of page, or printed: a white sheet.
PAPER = dataclasses.replace(LIGHT, sheet="white")

Draw = Callable[[Any, Theme], None]


def render(draw: Draw, size: tuple[float, float], theme: Theme = LIGHT, form: str = "svg", dpi: int = 150) -> bytes:
    """The figure as a file's bytes; size in inches. The same input gives the same bytes."""
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    settings: Any = {
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": theme.muted,
        "axes.prop_cycle": cycler(color=list(theme.colours.values())),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "figure.facecolor": "none",
        "font.family": "DejaVu Sans",  # ships with matplotlib, so a figure looks the same everywhere
        "font.size": 9,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
        "lines.linewidth": 1.6,
        "savefig.facecolor": theme.sheet,
        "svg.fonttype": "path",
        "svg.hashsalt": "lagrangian_jax",
        "text.color": theme.ink,
        "text.parse_math": False,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, theme)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def recolour(svg: bytes) -> bytes:
    """Gives a figure for light pages the colours for dark ones: drawing, which takes the time, happens once."""
    pairs = {LIGHT.ink: DARK.ink, LIGHT.muted: DARK.muted, LIGHT.grid: DARK.grid}
    pairs |= {LIGHT.colours[name]: DARK.colours[name] for name in COLOURS}
    return re.sub("|".join(pairs), lambda found: pairs[found[0]], svg.decode()).encode()


def save(folder: pathlib.Path, name: str, draw: Draw, size: tuple[float, float]) -> tuple[bytes, bytes]:
    """Writes ``name.svg`` and ``name-dark.svg`` into the folder and returns their bytes."""
    light = render(draw, size, LIGHT)
    dark = recolour(light)
    (folder / f"{name}.svg").write_bytes(light)
    (folder / f"{name}-dark.svg").write_bytes(dark)
    return light, dark


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a panel: points, and whether it is drawn with markers (sparse) rather than as a line alone."""

    name: str
    x: np.ndarray
    y: np.ndarray
    markers: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """A small figure of the training: file name, title with the unit, curves, and the x axis's label."""

    name: str
    title: str
    curves: Sequence[Curve]
    axis: str
    selected: float | None = None  # the position of the selected checkpoint on the x axis

    size = (4.6, 2.9)

    def __call__(self, figure: Any, theme: Theme) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        axes.set_title(self.title)
        axes.set_xlabel(self.axis)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        colours = list(theme.colours.values())
        for i, curve in enumerate(self.curves):
            style: dict[str, Any] = {"color": colours[i], "linestyle": LINES[i], "label": curve.name}
            if curve.markers or len(curve.x) < 3:
                style |= {"marker": "os^D"[i % 4], "markersize": 4}
            axes.plot(curve.x, curve.y, **style)
        if self.selected is not None:
            axes.axvline(self.selected, color=theme.muted, linewidth=1, linestyle=":", label="selected")
        if len(self.curves) > 1 or self.selected is not None:
            handles, names = axes.get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower left", ncols=3, fontsize=8.5, columnspacing=1.4)

    @property
    def description(self) -> str:
        """What the panel shows, in words, with the first and last value of each curve."""
        spans = [f"{curve.name} from {curve.y[0]:.4g} to {curve.y[-1]:.4g}" for curve in self.curves]
        return f"{self.title} against {self.axis}: {'; '.join(spans)}"


def training(run: Run) -> list[Panel]:
    """The training's panels: accuracy, loss, perturbation norm, saturated margins, learning rate, speed.

    A measure without a finite value has no curve, and a panel without a curve is left out.
    """
    epochs = [line for line in run.train if _finite(line.get("epoch")) and line["epoch"] > 0 and line["step"] > 0]
    # Both kinds of lines are placed by step, not by epoch: validation counts whole epochs, training fractions of them.
    scale, axis = (epochs[-1]["epoch"] / epochs[-1]["step"], "epoch") if epochs else (1.0, "step")

    def curve(name: str, lines: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0) -> list[Curve]:
        points = [(line["step"] * scale, line[key] * factor) for line in lines if _finite(line.get(key))]
        if not points:
            return []
        x, y = _thin(*np.array(points, float).T)
        return [Curve(name, x, y, markers=lines is run.validation)]

    best = [line["step"] * scale for line in run.validation if line.get("best")]
    accuracies = [
        *curve("train clean", run.train, "clean_accuracy", 100),
        *curve("train adversarial", run.train, "adversarial_accuracy", 100),
        *curve("validation clean", run.validation, "clean_accuracy", 100),
        *curve("validation robust", run.validation, "robust_accuracy", 100),
    ]
    panels = [
        Panel("accuracy", "Accuracy (%)", accuracies, axis, best[-1] if best else None),
        Panel("loss", "Loss", curve("loss", run.train, "loss"), axis),
        Panel("perturbation", "Mean l2 norm of the perturbation", curve("norm", run.train, "perturbation_l2"), axis),
        Panel("saturated", "Saturated margins (%)", curve("share", run.train, "saturated", 100), axis),
        Panel("learning_rate", "Learning rate", curve("learning rate", run.train, "learning_rate"), axis),
        Panel("speed", "Images per second", curve("speed", run.train, "images_per_second"), axis),
    ]
    return [panel for panel in panels if panel.curves]


def robustness(run: Run) -> tuple[Draw, tuple[float, float]]:
    """Accuracy of each attack with its 95% interval, and the size of the figure."""
    attacks = run.attacks

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        for row, attack in enumerate(attacks):
            low, high = tables.wilson(attack["correct"], attack["total"])
            colour = theme.colours["green" if attack["name"] == "none" else "blue"]
            axes.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
            if attack["total"]:
                axes.plot(100 * attack["correct"] / attack["total"], row, "o", color=colour, markersize=5)
        axes.set_yticks(range(len(attacks)), [_short(tables.label(attack)) for attack in attacks])
        axes.tick_params(axis="y", labelcolor=theme.ink, length=0)
        axes.set_ylim(len(attacks) - 0.4, -0.6)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("accuracy (%), 95% interval")
        axes.grid(axis="y", visible=False)

    return draw, (5.6, 0.8 + 0.28 * len(attacks))


def magnification(perturbations: np.ndarray) -> float:
    """The factor, 1, 2 or 5 times a power of ten, that makes a perturbation's largest values fill the grey scale.

    >>> magnification(np.full((1, 2, 2, 3), 8 / 255))
    10.0
    """
    reach = float(np.quantile(np.abs(perturbations), 0.99)) if perturbations.size else 0.0
    reach = reach or float(np.max(np.abs(perturbations), initial=0.0))
    if not math.isfinite(reach) or reach <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(0.5 / reach))
    return max(1.0, power * max(step for step in (1, 2, 5) if step * power <= 0.5 / reach * (1 + 1e-4)))


def around_grey(perturbations: np.ndarray, factor: float) -> np.ndarray:
    """The perturbation times a factor around middle grey, clipped to [0, 1]."""
    return np.clip(0.5 + factor * perturbations, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class PictureRow:
    """A row of the picture grid: an attack's images, or the clean ones (``perturbations`` is None then)."""

    label: str
    pictures: Pictures
    perturbations: np.ndarray | None = None
    factor: float = 1.0


def picture_rows(run: Run) -> list[PictureRow]:
    """The clean images, then each attack's, with perturbations where the clean images of the same indices are known."""
    clean = run.pictures.get("none")
    rows = []
    for attack in sorted(run.attacks, key=lambda attack: attack["name"] != "none"):
        pictures = run.pictures.get(attack["name"])
        if pictures is None:
            continue
        perturbations = None
        same = clean is not None and np.array_equal(clean.index, pictures.index)
        if clean is not None and same and pictures is not clean and pictures.images.shape == clean.images.shape:
            perturbations = pictures.images - clean.images
        factor = 1.0 if perturbations is None else magnification(perturbations)
        rows.append(PictureRow(tables.label(attack), pictures, perturbations, factor))
    return rows


def pictures(rows: Sequence[PictureRow]) -> tuple[Draw, tuple[float, float]]:
    """The picture grid as one figure, for Markdown, and its size."""
    stripes: list[tuple[str, np.ndarray]] = []
    for row in rows:
        stripes.append((_short(row.label), row.pictures.images))
        if row.perturbations is not None:
            stripes.append((f"perturbation ×{row.factor:g}", around_grey(row.perturbations, row.factor)))
    columns = max(len(images) for _, images in stripes)

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()  # one for all pictures: an axes for each takes ten times as long
        axes.set_axis_off()
        for line, (name, images) in enumerate(stripes):
            axes.text(-0.1, line + 0.5, name, ha="right", va="center", fontsize=8)
            for column, image in enumerate(images):
                shown = np.clip(image if image.shape[-1] == 3 else np.repeat(image, 3, -1), 0, 1)
                axes.imshow(shown, extent=(column, column + 0.95, line + 0.95, line), interpolation="nearest")
        axes.set(xlim=(0, columns), ylim=(len(stripes), 0), aspect="equal")

    return draw, (1.6 + 0.8 * columns, 0.1 + 0.8 * len(stripes))


def _short(text: str, most: int = 32) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thin(x: np.ndarray, y: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points: means of neighbours, so that no peak is picked or lost by chance."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts
