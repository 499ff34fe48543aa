"""Figures of the analyses, as in `lagrangian_jax.report.figures`: each is a function that draws, and a size.

>>> import numpy as np
>>> from lagrangian_jax.report import figures
>>> draw, size = accuracy_against_bound({"Lagrangian": (np.array([0, 1]), np.array([80.0, 54.0]))}, "l2 norm")
>>> figures.render(draw, size)[:5]
b'<?xml'
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lagrangian_jax.analysis import foreground_to_background, rank_correlation
from lagrangian_jax.report.figures import LINES, Draw, Theme, around_grey, magnification

SHOWN = 1000  # most points in a scatter plot; more would hide each other
BINS = 20  # most groups of examples by confidence, for the line of medians
LEAST = 10  # fewest examples in a group; a median of fewer is noise


def norm_against_confidence(panels: Mapping[str, Sequence[ArrayLike]]) -> tuple[Draw, tuple[float, float]]:
    """The norm of the perturbation against the confidence on the clean image, one panel per attack (Figure 2).

    Args:
      panels: by the attack's name, `lagrangian_jax.analysis.NormsAndConfidence` or (confidence, norm).

    Returns:
      the function that draws it, and its size in inches. All panels share their axes. If there are many examples, only
      every n-th is drawn as a point; the line of medians and the rank correlation are over all.
    """
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, (name, pair) in zip(axes, panels.items(), strict=False):
            confidence, norm = (np.asarray(values, float) for values in pair)
            every = slice(None, None, math.ceil(len(norm) / SHOWN))
            style = {"color": theme.colours["sky"], "s": 7, "alpha": 0.4, "linewidths": 0, "zorder": 2}
            axis.scatter(confidence[every], norm[every], label="image", **style)
            middle, median = medians(confidence, norm)
            axis.plot(middle, median, color=theme.colours["vermillion"], label="median", zorder=3)
            correlation = rank_correlation(confidence, norm)
            number = "not defined" if math.isnan(correlation) else f"{correlation:.2f}".replace("-", "\N{MINUS SIGN}")
            axis.set_title(name)
            axis.set_title(f"rank correlation {number}", loc="right", color=theme.muted, fontsize=8.5, weight="normal")
        axes[0].set_xlim(-0.03, 1.03)
        axes[0].set_ylim(bottom=0)
        figure.supxlabel("probability of the label on the clean image", color=theme.muted, fontsize=9)
        figure.supylabel("l2 norm of the perturbation (of images in [0, 1])", color=theme.muted, fontsize=9)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=2, fontsize=8.5, markerscale=2)

    return draw, (3.4 * columns + 0.4, 2.3 * rows + 0.6)


def medians(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The medians of x and y in groups of (almost) equally many examples, by increasing x.

    >>> medians(np.arange(20)[::-1] / 20, np.r_[np.full(10, 3.0), np.full(10, 7.0)])
    (array([0.225, 0.725]), array([7., 3.]))
    """
    groups = np.array_split(np.argsort(x), np.clip(len(x) // LEAST, 1, BINS))
    return np.array([np.median(x[group]) for group in groups]), np.array([np.median(y[group]) for group in groups])


def foreground(
    images: np.ndarray, probabilities: np.ndarray, perturbations: Mapping[str, np.ndarray]
) -> tuple[Draw, tuple[float, float]]:
    """Where attacks change pictures: images, their foreground, and each attack's perturbation (Figures 3 and 4).

    Args:
      images: (N, H, W, C) in [0, 1].
      probabilities: (N, H, W), the probability that a pixel belongs to the foreground.
      perturbations: by the attack's name, (N, H, W, C); shown around grey, magnified by the factor in the row's label,
        each with its foreground-to-background ratio.

    Returns:
      the function that draws it, and its size in inches.
    """

    def draw(figure: Any, theme: Theme) -> None:
        rows = 2 + len(perturbations)
        axes = figure.subplots(rows, len(images), squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)

        def show(row: int, name: str, pictures: np.ndarray, **style: Any) -> Any:
            axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", color=theme.ink)
            cells = zip(axes[row], pictures, strict=True)
            return [axis.imshow(picture, interpolation="nearest", **style) for axis, picture in cells]

        grey = images.shape[-1] == 1
        show(0, "image", np.repeat(images, 3, -1) if grey else images)
        scale = show(1, "foreground\nprobability", probabilities, cmap="cividis", vmin=0, vmax=1)[-1]
        bar = figure.colorbar(scale, ax=axes[1].tolist(), ticks=[0, 0.5, 1], pad=0.02, aspect=8)
        bar.outline.set_visible(False)
        for row, (name, d) in enumerate(perturbations.items(), start=2):
            factor = magnification(d)
            shown = around_grey(d, factor)
            show(row, f"{name}\nperturbation ×{factor:g}", np.repeat(shown, 3, -1) if grey else shown)
            ratios = foreground_to_background(jnp.asarray(d), jnp.asarray(probabilities))
            for axis, ratio in zip(axes[row], np.asarray(ratios), strict=True):
                axis.set_xlabel("not defined" if math.isnan(ratio) else f"{ratio:.2f}", labelpad=2, color=theme.ink)
        if perturbations:
            figure.supxlabel("foreground to background, below each perturbation", color=theme.muted, fontsize=9)

    return draw, (1.9 + len(images), 0.4 + 1.15 * (2 + len(perturbations)))


def accuracy_against_bound(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], unit: str
) -> tuple[Draw, tuple[float, float]]:
    """Accuracy under an attack against its bound, one curve per training method (Figures 5, 8 and 9).

    Args:
      curves: by the method's name, bounds and accuracies in per cent; at most six.
      unit: what bounds are measured in, e.g. "l2 norm" or "linf norm, 1/255".

    Returns:
      the function that draws it, and its size in inches.
    """

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.add_subplot()
        looks = zip(theme.colours.values(), LINES, "os^Dv*", strict=True)
        for (name, (bounds, accuracies)), (colour, line, marker) in zip(curves.items(), looks, strict=False):
            style = {"linestyle": line, "marker": marker, "markersize": 4.5, "clip_on": False, "zorder": 3}
            axes.plot(bounds, accuracies, color=colour, label=name, **style)
        axes.set_xlabel(f"bound of the attack ({unit})")
        axes.set_ylabel("accuracy (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        axes.legend()

    return draw, (4.6, 3.2)
