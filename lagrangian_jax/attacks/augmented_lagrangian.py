"""ALMA, the augmented Lagrangian attack of Rony et al. (2020)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, expand, l2_norm
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.attacks.minimal_norm import Closest, quantise, unit_or_noise
from lagrangian_jax.losses import margin

Distance = Callable[[Array, Array], Array]  # (images, others) -> (B,)


def l2_distance(images: Array, others: Array) -> Array:
    """The l2 norm of the difference of each pair, (B,)."""
    return l2_norm(others - images)


def augmented_lagrangian(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    steps: int = 1000,
    distance: Distance = l2_distance,
    init_distance: float = 0.1,
    smoothing: float = 0.9,
    rate_decay: float = 0.01,
    multiplier: float = 1.0,
    penalty: float = 1.0,
    penalty_growth: float = 1.2,
    improvement: float = 0.95,
    check_every: int = 10,
    tolerance: float = 1e-4,
    levels: int | None = None,
) -> Array:
    r"""ALMA: minimises a distance under the constraint of misclassification with an augmented Lagrangian.

    The constraint is the modified difference of logits ratio, negative when the label loses by the tolerance:

    .. math:: h = (z_y - \max_{k \ne y} z_k + \tau_z) / (z_{(1)} - z_{(3)} + 10^{-8}) < 0

    Each step descends :math:`D(x, x + d) + P(h, \rho, \mu)` in d with RMSProp and momentum, clipped to the box, where

    .. math::
      P(h, \rho, \mu) = \mu h + \mu \rho h^2 + \rho^2 h^3 / 6 \;\text{ for } h \ge 0, \quad
      \mu h / (1 - \rho h) \;\text{ for } h < 0

    Before each step :math:`\mu \leftarrow \alpha \mu + (1 - \alpha)\, \partial P / \partial h` for each example, and
    every ``check_every`` steps :math:`\rho \leftarrow \gamma \rho` where nothing has been found yet and h has not
    fallen below ``improvement`` times its value at the last check. The first step descends P alone, with the rate that
    moves the image by ``init_distance``; from the first success on, the rate falls exponentially to ``rate_decay``
    times that.

    Args:
      key: a PRNG key, or one key per example (B,); used only where the first gradient is zero.
      logits_fn: images (B, H, W, C) to logits (B, K), K at least 3.
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      steps: gradient evaluations. The publication reports 100 (with ``smoothing=0.5``) and 1,000 (with 0.9).
      distance: what is minimised, ``distance(images, others) -> (B,)``, differentiable; the l2 norm by default, or one
        of `lagrangian_jax.distances`.
      init_distance: distance after the first step; the publication uses 0.1 for l2, 0.01 for LPIPS.
      smoothing: alpha, the smoothing of the multiplier, of RMSProp and of the momentum.
      rate_decay: the last step size relative to the first.
      multiplier, penalty: the first mu and rho.
      penalty_growth: gamma.
      improvement: the share of its value at the last check to which the constraint must fall.
      check_every: steps between checks.
      tolerance: tau_z, in units of logits.
      levels: the images tried and returned have this many values per channel; None (the publication's) for any value.

    Returns:
      the adversarial images of smallest distance (B, H, W, C), in [0, 1]; the clean image where none was found.

    Source: Rony et al. 2020 (arXiv 2011.11857), algorithm 1 with penalty P2; adversarial-library `alma`. Deviation: the
    search for the first step size gives up after 60 doublings, where the original never ends if the image cannot move.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> def logits_fn(images):
    ...     total = images.sum((1, 2, 3))
    ...     return jnp.stack([total - 1.8, 1.8 - total, -5 + 0 * total], axis=-1)
    >>> attack = lj.attacks.create("augmented_lagrangian", steps=100, smoothing=0.5)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(f"{jnp.linalg.norm(adversarial - 0.5):.2f}")  # the boundary is at distance 0.1
    0.10
    """
    batch = images.shape[0]
    keys = example_keys(key, batch)

    def constraint(adversarial):
        logits = logits_fn(adversarial)
        if logits.shape[-1] < 3:
            raise ValueError(f"augmented_lagrangian: needs logits of at least 3 classes, got {logits.shape[-1]}")
        top = lax.top_k(logits, 3)[0]
        return (tolerance - margin(logits, labels)) / (top[:, 0] - top[:, 2] + 1e-8)

    def step(i, state: _Search) -> _Search:
        h, pull_back = jax.vjp(constraint, state.adversarial)
        distances, distance_pull_back = jax.vjp(lambda x: distance(images, x), state.adversarial)
        # The multipliers, then the record, then the step: the original's order.
        check = (i > 0) & ((i + 1) % check_every == 0)
        harder = check & ~state.found & (h >= improvement * state.checked)
        rho = jnp.where(harder, penalty_growth * state.rho, state.rho)
        mu = jnp.clip(smoothing * state.mu + (1 - smoothing) * _penalty_slope(h, rho, state.mu), 1e-6, 1e12)
        mu = jnp.where(i == 0, state.mu, mu)
        fooled = h < 0
        first_found = jnp.where(fooled & ~state.found, i, state.first_found)
        found = state.found | fooled

        (gradient,) = pull_back(_penalty_slope(h, rho, mu))
        gradient += distance_pull_back(jnp.where(i == 0, jnp.zeros_like(distances), 1.0))[0]
        gradient, rate = lax.cond(i == 0, first_step, lambda gradient, rate: (gradient, rate), gradient, state.rate)
        progress = jnp.where(found, (i - first_found) / (steps - first_found), 0.0)
        squares = smoothing * state.squares + (1 - smoothing) * jnp.square(gradient)
        momentum = smoothing * state.momentum + gradient / (jnp.sqrt(squares) + 1e-8)
        moved = state.adversarial - expand(rate * rate_decay**progress, images) * momentum
        return _Search(
            adversarial=quantise(moved, levels),
            squares=squares,
            momentum=momentum,
            rate=rate,
            mu=mu,
            rho=rho,
            checked=jnp.where(check | (i == 0), h, state.checked),
            found=found,
            first_found=first_found,
            closest=state.closest.updated(state.adversarial, distances, fooled),
        )

    def first_step(gradient, rate):
        noise = unit_or_noise(jnp.zeros_like(gradient), keys)
        noise /= expand(l2_norm(noise), noise)
        gradient = jnp.where(expand(l2_norm(gradient) <= 1e-6, gradient), noise, gradient)
        return gradient, _rate_for_distance(images, gradient, distance, init_distance)

    ones = jnp.ones(batch, images.dtype)
    start = _Search(
        adversarial=images,
        squares=jnp.ones_like(images),
        momentum=jnp.zeros_like(images),
        rate=ones,
        mu=multiplier * ones,
        rho=penalty * ones,
        checked=jnp.zeros_like(ones),
        found=jnp.zeros(batch, bool),
        first_found=jnp.zeros(batch, jnp.int32),
        closest=Closest.none(images),
    )
    return lax.fori_loop(0, steps, step, start).closest.images


class _Search(NamedTuple):
    """The state of the search: images are (B, H, W, C), all others (B,)."""

    adversarial: Array
    squares: Array  # RMSProp's mean of squared gradients
    momentum: Array
    rate: Array  # the step size that the first step finds
    mu: Array  # the multiplier
    rho: Array  # the penalty
    checked: Array  # the constraint at the last check
    found: Array  # whether an adversarial image was found
    first_found: Array  # the step that first found one
    closest: Closest


def _penalty_slope(h: Array, rho: Array, mu: Array) -> Array:
    """dP/dh for the penalty-Lagrangian P2."""
    outside = mu + 2 * mu * rho * h + jnp.square(rho * h) / 2
    inside = mu / jnp.square(1 - rho * jnp.minimum(h, 0.0))
    return jnp.where(h >= 0, outside, inside)


def _rate_for_distance(images: Array, gradient: Array, distance: Distance, target: float) -> Array:
    """The step size (B,) at which descending ``gradient`` and clipping to the box moves the images by ``target``."""

    def beyond(rate):
        moved = jnp.clip(images - expand(rate, gradient) * gradient, 0.0, 1.0)
        return distance(images, moved) > target

    def double(carry):
        i, lower, upper, found = carry
        lower, upper = jnp.where(found, lower, upper), jnp.where(found, upper, 2 * upper)
        return i + 1, lower, upper, beyond(upper)

    def bisect(_, carry):
        lower, upper = carry
        middle = (lower + upper) / 2
        larger = beyond(middle)
        return jnp.where(larger, lower, middle), jnp.where(larger, middle, upper)

    ones = jnp.ones(images.shape[0], images.dtype)
    start = (0, jnp.zeros_like(ones), ones, beyond(ones))
    _, lower, upper, _ = lax.while_loop(lambda c: (c[0] < 60) & ~jnp.all(c[3]), double, start)
    lower, upper = lax.fori_loop(0, 20, bisect, (lower, upper))
    return (lower + upper) / 2
