"""AutoPGD (Croce and Hein 2020): projected gradient ascent with momentum that halves its own step size.

`apgd_ce` ascends the cross-entropy, `apgd_dlr` the difference-of-logits ratio, `apgd_t` the targeted ratio for one
target class after the other. `apgd` is the loop that they share.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, expand, fold_in, l2_norm, linf_norm, normal, uniform
from lagrangian_jax.attacks.attack import Stage
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import cross_entropy, dlr, targeted_dlr


class Ascent(NamedTuple):
    """The state of `apgd`: arrays of images are (B, H, W, C), all others (B,)."""

    images: Array  # the current iterate
    previous: Array  # the iterate before it, for the momentum
    best: Array  # the iterate of largest loss, its gradient and its loss
    best_gradient: Array
    best_loss: Array
    adversarial: Array  # the last misclassified iterate, where `fooled`
    fooled: Array
    step_size: Array
    last_loss: Array  # the loss of the iterate before
    increases: Array  # steps since the last checkpoint that increased the loss
    checked_loss: Array  # the best loss at the last checkpoint
    halved: Array  # whether the last checkpoint halved the step size


def checkpoints(steps: int) -> np.ndarray:
    """When the step size is reviewed: (steps + 1,), the number of steps since the last review, or 0 for no review.

    The periods start at 22 % of the steps and shrink by 3 % at a time, down to 6 %.

    >>> np.flatnonzero(checkpoints(100))
    array([22, 41, 57, 70, 80, 87, 93, 99])
    """
    period, shrink, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    periods = np.zeros(steps + 1, np.int32)
    at = period
    while at <= steps:
        periods[at] = period
        period = max(period - shrink, shortest)
        at += period
    return periods


def random_in_ball(keys: Array, images: Array, norm: str, bound: float) -> Array:
    """Images on the surface of the ball, clipped to the box: x + bound * t / ||t||, t uniform (linf) or normal (l2)."""
    noise = uniform(keys, images.shape[1:], -1.0, 1.0) if norm == "linf" else normal(keys, images.shape[1:])
    size = linf_norm(noise) if norm == "linf" else l2_norm(noise)
    return jnp.clip(images + bound * noise / expand(size + 1e-12, images), 0.0, 1.0)


def apgd(
    logits_fn: LogitsFn,
    loss: Callable[[Array], Array],
    start: Array,
    images: Array,
    labels: Array,
    *,
    norm: str,
    bound: float,
    steps: int,
    rho: float = 0.75,
) -> Ascent:
    r"""AutoPGD from a given start.

    With :math:`\Pi` the projection on ball and box, :math:`u(g)` the sign (linf) or the unit vector (l2) of the
    gradient and :math:`a` = 0.75 (1 in the first step):

    .. math::
      p = \Pi(x_i + \eta\, u(g_i)), \quad x_{i+1} = \Pi(x_i + a (p - x_i) + (1 - a)(x_i - x_{i-1}))

    :math:`\eta` starts at twice the bound. At a checkpoint it halves, and the ascent goes on from the best iterate, if
    at most a share ``rho`` of the steps since the last checkpoint increased the loss, or if that checkpoint did not
    halve it and the best loss has not changed since.

    Args:
      logits_fn: images (B, H, W, C) to logits (B, K).
      loss: logits (B, K) to the values (B,) to ascend.
      start: the first iterate, in ball and box.
      images: the clean images, (B, H, W, C) in [0, 1].
      labels: (B,).
      norm: "linf" or "l2".
      bound: radius of the ball, in units of images.
      steps: gradient steps; one more evaluation looks at the last iterate.
      rho: see above.

    Returns:
      the last state, an `Ascent`.

    Source: auto-attack `autopgd_base.py`. Kept from it: the first step counts as an increase if its loss is positive
    (the original compares with an empty record), and the first momentum after a return to the best iterate is taken
    from the iterate before the last step.
    """
    periods = jnp.asarray(checkpoints(steps))
    direction, project = _linf_geometry(images, bound) if norm == "linf" else _l2_geometry(images, bound)

    def evaluate(x):
        def total(x):
            logits = logits_fn(x)
            values = loss(logits)
            return jnp.sum(values), (values, jnp.argmax(logits, axis=-1) != labels)

        gradient, (values, fools) = jax.grad(total, has_aux=True)(x)
        return values, gradient, fools

    def step(i, state: Ascent) -> Ascent:
        # One evaluation per pass, the start's included, so that the program contains the network only once.
        values, gradient, fools = evaluate(state.images)
        adversarial = _select(fools, state.images, state.adversarial)
        better = values > state.best_loss
        best = _select(better, state.images, state.best)
        best_gradient = _select(better, gradient, state.best_gradient)
        best_loss = jnp.where(better, values, state.best_loss)
        increases = state.increases + (values > state.last_loss)

        period = periods[i]
        check = period > 0
        stuck = ~state.halved & (state.checked_loss >= best_loss)
        halve = check & ((increases <= rho * period) | stuck)
        step_size = jnp.where(halve, state.step_size / 2, state.step_size)
        x = _select(halve, best, state.images)
        gradient = _select(halve, best_gradient, gradient)

        proposal = project(x + expand(step_size, x) * direction(gradient))
        momentum = jnp.where(i == 0, 1.0, 0.75)
        return Ascent(
            images=project(x + momentum * (proposal - x) + (1 - momentum) * (x - state.previous)),
            previous=x,
            best=best,
            best_gradient=best_gradient,
            best_loss=best_loss,
            adversarial=adversarial,
            fooled=state.fooled | fools,
            step_size=step_size,
            last_loss=jnp.where(i == 0, 0.0, values),
            increases=jnp.where(check, 0, increases),
            checked_loss=jnp.where(check, best_loss, state.checked_loss),
            halved=jnp.where(check, halve, state.halved),
        )

    def full(value):
        return jnp.full(images.shape[0], value)

    state = Ascent(
        images=start,
        previous=start,
        best=start,
        best_gradient=jnp.zeros_like(start),
        best_loss=full(-jnp.inf),
        adversarial=start,
        fooled=full(False),
        step_size=full(jnp.float32(2 * bound)),
        last_loss=full(jnp.inf),
        increases=full(0),
        checked_loss=full(-jnp.inf),
        halved=full(True),  # so that the first checkpoint looks at the increases alone
    )
    return lax.fori_loop(0, steps + 1, step, state)


def _linf_geometry(images, bound):
    def project(x):
        return jnp.clip(jnp.clip(x, images - bound, images + bound), 0.0, 1.0)

    return jnp.sign, project


def _l2_geometry(images, bound):
    def unit(x):
        return x / expand(l2_norm(x) + 1e-12, x)

    def project(x):
        # The ball before the box, as in the original; the box only shortens the perturbation.
        perturbation = x - images
        length = expand(jnp.minimum(l2_norm(perturbation), bound), x)
        return jnp.clip(images + unit(perturbation) * length, 0.0, 1.0)

    return unit, project


def _select(mask: Array, new: Array, old: Array) -> Array:
    return jnp.where(expand(mask, old), new, old)


def apgd_ce(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: str = "linf",
    bound: float = 8 / 255,
    steps: int = 100,
    rho: float = 0.75,
    random_start: bool = True,
    keep: str = "last",
) -> Array:
    """AutoPGD on the cross-entropy, the first part of AutoAttack; see `apgd` for the iteration.

    Args:
      key: a PRNG key, or one key per example (B,).
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      norm: "linf" or "l2".
      bound: radius of the ball, in units of images.
      steps: gradient steps; one more evaluation looks at the last iterate.
      rho: the step size halves where at most this share of the steps since the last checkpoint increased the loss.
      random_start: start on the surface of the ball, as the original does, else at the image.
      keep: "last": the last misclassified iterate, or the clean image where there was none (the original's default);
        "best": the iterate of largest loss.

    Returns:
      adversarial images (B, H, W, C) in [0, 1], within the bound.

    Source: Croce and Hein 2020 (arXiv 2003.01690), algorithm 1; auto-attack `autopgd_base.py`.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)) - 1.8, 0 * images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("apgd_ce", norm="linf", bound=0.1, steps=10)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(adversarial.ravel())
    [0.4 0.4 0.4 0.4]
    """
    options = _Options(norm, bound, steps, rho, random_start, keep)
    return _attack(key, logits_fn, lambda logits: cross_entropy(logits, labels), images, labels, options)


def apgd_dlr(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: str = "linf",
    bound: float = 8 / 255,
    steps: int = 100,
    rho: float = 0.75,
    random_start: bool = True,
    keep: str = "last",
) -> Array:
    """AutoPGD on the difference-of-logits ratio, which does not vanish where the logits are large.

    See `apgd_ce` for the arguments and `lagrangian_jax.losses.dlr` for the loss.

    Raises:
      ValueError: fewer than 3 classes, where the ratio does not exist.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: images[:, 0, :, 0]  # four classes, one a pixel of the first row
    >>> images = jnp.full((1, 4, 4, 1), 0.5).at[0, 0, 0].set(0.6)
    >>> attack = lj.attacks.create("apgd_dlr", bound=0.1, steps=10)
    >>> adversarial = attack(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> bool(jnp.argmax(logits_fn(adversarial)) != 0)
    True
    """
    classes = jax.eval_shape(logits_fn, images).shape[-1]
    if classes < 3:
        raise ValueError(
            f"attack 'apgd_dlr': logits_fn must have at least 3 classes, got {classes}; 'apgd_ce' takes any"
        )
    options = _Options(norm, bound, steps, rho, random_start, keep)
    return _attack(key, logits_fn, lambda logits: dlr(logits, labels), images, labels, options)


class _Options(NamedTuple):
    norm: str
    bound: float
    steps: int
    rho: float
    random_start: bool = True
    keep: str = "last"


def _attack(key, logits_fn, loss, images, labels, options: _Options) -> Array:
    norm, bound, steps, rho, random_start, keep = options
    keys = example_keys(key, images.shape[0])
    start = random_in_ball(keys, images, norm, bound) if random_start else images
    end = apgd(logits_fn, loss, start, images, labels, norm=norm, bound=bound, steps=steps, rho=rho)
    return end.best if keep == "best" else _select(end.fooled, end.adversarial, images)


def apgd_t(
    *,
    norm: str = "linf",
    bound: float = 8 / 255,
    steps: int = 100,
    targets: int = 9,
    rho: float = 0.75,
) -> tuple[Stage, ...]:
    """Targeted AutoPGD on the targeted difference-of-logits ratio, one stage per target class.

    The targets are the classes ranked 2 .. ``targets`` + 1 by the logits of the clean image; a stage runs on the
    examples that still hold, and any misclassification counts, not only one as the target.

    Args:
      norm, bound, steps, rho: see `apgd_ce`.
      targets: number of target classes; where there are fewer other classes, all of them.

    Returns:
      the stages; they share one compiled program, because the rank is traced.

    Source: auto-attack `APGDAttack_targeted`. Deviation: with fewer than 4 classes, where the ratio does not exist (the
    original warns and fails), the loss is the negative cross-entropy of the target.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: images[:, 0, :, 0]  # four classes, one a pixel of the first row
    >>> images = jnp.full((1, 4, 4, 1), 0.5).at[0, 0, 0].set(0.6)
    >>> attack = lj.attacks.create("apgd_t", bound=0.1, steps=10)
    >>> adversarial = attack(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> bool(jnp.argmax(logits_fn(adversarial)) != 0)
    True
    """
    attack = functools.partial(_apgd_rank, options=_Options(norm, bound, steps, rho))
    return tuple(Stage(attack, (np.int32(rank),)) for rank in range(1, targets + 1))


def _apgd_rank(keys, logits_fn, images, labels, rank, *, options):
    logits = logits_fn(images)
    goal = ranked_class(logits, rank)
    few = logits.shape[-1] < 4

    def loss(logits):
        return -cross_entropy(logits, goal) if few else targeted_dlr(logits, labels, goal)

    def attack():
        rank_keys = fold_in(example_keys(keys, images.shape[0]), rank)
        return _attack(rank_keys, logits_fn, loss, images, labels, options)

    return lax.cond(rank < logits.shape[-1], attack, lambda: images)


def ranked_class(logits: Array, rank: Array) -> Array:
    """The class of the given rank by each row's logits, (B,); 0 is the largest, ranks beyond the last give the last."""
    order = lax.top_k(logits, logits.shape[-1])[1]
    return jnp.take(order, rank, axis=-1, mode="clip")
