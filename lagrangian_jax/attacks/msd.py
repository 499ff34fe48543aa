"""Multi steepest descent (Maini et al. 2020): one attack in the union of an linf, an l2 and an l1 ball."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, expand, fold_in, l2_norm, project_l2
from lagrangian_jax.attacks.gradient import Forward, clip_to_box, stateless
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import cross_entropy


def project_l1(perturbation: Array, bound: float | Array) -> Array:
    r"""Euclidean projection of each example onto the l1 ball; what is inside does not change.

    :math:`\mathrm{sign}(d) \max(|d| - \theta, 0)`, theta from the sorted values (Duchi et al. 2008, figure 1).

    >>> import jax.numpy as jnp
    >>> print(project_l1(jnp.array([[3.0, -1.0], [0.5, 0.25]]), 1.0))
    [[ 1.   -0.  ]
     [ 0.5   0.25]]
    """
    sizes = jnp.abs(perturbation).reshape(perturbation.shape[0], math.prod(perturbation.shape[1:]))
    descending = -jnp.sort(-sizes, axis=-1)
    excess = jnp.cumsum(descending, axis=-1) - bound
    count = jnp.arange(1, sizes.shape[-1] + 1)[None]
    # The largest count with descending * count > excess; with a bound of zero there is none, and everything is cut.
    kept = jnp.maximum(jnp.sum(descending * count > excess, axis=-1), 1)
    threshold = jnp.take_along_axis(excess, kept[:, None] - 1, axis=-1)[:, 0] / kept
    cut = jnp.maximum(jnp.abs(perturbation) - expand(jnp.maximum(threshold, 0.0), perturbation), 0.0)
    return jnp.sign(perturbation) * cut


def top_k_direction(gradient: Array, adversarial: Array, gap: Array, count: Array, most: int) -> Array:
    """The sign of the ``count`` largest gradients of each example, zero elsewhere: steepest ascent in l1 for one step.

    Coordinates that cannot move by ``gap``, or are at 0 or 1, are left out; ties with the smallest kept are kept.

    Args:
      gradient: (B, H, W, C).
      adversarial: (B, H, W, C), the images at which the gradient was taken.
      gap: (B,), the change that each coordinate is to make.
      count: (B,) integers, at most ``most``.
      most: a static upper limit of ``count``.

    Returns:
      (B, H, W, C) of -1, 0 and 1.
    """
    gap = expand(gap, gradient)
    blocked = (gradient < 0) & (adversarial <= gap) | (gradient > 0) & (adversarial >= 1 - gap)
    blocked |= (adversarial <= 0) | (adversarial >= 1)
    sizes = jnp.where(blocked, 0.0, jnp.abs(gradient))
    most = min(most, sizes[0].size)
    largest = lax.top_k(sizes.reshape(sizes.shape[0], -1), most)[0]
    smallest_kept = jnp.take_along_axis(largest, jnp.minimum(count, most)[:, None] - 1, axis=-1)[:, 0]
    return jnp.where(sizes >= expand(smallest_kept, sizes), jnp.sign(gradient) * (sizes > 0), 0.0)


def msd(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    steps: int = 50,
    bound_linf: float = 0.03,
    bound_l2: float = 0.5,
    bound_l1: float = 12.0,
    step_size_linf: float = 0.003,
    step_size_l2: float = 0.05,
    step_size_l1: float = 0.05,
    coordinates: tuple[int, int] = (5, 20),
) -> Array:
    r"""Multi steepest descent: each step tries an l1, an l2 and an linf step and keeps that of largest cross-entropy.

    From d = 0, all three candidates start at the same d with the gradient g of the cross-entropy there, and end with a
    clip of x + d to [0, 1]:

    .. math::
      d_\infty = \mathrm{clip}_{[-b_\infty, b_\infty]}(d + s_\infty \mathrm{sign}(g)), \quad
      d_2 = \Pi_{b_2}(d + s_2\, g / \|g\|_2), \quad
      d_1 = \Pi_{b_1}(d + s_1 \tfrac{20}{k}\, \mathrm{sign}(g)\, [|g| \text{ among the } k \text{ largest}])

    The candidate of largest loss is the next d (ties: linf before l2 before l1); the d of largest loss over all steps
    is returned.

    Args:
      key: a PRNG key, or one key per example (B,); draws k.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      steps: number of steps; each costs one gradient and three forward passes.
      bound_linf, bound_l2, bound_l1: radii, in units of images over all pixels and channels. The training script of the
        publication uses 0.3 for l2.
      step_size_linf, step_size_l2: step sizes, in the units of the radii.
      step_size_l1: change of each of the k coordinates for k = 20; inversely proportional to k.
      coordinates: smallest and largest k, drawn uniformly in each step.

    Returns:
      adversarial images (B, H, W, C) in [0, 1], each in at least one of the three balls.

    Source: robust_union `msd_v0`. Deviations: float32 where the original has float16; k is drawn for each example,
    where the original draws one for the batch; perturbations inside the l1 ball are left alone, where the original
    moves them to its surface as soon as one of the batch is outside; a zero gradient gives no l2 step, not NaN.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), -images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("msd", steps=20, bound_l1=0.5)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(adversarial.ravel())  # the l2 ball reaches furthest here
    [0.25 0.25 0.25 0.25]
    """
    options: dict[str, Any] = dict(
        bound_linf=bound_linf, bound_l2=bound_l2, bound_l1=bound_l1, steps=steps, coordinates=coordinates
    )
    options |= dict(step_size_linf=step_size_linf, step_size_l2=step_size_l2, step_size_l1=step_size_l1)
    return msd_with_state(key, stateless(logits_fn), (), images, labels, **options)[0]


def msd_with_state(
    keys: Array,
    forward: Forward,
    state: Any,
    images: Array,
    labels: Array,
    *,
    steps: int = 50,
    bound_linf: float = 0.03,
    bound_l2: float = 0.5,
    bound_l1: float = 12.0,
    step_size_linf: float = 0.003,
    step_size_l2: float = 0.05,
    step_size_l1: float = 0.05,
    coordinates: tuple[int, int] = (5, 20),
) -> tuple[Array, Any]:
    """`msd` for training: ``forward(images, state) -> (logits, state)``, which is called four times per step.

    Returns:
      the adversarial images and the state after the last forward pass.
    """
    keys = example_keys(keys, images.shape[0])
    fewest, most = coordinates

    def loss(perturbation, state):
        logits, state = forward(images + perturbation, state)
        return cross_entropy(logits, labels), state

    def total(perturbation, state):
        losses, state = loss(perturbation, state)
        return jnp.sum(losses), state

    def candidates(i, perturbation, gradient):
        count = jax.vmap(lambda key: jax.random.randint(key, (), fewest, most + 1))(fold_in(keys, i))
        size = step_size_l1 * 20 / count
        direction = top_k_direction(gradient, images + perturbation, size, count, most)
        yield project_l1(perturbation + expand(size, direction) * direction, bound_l1)
        norm = l2_norm(gradient)
        unit = gradient / expand(jnp.where(norm > 0, norm, 1.0), gradient)
        yield project_l2(perturbation + step_size_l2 * unit, bound_l2)
        yield jnp.clip(perturbation + step_size_linf * jnp.sign(gradient), -bound_linf, bound_linf)

    def step(i, carry):
        perturbation, state, best, best_losses = carry
        gradient, state = jax.grad(total, has_aux=True)(perturbation, state)
        following, largest = perturbation, jnp.zeros_like(best_losses)
        for candidate in candidates(i, perturbation, gradient):
            candidate = clip_to_box(candidate, images)
            losses, state = loss(candidate, state)
            following = jnp.where(expand(losses >= largest, following), candidate, following)
            largest = jnp.maximum(losses, largest)
        best = jnp.where(expand(largest > best_losses, best), following, best)
        return following, state, best, jnp.maximum(largest, best_losses)

    start = (jnp.zeros_like(images), state, jnp.zeros_like(images), jnp.zeros(labels.shape, images.dtype))
    _, state, best, _ = lax.fori_loop(0, steps, step, start)
    return jnp.clip(images + best, 0.0, 1.0), state
