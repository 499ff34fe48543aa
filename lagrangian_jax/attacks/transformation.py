"""Attacks that optimise the parameters of an image transformation: the Adam loop that StAdv and ReColorAdv share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import better
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import margin


def attack_transformation(
    logits_fn: LogitsFn,
    labels: Array,
    start: Array,
    render: Callable[[Array], Array],
    roughness: Callable[[Array], Array],
    project: Callable[[Array], Array],
    *,
    steps: int,
    step_size: float,
    smoothness: float,
    keep: str = "last",
) -> Array:
    r"""Maximises the margin of the rendered images minus a penalty on rough transformations, with Adam.

    .. math:: \max_\theta\; \max_{k \ne y} z_k(T_\theta(x)) - z_y(T_\theta(x)) - w R(\theta)

    The margin is not clamped. Before every forward pass the parameters are replaced by their projection, which is not
    differentiated. Adam acts on each number by itself and the objective is a sum over examples, so examples do not
    influence each other.

    Args:
      logits_fn: images (B, H, W, C) to logits (B, K).
      labels: (B,) integers.
      start: the first parameters, (B, ...).
      render: parameters to images.
      roughness: R, parameters to (B,).
      project: parameters to parameters within the bound.
      steps: number of gradient evaluations.
      step_size: Adam's learning rate (betas 0.9 and 0.999, epsilon 1e-8), in units of the parameters.
      smoothness: w, the weight of R.
      keep: "last" or "best" iterate, by the margin; "best" costs one more forward pass.

    Returns:
      the adversarial images.

    Source: the mister_ed engine in ReColorAdv, `recoloradv/mister_ed/adversarial_attacks.py` with the loss of
    `recoloradv.utils.get_attack_from_name`.
    """

    def objective(parameters):
        gain = margin(logits_fn(render(parameters)), labels)
        return jnp.sum(smoothness * roughness(parameters) - gain), gain

    def step(i, carry):
        parameters, mean, square, best = carry
        gradient, gain = jax.grad(objective, has_aux=True)(parameters)
        if keep == "best":
            best = better(best, parameters, gain)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * jnp.square(gradient)
        rate = step_size / (1 - 0.9 ** (i + 1.0))
        parameters -= rate * mean / (jnp.sqrt(square / (1 - 0.999 ** (i + 1.0))) + 1e-8)
        return project(parameters), mean, square, best

    parameters = project(start)
    best = (parameters, jnp.full(len(labels), -jnp.inf, parameters.dtype)) if keep == "best" else ()
    moments = jnp.zeros_like(parameters), jnp.zeros_like(parameters)
    parameters, *_, best = lax.fori_loop(0, steps, step, (parameters, *moments, best))
    if keep == "best":
        parameters, _ = better(best, parameters, margin(logits_fn(render(parameters)), labels))
    return render(parameters)
