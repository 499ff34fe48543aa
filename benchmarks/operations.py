"""Counts the floating-point operations of a function in its jaxpr: convolutions and matrix products, loops included."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def count(function: Callable, *arguments: Any, rounds: int = 1) -> float:
    """Operations (a multiplication and an addition are two) of one call.

    Element-wise work and reductions are not counted: they are bound by memory, not arithmetic. Products with the zeros
    of padding are counted, those with the zeros of dilation are not: the transposed convolution of a strided one costs
    what the strided one does.

    >>> import jax.numpy as jnp
    >>> count(lambda a, b: jax.lax.fori_loop(0, 3, lambda i, a: a @ b, a), jnp.ones((2, 4)), jnp.ones((4, 4)))
    192.0
    """
    return total(_operations, function, *arguments, rounds=rounds)


def total(cost: Callable[[core.JaxprEqn], float], function: Callable, *arguments: Any, rounds: int = 1) -> float:
    """The sum of ``cost`` over all equations that one call executes.

    Args:
      cost: of one equation of the program; should be 0 for loops and calls, since their bodies are followed.
      function: what is called.
      arguments: its arrays, or `jax.ShapeDtypeStruct` of them.
      rounds: how often a loop runs whose end depends on what it computes.
    """
    return _total(cost, jax.make_jaxpr(function)(*arguments).jaxpr, rounds)


def _total(cost: Callable[[core.JaxprEqn], float], jaxpr: core.Jaxpr, rounds: int) -> float:
    # Leave out what nothing depends on, such as the attack's gradients of weights, as XLA does.
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    result = 0.0
    for equation in needed.eqns:
        name = equation.primitive.name
        if name == "cond":  # one branch runs; branches for different platforms do the same work
            result += max(_total(cost, branch.jaxpr, rounds) for branch in equation.params["branches"])
        else:
            times = {"scan": equation.params.get("length"), "while": rounds}.get(name, 1)
            result += cost(equation)
            result += times * sum(_total(cost, inner, rounds) for inner in _inner(equation.params))
    return result


def is_product(equation: core.JaxprEqn) -> bool:
    """Whether it is a convolution or a matrix product."""
    return equation.primitive.name in ("conv_general_dilated", "dot_general")


def _operations(equation: core.JaxprEqn) -> float:
    if not is_product(equation):
        return 0.0
    if equation.primitive.name == "conv_general_dilated":
        return _convolution(equation)
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


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
