"""The attack of Carlini and Wagner (2017) in l2."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_axes
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.attacks.minimal_norm import Closest
from lagrangian_jax.losses import margin


class _Search(NamedTuple):
    """The state of one round: Adam on the variable w at fixed constants, and what each example has reached."""

    i: Array
    shift: Array  # w - w0
    optimiser: Any
    live: Array  # whether the example still runs
    found: Array  # whether it was fooled in this round
    lowest: Array  # lowest loss
    previous: Array  # lowest loss at the last check of progress
    closest: Closest


def carlini_wagner(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    steps: int = 1000,
    search_steps: int = 9,
    step_size: float = 0.01,
    initial_const: float = 1e-3,
    kappa: float = 0.0,
    abort_early: bool = True,
) -> Array:
    r"""Carlini and Wagner's l2 attack: Adam on squared norm plus c times the margin, and a search for c.

    With :math:`x'(w) = (\tanh w + 1) / 2`, which stays in the box:

    .. math:: \min_w \|x'(w) - x\|_2^2 + c\, \max(z_y(x') - \max_{k \ne y} z_k(x') + \kappa, 0)

    Each round starts anew from :math:`w = \mathrm{artanh}((1 - 10^{-6})(2x - 1))`. c starts small. After a round
    without success it grows tenfold or, once its bracket has an upper end, moves to the middle of the bracket; after a
    success it also moves to the middle.

    Args:
      key: unused; the attack is deterministic.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      steps: the most gradient evaluations in a round. The original takes up to 10,000; 1,000 loses little, and with
        ``abort_early`` most rounds end sooner. A round lasts as long as the slowest example of the batch needs.
      search_steps: rounds, hence values of c. From 10 on, the last round repeats the smallest c that succeeded.
      step_size: learning rate of Adam, in units of w.
      initial_const: first c.
      kappa: the margin by which the label must lose, in units of logits, for an image to count as found.
      abort_early: end an example's round if its lowest loss has not fallen by 0.01 % within a tenth of the steps.

    Returns:
      the images of smallest l2 norm found (B, H, W, C), in [0, 1]; the clean image where none was found or where it is
      already misclassified (by ``kappa``).

    Source: nn_robust_attacks `l2_attack.py`, untargeted; adversarial-library `carlini_wagner_l2`. Deviations: the abort
    is judged for each example, where the original waits for the whole batch, so that results do not depend on
    batch-mates; failures return the clean image (the original: zeros); 1,000 steps.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)) - 1.8, 1.8 - images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("carlini_wagner", steps=100)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(f"{jnp.linalg.norm(adversarial - 0.5):.2f}")  # the boundary is at distance 0.1
    0.10
    """
    origin = jnp.arctanh((2 * images - 1) * (1 - 1e-6))
    adam = optax.adam(step_size)
    check_every = max(steps // 10, 1)

    def reached(logits):
        handicap = kappa * jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        return jnp.argmax(logits + handicap, axis=-1) != labels

    def objective(shift, constant):
        adversarial = (jnp.tanh(origin + shift) + 1) / 2
        squares = jnp.sum(jnp.square(adversarial - images), axis=example_axes(images))
        logits = logits_fn(adversarial)
        lead = kappa - margin(logits, labels)
        losses = squares + constant * jnp.where(lead >= 0, lead, 0.0)
        return jnp.sum(losses), (losses, adversarial, squares, reached(logits))

    def unfinished(search):
        return (search.i < steps) & jnp.any(search.live)

    def step(search, constant):
        gradient, (losses, adversarial, squares, fooled) = jax.grad(objective, has_aux=True)(search.shift, constant)
        fooled &= search.live
        live, lowest, previous = search.live, jnp.minimum(search.lowest, losses), search.previous
        if abort_early:
            check = search.i % check_every == 0
            live &= ~(check & (lowest > 0.9999 * previous))
            previous = jnp.where(check, lowest, previous)
        updates, optimiser = adam.update(gradient, search.optimiser)
        closest = search.closest.updated(adversarial, jnp.sqrt(squares), fooled)
        shift = search.shift + updates
        return _Search(search.i + 1, shift, optimiser, live, search.found | fooled, lowest, previous, closest)

    def search_round(outer, carry):
        constant, lower, upper, closest = carry
        if search_steps >= 10:
            constant = jnp.where(outer == search_steps - 1, upper, constant)
        shift = jnp.zeros_like(images)
        nothing = jnp.zeros(labels.shape, bool)
        infinite = jnp.full_like(lower, jnp.inf)
        start = _Search(jnp.int32(0), shift, adam.init(shift), to_attack, nothing, infinite, infinite, closest)
        search = lax.while_loop(unfinished, lambda search: step(search, constant), start)
        upper = jnp.where(search.found, jnp.minimum(upper, constant), upper)
        lower = jnp.where(search.found, lower, jnp.maximum(lower, constant))
        constant = jnp.where(upper < 1e9, (lower + upper) / 2, jnp.where(search.found, constant, 10 * constant))
        return constant, lower, upper, search.closest

    to_attack = ~reached(logits_fn(images))
    constant = jnp.full(labels.shape, initial_const, images.dtype)
    start = (constant, jnp.zeros_like(constant), jnp.full_like(constant, 1e10), Closest.none(images))
    return lax.fori_loop(0, search_steps, search_round, start)[-1].images
