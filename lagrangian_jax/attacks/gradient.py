"""Norm-bounded gradient attacks: FGSM, MI-FGSM, PGD (linf, l2) and MPGD, and the loop that they share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import better, example_keys, expand, l2_norm, linf_norm, normal, project_l2, uniform
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import cross_entropy

Forward = Callable[[Array, Any], tuple[Array, Any]]  # (images, state) -> (logits, state)


def stateless(logits_fn: LogitsFn) -> Forward:
    """A network without state in the form that `ascend` takes; training passes batch statistics as the state."""
    return lambda images, state: (logits_fn(images), state)


def ascend(
    objective: Callable[[Array, Any, int | Array], tuple[Array, Array, Any]],
    update: Callable[[Array, Array, Array], Array],
    start: Array,
    state: Any,
    steps: int,
    keep: str = "last",
) -> tuple[Array, Any]:
    """Gradient steps on a perturbation: ``perturbation = update(i, perturbation, gradient)``, i = 0 .. steps - 1.

    Args:
      objective: ``(perturbation, state, i) -> (values (B,), scores (B,), state)``. The sum of the values is
        differentiated, so examples stay independent unless the network couples them (train-mode batch statistics).
      update: ``(i, perturbation, gradient) -> perturbation``; the projection is part of it.
      start: the first perturbation.
      state: threaded through every forward pass (batch statistics; ``()`` for a plain function).
      steps: number of gradient evaluations.
      keep: "last" returns the last iterate; "best" the one of largest score, at the cost of one more forward pass.

    Returns:
      the perturbation and the state.
    """

    def total(perturbation, state, i):
        values, scores, state = objective(perturbation, state, i)
        return jnp.sum(values), (scores, state)

    def step(i, carry):
        perturbation, state, best = carry
        gradient, (scores, state) = jax.grad(total, has_aux=True)(perturbation, state, i)
        if keep == "best":
            best = better(best, perturbation, scores)
        return update(i, perturbation, gradient), state, best

    best = (start, jnp.full(start.shape[0], -jnp.inf, start.dtype)) if keep == "best" else ()
    perturbation, state, best = lax.fori_loop(0, steps, step, (start, state, best))
    if keep == "best":
        _, scores, state = objective(perturbation, state, steps - 1)
        perturbation, _ = better(best, perturbation, scores)
    return perturbation, state


def clip_to_box(perturbation: Array, images: Array) -> Array:
    """The perturbation whose image is clipped to [0, 1]."""
    return jnp.clip(images + perturbation, 0.0, 1.0) - images


def linf_start(keys: Array, images: Array, bound: float | Array) -> Array:
    """Uniform in the linf ball, clipped to the box."""
    return clip_to_box(uniform(keys, images.shape[1:], -1.0, 1.0) * bound, images)


def l2_start(keys: Array, images: Array, bound: float | Array) -> Array:
    """Uniform in the l2 ball (normal direction, radius bound * U^(1/dimension)), clipped to the box."""
    split = jax.vmap(jax.random.split)(keys)
    direction = normal(split[:, 0], images.shape[1:])
    dimension = images[0].size
    radius = uniform(split[:, 1], ()) ** (1.0 / dimension)
    return clip_to_box(bound * direction * expand(radius / l2_norm(direction), images), images)


def pgd(
    keys: Array,
    forward: Forward,
    state: Any,
    images: Array,
    labels: Array,
    *,
    norm: str,
    bound: float | Array,
    steps: int,
    step_size: float | Array,
    random_start: bool = False,
    start: Array | None = None,
    keep: str = "last",
    direction: Callable[[Array], Array] = jnp.sign,
    loss: Callable[[Array, Array], Array] = cross_entropy,
) -> tuple[Array, Any]:
    """Projected gradient ascent on ``loss``; the form that training uses, with a network state threaded through.

    Args:
      keys: a key, or one key per example.
      forward: ``(images, state) -> (logits, state)``.
      state: the network's state, e.g. batch statistics; ``()`` for a plain function.
      images: (B, H, W, C) in [0, 1].
      labels: (B,).
      norm: "linf" or "l2".
      bound: radius of the ball in units of images, a number or one per example, (B,).
      steps: number of gradient evaluations.
      step_size: a number or (B,), as ``bound``.
      random_start: start uniformly in the ball, else at the image.
      start: the first perturbation; overrides ``random_start``.
      keep: "last" or "best", by the loss.
      direction: linf only; maps the gradient to the step: `jnp.sign` for PGD.
      loss: ``(logits, labels) -> (B,)``.

    Returns:
      the adversarial images and the state.
    """
    bound, step_size = (expand(jnp.asarray(x), images) if jnp.ndim(x) == 1 else x for x in (bound, step_size))
    if norm == "linf":
        start_in_ball, update = linf_start, _linf_update(images, bound, step_size, direction)
    else:
        start_in_ball, update = l2_start, _l2_update(images, bound, step_size)
    keys = example_keys(keys, images.shape[0])
    if start is None:
        start = start_in_ball(keys, images, bound) if random_start else jnp.zeros_like(images)

    def objective(perturbation, state, i):
        logits, state = forward(images + perturbation, state)
        values = loss(logits, labels)
        return values, values, state

    perturbation, state = ascend(objective, update, start, state, steps, keep)
    return jnp.clip(images + perturbation, 0.0, 1.0), state


def _linf_update(images, bound, step_size, direction):
    def update(i, perturbation, gradient):
        perturbation = jnp.clip(perturbation + step_size * direction(gradient), -bound, bound)
        return clip_to_box(perturbation, images)

    return update


def _l2_update(images, bound, step_size):
    def update(i, perturbation, gradient):
        # advertorch's floor: gradients of norm below 1e-6, those of very confident examples, give shorter steps.
        unit = gradient / expand(jnp.maximum(l2_norm(gradient), 1e-6), gradient)
        return project_l2(clip_to_box(perturbation + step_size * unit, images), bound)

    return update


def default_step_size(bound: float, steps: int) -> float:
    """The step size of the paper's evaluation, bound / 33 in 40 steps, for any number of steps."""
    return bound / 33 * (40 / steps)


def pgd_linf(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 8 / 255,
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = False,
    keep: str = "last",
) -> Array:
    r"""Projected gradient descent in the linf ball (Madry et al. 2018), on the cross-entropy.

    .. math:: d \leftarrow \mathrm{clip}_{[0,1]}(x + \mathrm{clip}_{[-b,b]}(d + s\,\mathrm{sign}(g))) - x

    Args:
      key: a PRNG key, or one key per example (B,); used only by ``random_start``.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: radius of the linf ball, in units of images; 8/255 in Table 1, 4/255 in Table 2.
      steps: gradient evaluations.
      step_size: by default ``bound / 33`` for 40 steps, as in the paper's evaluation script; for other numbers of steps
        it is scaled so that the steps together reach the same 1.2 times the bound.
      random_start: start uniformly in the ball; the paper starts at the image.
      keep: "last" (the paper's) or "best" iterate by the loss.

    Returns:
      adversarial images (B, H, W, C) in [0, 1], within the bound.

    Source: advertorch `LinfPGDAttack` as called by Lagrangian_Unseen `eval_model.py`.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), -images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("pgd_linf", bound=0.1, steps=10, step_size=0.02)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(adversarial.ravel())
    [0.4 0.4 0.4 0.4]
    """
    step_size = default_step_size(bound, steps) if step_size is None else step_size
    adversarial, _ = pgd(
        key,
        stateless(logits_fn),
        (),
        images,
        labels,
        norm="linf",
        bound=bound,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        keep=keep,
    )
    return adversarial


def pgd_l2(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 1.0,
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = False,
    keep: str = "last",
) -> Array:
    r"""Projected gradient descent in the l2 ball, on the cross-entropy.

    .. math:: d \leftarrow \Pi_b(\mathrm{clip}_{[0,1]}(x + d + s\,g / \max(\|g\|_2, 10^{-6})) - x)

    The box comes before the ball, as in advertorch; both hold at the end, because the projection onto the ball moves
    towards the image.

    Args:
      key: a PRNG key, or one key per example (B,); used only by ``random_start``.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: radius of the l2 ball over all pixels and channels, images in [0, 1]; 1.0 in Table 1, 4.0 in Table 2.
      steps: gradient evaluations.
      step_size: by default ``bound / 33`` for 40 steps, as in the paper's evaluation script; for other numbers of steps
        it is scaled so that the steps together reach the same 1.2 times the bound.
      random_start: start uniformly in the ball (normal direction, radius b U^(1/n)); the paper starts at the image.
      keep: "last" (the paper's) or "best" iterate by the loss.

    Returns:
      adversarial images (B, H, W, C) in [0, 1], within the bound.

    Source: advertorch `L2PGDAttack` as called by Lagrangian_Unseen `eval_model.py`.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), -images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("pgd_l2", bound=0.2, steps=40)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(adversarial.ravel())
    [0.4 0.4 0.4 0.4]
    """
    step_size = default_step_size(bound, steps) if step_size is None else step_size
    adversarial, _ = pgd(
        key,
        stateless(logits_fn),
        (),
        images,
        labels,
        norm="l2",
        bound=bound,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        keep=keep,
    )
    return adversarial


def max_normalised(gradient: Array) -> Array:
    """The gradient of each example divided by its largest absolute value; zero stays zero."""
    largest = linf_norm(gradient)
    return gradient / expand(jnp.where(largest > 0, largest, 1.0), gradient)


def mpgd(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 8 / 255,
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = False,
    keep: str = "last",
) -> Array:
    """PGD in the linf ball with the step direction g / max|g| in place of sign(g): the paper's Table 4.

    The step sizes of Table 4 come from a grid search for each bound, which its driver runs. See `pgd_linf` for the
    arguments.

    Source: paper, section on Table 4; no code was released.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), -images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("mpgd", bound=0.1, steps=10, step_size=0.02)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(adversarial.ravel())
    [0.4 0.4 0.4 0.4]
    """
    step_size = default_step_size(bound, steps) if step_size is None else step_size
    adversarial, _ = pgd(
        key,
        stateless(logits_fn),
        (),
        images,
        labels,
        norm="linf",
        bound=bound,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        keep=keep,
        direction=max_normalised,
    )
    return adversarial


def fgsm(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 8 / 255,
    random_start: bool = False,
) -> Array:
    """Fast gradient sign method (Goodfellow et al. 2015): clip(x + bound * sign(grad CE(x))), one gradient.

    See `pgd_linf` for the arguments. With ``random_start`` the gradient is taken at a random point of the ball, and
    the step from there is projected onto the ball.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), -images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("fgsm", bound=0.1)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(adversarial.ravel())
    [0.4 0.4 0.4 0.4]
    """
    adversarial, _ = pgd(
        key,
        stateless(logits_fn),
        (),
        images,
        labels,
        norm="linf",
        bound=bound,
        steps=1,
        step_size=bound,
        random_start=random_start,
    )
    return adversarial


def mi_fgsm(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    momentum: float = 1.0,
    random_start: bool = False,
    keep: str = "last",
) -> Array:
    r"""Momentum iterative FGSM (Dong et al. 2018).

    .. math:: v \leftarrow \mu v + g / \|g\|_1, \quad d \leftarrow \mathrm{clip}(d + s\,\mathrm{sign}(v))

    Args:
      key, logits_fn, images, labels, bound, steps, random_start, keep: see `pgd_linf`; the publication starts at the
        image and returns the last iterate.
      step_size: ``bound / steps`` if not given, as in the publication.
      momentum: the decay factor mu.

    Source: Dong et al. 2018, algorithm 1. Deviation: where the gradient is zero the velocity only decays; the formula
    divides by zero there.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), -images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("mi_fgsm", bound=0.1, steps=4)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(adversarial.ravel())
    [0.4 0.4 0.4 0.4]
    """
    step_size = bound / steps if step_size is None else step_size
    project = _linf_update(images, bound, step_size, jnp.sign)

    def total(perturbation):
        values = cross_entropy(logits_fn(images + perturbation), labels)
        return jnp.sum(values), values

    def step(i, carry):
        perturbation, velocity, best = carry
        gradient, values = jax.grad(total, has_aux=True)(perturbation)
        size = jnp.sum(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
        velocity = momentum * velocity + gradient / jnp.where(size > 0, size, 1.0)
        if keep == "best":
            best = better(best, perturbation, values)
        return project(i, perturbation, velocity), velocity, best

    zeros, batch = jnp.zeros_like(images), images.shape[0]
    start = linf_start(example_keys(key, batch), images, bound) if random_start else zeros
    best = (start, jnp.full(batch, -jnp.inf, images.dtype)) if keep == "best" else ()
    perturbation, _, best = lax.fori_loop(0, steps, step, (start, zeros, best))
    if keep == "best":
        perturbation, _ = better(best, perturbation, total(perturbation)[1])
    return jnp.clip(images + perturbation, 0.0, 1.0)
