"""The valid values of each parameter of an attack or a training method, by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def constant(value: Any) -> bool:
    """Whether the value is a finite number and not a bool."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> bool:
    """Whether the value is a `constant`, or a real number that JAX is tracing, as in `jax.vmap` over bounds."""
    traced = isinstance(value, jax.core.Tracer) and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.floating)
    return traced or constant(value)


def integer(value: Any) -> bool:
    """Whether the value is an integer and not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _integers(value: Any, count: int, least: int) -> bool:
    return isinstance(value, Sequence) and len(value) == count and all(integer(v) and v >= least for v in value)


# Pixels are in [0, 1], so a larger linf bound must be a mistake, such as 8 for 8/255.
LINF_BOUND = (lambda v: number(v) and 0 <= v <= 1, "a number from 0 to 1, as 8/255")

# For each name: a test of whether a value is in range, and the range in words.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bound": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "steps": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "restarts": (
        lambda v: v is None or (integer(v) and v >= 1),
        "an integer, 1 or larger, or None for the attack's default",
    ),
    "targets": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "queries": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "rho": (lambda v: number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "share": (lambda v: constant(v) and 0 < v <= 1, "a number over 0, up to 1"),
    "step_size": (lambda v: v is None or (number(v) and v > 0), "a positive number, or None for the attack's default"),
    "keep": (lambda v: v in ("last", "best"), "'last' or 'best'"),
    "norm": (lambda v: v in ("linf", "l2"), "'linf' or 'l2'"),
    "rounds": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "solver_steps": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "projection": (lambda v: v in ("none", "bisection", "newton"), "'none', 'bisection' or 'newton'"),
    "projection_steps": (lambda v: v is None or (integer(v) and v >= 1), "an integer, 1 or larger, or None"),
    "probe": (lambda v: v in ("forward", "backward"), "'forward' or 'backward'"),
    "group": (lambda v: v is None or (integer(v) and v >= 1), "an integer, 1 or larger, or None"),
    "pixels": (lambda v: v is None or (integer(v) and v >= 1), "an integer, 1 or larger"),
    "max_pixels": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "iterations": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "candidates": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "batch_size": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "sinkhorn_steps": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "smoothness": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "sigma": (lambda v: constant(v) and v > 0, "a positive number"),
    "probe_size": (lambda v: number(v) and v > 0, "a positive number"),
    "regularisation": (lambda v: number(v) and v > 0, "a positive number"),
    "power": (lambda v: constant(v) and v > 0, "a positive number"),
    "gamma": (lambda v: number(v) and 0 < v < 1, "a number between 0 and 1"),
    "init_norm": (lambda v: number(v) and v > 0, "a positive number"),
    "max_norm": (lambda v: v is None or (number(v) and v > 0), "a positive number, or None"),
    "levels": (lambda v: v is None or (integer(v) and v >= 2), "an integer, 2 or larger, or None"),
    "search_steps": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "initial_const": (lambda v: number(v) and v > 0, "a positive number"),
    "multiplier": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "decay": (lambda v: number(v) and v > 0, "a positive number"),
    "init_std": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "overshoot": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "classes": (lambda v: integer(v) and v >= 2, "an integer, 2 or larger"),
    "smoothing": (lambda v: number(v) and 0 < v < 1, "a number between 0 and 1"),
    "init_distance": (lambda v: number(v) and v > 0, "a positive number"),
    "check_every": (lambda v: integer(v) and v >= 1, "an integer, 1 or larger"),
    "variance": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "bound_linf": LINF_BOUND,
    **{f"bound_{norm}": (lambda v: number(v) and v >= 0, "a number, 0 or larger") for norm in ("l2", "l1")},
    **{f"step_size_{norm}": (lambda v: number(v) and v > 0, "a positive number") for norm in ("linf", "l2", "l1")},
    "distance": (callable, "a distance, e.g. lagrangian_jax.distances.create('lpips_alexnet_cifar')"),
    "momentum": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "alpha_max": (lambda v: number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "eta": (lambda v: number(v) and v > 0, "a positive number"),
    "beta": (lambda v: number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "rate_decay": (lambda v: number(v) and 0 < v <= 1, "a number over 0, up to 1"),
    "penalty": (lambda v: number(v) and v > 0, "a positive number"),
    "penalty_growth": (lambda v: number(v) and v >= 1, "a number, 1 or larger"),
    "improvement": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "tolerance": (lambda v: number(v) and v >= 0, "a number, 0 or larger"),
    "kernel_size": (lambda v: integer(v) and v >= 1 and v % 2 == 1, "an odd integer, 1 or larger"),
    "padding": (lambda v: v in ("zero", "reflect"), "'zero' or 'reflect'"),
    "coordinates": (lambda v: _integers(v, 2, least=1) and v[0] <= v[1], "two integers, 1 or larger, in order"),
    "resolution": (lambda v: _integers(v, 3, least=2), "three integers, 2 or larger"),
    **{
        switch: (lambda v: isinstance(v, (bool, np.bool_)), "True or False")
        for switch in ("random_start", "abort_early", "align_corners", "batch_normalise", "clip")
    },
    "kappa": (lambda v: number(v) or (isinstance(v, (float, np.floating)) and v == math.inf), "a number, or inf"),
}


def check_ranges(what: str, values: Mapping[str, Any], ranges: Mapping[str, Any]) -> None:
    """Raises a `ValueError` for the first value out of range: names ``what``, the parameter, its range and the value.

    >>> check_ranges("attack 'fgsm'", {"bound": -1.0}, RANGES)
    Traceback (most recent call last):
    ...
    ValueError: attack 'fgsm': bound must be a number, 0 or larger; got -1.0
    """
    for parameter, (holds, expected) in ranges.items():
        if parameter in values and not _in_range(holds, values[parameter]):
            raise ValueError(f"{what}: {parameter} must be {expected}; got {values[parameter]!r}")


def _in_range(holds: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(holds(value))
    except jax.errors.TracerBoolConversionError:
        return True  # a traced number, which has no value yet
