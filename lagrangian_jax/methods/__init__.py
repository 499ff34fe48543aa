"""Training methods: pure functions that craft images and say what to minimise."""

import inspect
from collections.abc import Callable
from typing import Any

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
from lagrangian_jax.methods.standard import standard
from lagrangian_jax.methods.threshold import threshold_l2, threshold_linf
from lagrangian_jax.methods.trades import mart, trades
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

__all__ = ["METHODS", "Batch", "Crafted", "Method", "Network", "Outcome", "create", "names", "parameters"]


def names() -> tuple[str, ...]:
    """The names that `create` takes."""
    return tuple(METHODS)


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a method with their defaults.

    >>> parameters("lagrangian")["multiplier"]
    2.0
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return {p.name: p.default for p in inspect.signature(METHODS[name]).parameters.values()}


def create(name: str, **values: Any) -> Method:
    """A configured training method.

    Raises:
      ValueError: unknown name or parameter; names the nearest and lists the valid ones.
    """
    valid = parameters(name)
    for value in values:
        if value not in valid:
            raise unknown(f"parameter of method {name!r}:", value, valid)
    return METHODS[name](**values)
