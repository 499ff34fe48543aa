"""Sign-gradient ascent on the variables that generate an image: what the attacks of the UAR suite share."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from lagrangian_jax.attacks.gradient import ascend, stateless
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import cross_entropy


def sign_ascent(
    generate: Callable[[Array], Array],
    project: Callable[[Array, Array], Array],
    start: Array,
    logits_fn: LogitsFn,
    labels: Array,
    *,
    steps: int,
    step_size: float,
    keep: str,
) -> Array:
    r"""Raises the cross-entropy of a generated image: :math:`v \leftarrow \Pi(v + s\,\mathrm{sign}(\nabla_v))`.

    Args:
      generate: variables (B, ...) to images (B, H, W, C).
      project: ``(i, variables) -> variables``, called after step i = 0 .. steps - 1.
      start: the first variables (B, ...).
      logits_fn: images to logits (B, K).
      labels: (B,).
      steps: gradient evaluations.
      step_size: s, in units of the variables.
      keep: "last" or "best", by the cross-entropy.

    Returns:
      the images (B, H, W, C) of the variables that are kept.
    """
    forward = stateless(logits_fn)

    def objective(variables, state, i):
        logits, state = forward(generate(variables), state)
        values = cross_entropy(logits, labels)
        return values, values, state

    def update(i, variables, gradient):
        return project(i, variables + step_size * jnp.sign(gradient))

    return generate(ascend(objective, update, start, (), steps, keep)[0])
