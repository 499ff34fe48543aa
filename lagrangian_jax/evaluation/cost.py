"""What an attack costs, counted in its program: the network's forward passes and gradients per example.

`marked` puts identities around the network. They leave a trace in the program (a jaxpr) wherever the network runs
forward and wherever a gradient comes back to its images, whatever loops or `vmap` the attack puts around it; the
compiled code is the same as without them. A `Meter` adds up the traces, each times the number of trips of the loops
that contain it. If the data decide when a loop ends, the program counts its trips as it runs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir


class Cost(NamedTuple):
    """Forward passes and gradients per example.

    A count is None if the data decide when a loop inside another loop ends, and nothing limits its trips. ``exact`` is
    False if such a loop has a largest number of trips, or if a branch may be skipped; counts are then upper bounds.
    """

    forward_passes: float | None
    gradient_evaluations: float | None
    exact: bool = True


def _identity(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, lambda context, x: [x])
    batching.primitive_batchers[primitive] = lambda args, axes: (primitive.bind(*args), axes[0])
    return primitive


_forward, _input, _tangent, _backward = map(
    _identity, ("network_forward", "network_input", "network_tangent", "network_backward")
)


def _derive(primitive: Primitive, on_tangent: Callable[[Any], Any]) -> None:
    def jvp(primals, tangents):
        (tangent,) = tangents
        return primitive.bind(*primals), tangent if type(tangent) is ad.Zero else on_tangent(tangent)

    ad.primitive_jvps[primitive] = jvp


_derive(_forward, lambda tangent: tangent)
_derive(_input, _tangent.bind)
_derive(_backward, lambda tangent: tangent)
ad.deflinear(_tangent, lambda cotangent: [cotangent if type(cotangent) is ad.Zero else _backward.bind(cotangent)])


def marked(logits_fn: Callable[..., Any]) -> Callable[..., Any]:
    """``logits_fn(*variables, images)`` with its passes visible to a `Meter`; same values, same derivatives."""
    return lambda *arguments: _forward.bind(logits_fn(*arguments[:-1], _input.bind(arguments[-1])))


class Meter:
    """Wraps a function to count its cost: ``meter(*arguments) -> (outputs, trips)``, then `cost` of the trips.

    >>> import jax, jax.numpy as jnp
    >>> network = marked(lambda images: images.reshape(2, -1)[:, :3])
    >>> def descend(images):
    ...     return jax.lax.fori_loop(0, 7, lambda i, x: x - jax.grad(lambda x: network(x).sum())(x), images)
    >>> meter = Meter(descend)
    >>> _, trips = meter(jnp.zeros((2, 4, 4, 3)))
    >>> meter.cost(trips, logits=6, pixels=96)
    Cost(forward_passes=7.0, gradient_evaluations=7.0, exact=True)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._always, self._loops = _Tally(), list[_Tally]()

    def __call__(self, *arguments: Any) -> tuple[Any, Array]:
        """The function's outputs, and the trips of each loop whose end depends on the data, (loops,) int32."""
        program, shapes = jax.make_jaxpr(self._function, return_shape=True)(*arguments)
        self._always, self._loops = _Tally(), []
        trips: list[Array] = []
        values: dict[Any, Any] = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        values |= dict(zip(program.jaxpr.invars, jax.tree.leaves(arguments), strict=True))
        for equation in program.jaxpr.eqns:
            given = [atom.val if isinstance(atom, Literal) else values[atom] for atom in equation.invars]
            condition, trip = _trip(equation) if equation.primitive.name == "while" else (_Tally(), _Tally())
            if any(trip.passes.values()):
                counted, outputs = _count_trips(equation, given)
                trips.append(counted)
                self._always.add(condition)
                self._loops.append(trip)
            else:
                _walk([equation], 1.0, self._always)
                outputs = list(_bind(equation, given))
            values |= dict(zip(equation.outvars, outputs, strict=True))
        results = [atom.val if isinstance(atom, Literal) else values[atom] for atom in program.jaxpr.outvars]
        # JAX 0.11 passes an empty constant into `shard_map` from outside, and XLA crashes; zeros are made inside.
        counts = jnp.stack(trips) if trips else jnp.zeros(0, jnp.int32)
        return jax.tree.unflatten(jax.tree.structure(shapes), results), counts

    def cost(self, trips: Any, logits: int, pixels: int) -> Cost:
        """The cost of a call.

        Args:
          trips: as returned by the call; averaged over the devices, if it ran on several.
          logits: the size of the batch's logits, so that a pass over two copies of the batch counts twice; those of one
            device's share, if it ran on several.
          pixels: the size of the batch's images, likewise for gradients.
        """
        total = _Tally()
        total.add(self._always)
        for trip, times in zip(self._loops, np.asarray(trips), strict=True):
            total.add(trip, float(times))
        forward, backward = total.passes[_forward] / logits, total.passes[_backward] / pixels
        return Cost(None if np.isnan(forward) else forward, None if np.isnan(backward) else backward, total.exact)


def _bind(equation: Any, values: list[Any]) -> Sequence[Any]:
    bound = equation.primitive.get_bind_params(equation.params)
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)  # the form depends on JAX's version
    with equation.ctx.manager:
        outputs = equation.primitive.bind(*functions, *values, **parameters)
    return outputs if equation.primitive.multiple_results else [outputs]


def _count_trips(loop: Any, values: list[Any]) -> tuple[Array, list[Any]]:
    """Runs a `while` loop unchanged; returns the number of its trips, and its outputs."""
    constants, body_constants = loop.params["cond_nconsts"], loop.params["body_nconsts"]
    for_condition, for_body = values[:constants], values[constants : constants + body_constants]
    condition, body = jaxpr_as_fun(loop.params["cond_jaxpr"]), jaxpr_as_fun(loop.params["body_jaxpr"])

    def more(carry):
        return condition(*for_condition, *carry[1])[0]

    def step(carry):
        return carry[0] + 1, body(*for_body, *carry[1])

    return lax.while_loop(more, step, (jnp.int32(0), values[constants + body_constants :]))


class _Tally:
    def __init__(self) -> None:
        self.passes: dict[Any, float] = {_forward: 0.0, _backward: 0.0}
        self.exact = True

    def add(self, other: "_Tally", times: float = 1.0) -> None:
        for primitive, passes in other.passes.items():
            if passes:  # a loop of unknown length costs nothing if it contains no pass
                self.passes[primitive] += times * passes
        self.exact &= other.exact


def _walk(equations: Sequence[Any], times: float, found: _Tally) -> None:
    for equation in equations:
        name = equation.primitive.name
        inner = list(_inner(equation))
        if equation.primitive in found.passes:
            value: Any = equation.invars[0].aval
            found.passes[equation.primitive] += times * value.size
        elif name == "scan":
            _walk(inner[0].eqns, times * equation.params["length"], found)
        elif name == "while":
            condition, trip = _trip(equation)
            if any(trip.passes.values()):
                trip.exact = False
            trips = _most_trips(equation)
            found.add(condition, times)
            found.add(trip, times * (np.nan if trips is None else trips))
        elif name == "cond":
            branches, most = [_tally([branch]) for branch in inner], _Tally()
            most.passes = {kind: max(branch.passes[kind] for branch in branches) for kind in most.passes}
            most.exact = all(branch.exact and branch.passes == most.passes for branch in branches)
            found.add(most, times)
        else:
            for sub in inner:
                _walk(sub.eqns, times, found)


def _tally(jaxprs: list[Jaxpr]) -> _Tally:
    found = _Tally()
    for jaxpr in jaxprs:
        _walk(jaxpr.eqns, 1.0, found)
    return found


def _trip(loop: Any) -> tuple[_Tally, _Tally]:
    """What the condition of a `while` costs, which runs once more than the body, and what a whole trip costs."""
    condition, body = _open(loop.params["cond_jaxpr"]), _open(loop.params["body_jaxpr"])
    return _tally([condition]), _tally([condition, body])


def _open(jaxpr: Any) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _inner(equation: Any) -> Iterator[Jaxpr]:
    for parameter in equation.params.values():
        for value in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
            if isinstance(value, (ClosedJaxpr, Jaxpr)):
                yield _open(value)


def _most_trips(loop: Any) -> int | None:
    """The most trips of a `while` that counts up by one to a constant, whatever else may end it; else None."""
    condition, body = _open(loop.params["cond_jaxpr"]), _open(loop.params["body_jaxpr"])
    constants, body_constants = loop.params["cond_nconsts"], loop.params["body_nconsts"]
    carry = condition.invars[constants:]
    given = (*loop.invars[:constants], *loop.invars[constants + body_constants :])
    known = dict(zip(condition.invars, given, strict=True))

    def number(atom: Any) -> float | None:
        atom = atom if isinstance(atom, Literal) else known.get(atom)
        return np.asarray(atom.val).item() if isinstance(atom, Literal) and np.ndim(atom.val) == 0 else None

    bounds = []
    for comparison in _needed(condition):
        counter, limit = comparison.invars
        if counter not in carry:
            continue
        position, first, last = carry.index(counter), number(counter), number(limit)
        if first is not None and last is not None and _counts_up(body, body_constants + position, position):
            bounds.append(max(0, math.ceil(last - first)))
    return min(bounds, default=None)


def _needed(condition: Jaxpr) -> list[Any]:
    """The ``<`` comparisons that must all hold for the condition to hold."""
    made = {id(output): equation for equation in condition.eqns for output in equation.outvars}
    pending, found = [condition.outvars[0]], []
    while pending:
        equation = made.get(id(pending.pop()))
        if equation is None:
            continue
        if equation.primitive.name in ("and", "convert_element_type"):
            pending.extend(equation.invars)
        elif equation.primitive.name == "lt":
            found.append(equation)
    return found


def _counts_up(body: Jaxpr, argument: int, result: int) -> bool:
    for equation in body.eqns:
        if body.outvars[result] in equation.outvars and equation.primitive.name == "add":
            left, right = equation.invars
            return left is body.invars[argument] and isinstance(right, Literal) and bool(np.all(right.val == 1))
    return False
