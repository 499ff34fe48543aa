"""Suites: named lists of attacks with budgets.

A suite is a tuple of `Row`; `SUITES` holds the named ones, and `lagrangian_jax.evaluation.run` takes a name or any
sequence of rows. The columns of the paper's tables have ids, such as ``"stadv"``, which decide what enters its means.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lagrangian_jax.names import unknown


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack of a suite.

    Attributes:
      name: unique in the suite; it names the row's file and seeds its random numbers.
      attack: a name for `lagrangian_jax.attacks.create`; the row's name if not given.
      parameters: of the attack. A ``distance`` may be a name, which is resolved when the suite runs.
      column: id of the column in the paper's tables; None for a row that stands beside the table, outside its means.
      label: for tables and figures; the name if not given.

    >>> Row("weak", "pgd_l2", {"bound": 0.5})
    Row(name='weak', attack='pgd_l2', parameters={'bound': 0.5}, column=None, label='weak')
    """

    name: str
    attack: str = ""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    column: str | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", self.name):
            raise ValueError(
                f"name of a row: expected letters, digits and _ . + -, because it names a file; got {self.name!r}"
            )
        object.__setattr__(self, "attack", self.attack or self.name)
        object.__setattr__(self, "label", self.label or self.name)


_CLEAN = Row("none", column="clean", label="Clean")
_NOISE = Row("gaussian_noise", column="noise", label="Gaussian noise")
_BLUR = Row("gaussian_blur", column="blur", label="Gaussian blur")
_PAPER_ELASTIC = {"bound": 0.5, "steps": 50, "kernel_size": 25, "sigma": 3.0, "align_corners": False}


def _shared_by_both_tables() -> dict[str, Row]:
    return {
        "recolor": Row("recolor", parameters={"bound": 0.06, "steps": 100}, column="recolor", label="ReColorAdv"),
        "stadv": Row("stadv", parameters={"bound": 0.05, "steps": 100}, column="stadv", label="StAdv"),
        "elastic": Row("elastic", parameters=_PAPER_ELASTIC, column="elastic", label="Elastic"),
        "jpeg": Row("jpeg", parameters={"bound": 0.125, "steps": 50}, column="jpeg", label="JPEG"),
    }


def _elastic_beside(kernel_size: int, sigma: float, align_corners: bool) -> Row:
    # Which kernel and which sampling convention the paper used is not known; they differ much, so all are shown.
    name = f"elastic_k{kernel_size}" + "_aligned" * align_corners
    parameters = {**_PAPER_ELASTIC, "kernel_size": kernel_size, "sigma": sigma, "align_corners": align_corners}
    return Row(name, "elastic", parameters, label=f"Elastic, kernel {kernel_size}" + ", aligned" * align_corners)


def _cifar10_table1() -> tuple[Row, ...]:
    lpa = {"bound": 0.5, "steps": 200, "distance": "lpips_alexnet_cifar"}
    return (
        _CLEAN,
        Row("lpa", parameters=lpa, column="lpa", label="LPA"),
        Row("pgd_linf", parameters={"bound": 8 / 255, "steps": 40}, column="linf", label="PGD linf 8/255"),
        Row("pgd_l2", parameters={"bound": 1.0, "steps": 40}, column="l2", label="PGD l2 1.0"),
        *_shared_by_both_tables().values(),
        _NOISE,
        _BLUR,
        Row("pgd_l0", column="pgd0", label="PGD0"),
        _elastic_beside(25, 3.0, True),
        _elastic_beside(5, 3 / 7, False),
        _elastic_beside(5, 3 / 7, True),
    )


def _lp() -> tuple[Row, ...]:
    """The rows of Table 1 that take a CPU hours, not days, on the whole test set."""
    return tuple(row for row in _cifar10_table1() if row.column in ("clean", "linf", "l2", "noise", "blur"))


def _imagenet100_table2() -> tuple[Row, ...]:
    lpa = {"bound": 0.25, "steps": 200, "distance": "lpips_alexnet"}
    return (
        _CLEAN,
        Row("lpa", parameters=lpa, column="lpa", label="LPA"),
        Row("pgd_linf", parameters={"bound": 4 / 255, "steps": 40}, column="linf", label="PGD linf 4/255"),
        Row("pgd_l2", parameters={"bound": 4.0, "steps": 40}, column="l2", label="PGD l2 4.0"),
        *_shared_by_both_tables().values(),
        Row("fog", parameters={"bound": 256.0, "steps": 50}, column="fog", label="Fog"),
        # The caption's 0.125 changes nothing in pixel units; 12.5 is the published calibration.
        Row("gabor", parameters={"bound": 12.5, "steps": 50}, column="gabor", label="Gabor"),
        Row("snow", parameters={"bound": 0.125, "steps": 50}, column="snow", label="Snow"),
        _NOISE,
        _BLUR,
        _elastic_beside(25, 3.0, True),
    )


def _autoattack(norm: str, bound: float, label: str) -> tuple[Row, ...]:
    parameters = {"norm": norm, "bound": bound}
    return _CLEAN, Row(f"autoattack_{norm}", "autoattack", parameters, label=f"AutoAttack {norm} {label}")


SUITES: dict[str, tuple[Row, ...]] = {
    "clean": (_CLEAN,),
    "quick": (
        _CLEAN,
        Row("lagrangian", column="lagrangian", label="Lagrangian"),
        Row("fgsm", parameters={"bound": 8 / 255}, column="fgsm", label="FGSM 8/255"),
        Row("pgd_linf", parameters={"bound": 8 / 255, "steps": 20}, column="linf", label="PGD linf 8/255"),
        Row("pgd_l2", parameters={"bound": 1.0, "steps": 20}, column="l2", label="PGD l2 1.0"),
        _NOISE,
        _BLUR,
    ),
    "lp": _lp(),
    "cifar10_table1": _cifar10_table1(),
    "imagenet100_table2": _imagenet100_table2(),
    "autoattack_linf": _autoattack("linf", 8 / 255, "8/255"),
    "autoattack_l2": _autoattack("l2", 1.0, "1.0"),
}

# The columns of the paper's two means, (unseen, union); both are means of accuracies, without the clean one.
_CIFAR10_UNSEEN = ("recolor", "stadv", "elastic", "jpeg", "noise", "blur", "pgd0")
_IMAGENET100_UNSEEN = ("recolor", "stadv", "elastic", "fog", "gabor", "snow", "noise", "blur")
MEANS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (_CIFAR10_UNSEEN, (*_CIFAR10_UNSEEN, "lpa", "linf", "l2")),
    (_IMAGENET100_UNSEEN, (*_IMAGENET100_UNSEEN, "lpa", "linf", "l2", "jpeg")),
)


def means_of(columns: Collection[str | None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of the two means; empty if any of them is missing."""
    return next((pair for pair in MEANS if set(pair[1]) <= set(columns)), ((), ()))


def names() -> tuple[str, ...]:
    """The names that `get` takes."""
    return tuple(SUITES)


def get(name: str) -> tuple[Row, ...]:
    """The rows of a named suite.

    Raises:
      ValueError: an unknown name; says which is nearest.

    >>> [row.name for row in get("quick")]
    ['none', 'lagrangian', 'fgsm', 'pgd_linf', 'pgd_l2', 'gaussian_noise', 'gaussian_blur']
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name]


def rows(suite: str | Sequence[Row]) -> tuple[Row, ...]:
    """The rows of a suite by name, or the given ones, checked."""
    if isinstance(suite, str):
        return get(suite)
    given = tuple(suite) if isinstance(suite, Iterable) else ()
    if not given or not all(isinstance(row, Row) for row in given):
        raise ValueError(f"suite: expected a name ({', '.join(SUITES)}) or a list of evaluation.Row, got {suite!r}")
    if repeated := _repeated([row.name for row in given]):
        raise ValueError(f"suite: every row needs a name of its own; repeated: {repeated}")
    if repeated := _repeated([row.column for row in given if row.column]):
        raise ValueError(f"suite: only one row can stand for a column in the means; repeated: {repeated}")
    return given


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))
