"""Training methods: pure functions that craft images and say what to minimise."""

import inspect
from collections.abc import Callable
from typing import Any

from lagrangian_jax.attacks.ranges import LINF_BOUND, RANGES, check_ranges, constant
from lagrangian_jax.methods.carlini_wagner import carlini_wagner
from lagrangian_jax.methods.ddn import ddn
from lagrangian_jax.methods.iaat import iaat
from lagrangian_jax.methods.jpeg import jpeg
from lagrangian_jax.methods.lagrangian import lagrangian
from lagrangian_jax.methods.method import Batch, Crafted, Method, Network, Outcome
from lagrangian_jax.methods.mma import mma
from lagrangian_jax.methods.msd import msd
from lagrangian_jax.methods.pat import pat
from lagrangian_jax.methods.pgd import pgd_l2, pgd_linf
from lagrangian_jax.methods.segmentation import segmentation
from lagrangian_jax.methods.standard import standard
from lagrangian_jax.methods.threshold import threshold_l2, threshold_linf
from lagrangian_jax.methods.trades import mart, trades
from lagrangian_jax.models.forward import STATISTICS
from lagrangian_jax.names import unknown

METHODS: dict[str, Callable[..., Method]] = {
    "standard": standard,
    "lagrangian": lagrangian,
    "pgd_linf": pgd_linf,
    "pgd_l2": pgd_l2,
    "trades": trades,
    "mart": mart,
    "msd": msd,
    "ddn": ddn,
    "mma": mma,
    "iaat": iaat,
    "threshold_linf": threshold_linf,
    "threshold_l2": threshold_l2,
    "pat": pat,
    "jpeg": jpeg,
    "carlini_wagner": carlini_wagner,
}

# For networks that the analyses need; not adversarial training, so not among `names`.
AUXILIARY: dict[str, Callable[..., Method]] = {"segmentation": segmentation}

# Methods whose attacks carry no state, so that they cannot update the running averages.
WITHOUT_STATE = ("ddn", "pat", "jpeg", "carlini_wagner")

# Methods whose bound is in linf.
LINF = ("pgd_linf", "threshold_linf", "trades", "mart", "iaat")

# Valid values of parameters, by name: those of attacks, and those that only methods have or that they restrict further.
_RANGES = {
    **RANGES,
    "step_size": (lambda v: constant(v) and v > 0, "a positive number"),
    **{
        f"{what}_spread": (lambda v: constant(v) and v >= 1, "a number, 1 or larger")
        for what in ("multiplier", "bound")
    },
    "scaled": (lambda v: isinstance(v, bool), "True or False"),
    "beta": (lambda v: constant(v) and v >= 0, "a number, 0 or larger"),
    "largest": (lambda v: constant(v) and v > 0, "a positive number"),
    "smallest": (lambda v: constant(v) and v > 0, "a positive number"),
    "clean_weight": (lambda v: constant(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "increment": (lambda v: constant(v) and v >= 0, "a number, 0 or larger"),
    "rate": (lambda v: constant(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "warmup": (lambda v: constant(v) and v >= 0, "a number, 0 or larger"),
    "weight": (lambda v: constant(v) and v >= 0, "a number, 0 or larger"),
    "distance": (lambda v: isinstance(v, str), "the name of a distance"),
    "weights": (lambda v: isinstance(v, str), "the path of a file, or ''"),
}

__all__ = ["METHODS", "Batch", "Crafted", "Method", "Network", "Outcome", "create", "names", "parameters"]


def names() -> tuple[str, ...]:
    """The names that `create` takes."""
    return tuple(METHODS)


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a method with their defaults.

    >>> parameters("lagrangian")["multiplier"]
    2.0
    """
    return {p.name: p.default for p in inspect.signature(_find(name)).parameters.values()}


def create(name: str, **values: Any) -> Method:
    """A configured training method.

    Raises:
      ValueError: unknown name or parameter, or an invalid value; the message says what is valid.

    >>> print(create("mma", smallest=0.25).memory(3))  # a distance for each of three training images
    [0.25 0.25 0.25]
    """
    valid = parameters(name)
    for field in values:
        if field not in valid:
            raise unknown(f"parameter of method {name!r}:", field, valid)
    modes = ("eval", "batch") if name in WITHOUT_STATE else STATISTICS
    mode = (lambda v: v in modes, " or ".join(map(repr, modes)))
    given = {field: value for field, value in values.items() if value is not None or valid[field] is not None}
    ranges = {**_RANGES, "statistics": mode, "search_statistics": mode}
    check_ranges(f"method {name!r}", given, {**ranges, "bound": LINF_BOUND} if name in LINF else ranges)
    return _find(name)(**values)


def _find(name: str) -> Callable[..., Method]:
    if name not in METHODS and name not in AUXILIARY:
        raise unknown("method", name, METHODS)
    return METHODS.get(name) or AUXILIARY[name]
