"""Counts the floating-point operations of a function in its jaxpr: convolutions and matrix products, loops included."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def count(function: Callable, *arguments: Any) -> float:
    """Operations (a multiplication and an addition are two) of one call.

    Element-wise work and reductions are not counted: they are bound by memory, not arithmetic. Products with the zeros
    of
    padding or dilation are counted as the convolution computes them without dilation: the transposed convolution of a
    strided one costs what the strided one does.

    >>> import jax.numpy as jnp
    >>> count(lambda a, b: jax.lax.fori_loop(0, 3, lambda i, a: a @ b, a), jnp.ones((2, 4)), jnp.ones((4, 4)))
    192.0
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    # Without what nothing depends on: the attack's gradients of weights, which XLA leaves out too.
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":  # one branch runs; they do the same work for different platforms
            total += max(_count(branch.jaxpr) for branch in equation.params["branches"])
        else:
            times = equation.params.get("length", 1) if name == "scan" else 1
            total += times * sum(_count(inner) for inner in _inner(equation.params))
    return total


def _convolution(equation: core.JaxprEqn) -> float:
    right = equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    kernel = math.prod(right[axis] for axis in numbers.rhs_spec[2:])
    dense = 2 * math.prod(equation.outvars[0].aval.shape) * kernel * right[numbers.rhs_spec[1]]
    return dense / math.prod(equation.params["lhs_dilation"])


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
