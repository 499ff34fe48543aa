"""Attacks bounded by a perceptual distance (Laidlaw, Singla and Feizi 2021): LPA, Fast-LPA, PPGD, and projections.

They take a ``distance`` from `lagrangian_jax.distances` or, except `ppgd`, any function from two batches to (B,).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import better, example_keys, expand, l2_norm, normal
from lagrangian_jax.attacks.gradient import clip_to_box
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import margin


class _Progress(NamedTuple):
    """Where each example of LPA stands; all (B, ...)."""

    perturbation: Array
    multiplier: Array
    iteration: Array  # counted over all rounds
    found: Array  # whether an iterate has fooled the network within the bound


def lpa(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.5,
    steps: int = 200,
    distance: Any = None,
    rounds: int = 5,
    multiplier: float = 0.01,
    step_size: float | None = None,
    decay: float = 0.1,
    kappa: float = 1.0,
    init_std: float = 0.01,
    probe: str = "backward",
    projection: str = "bisection",
    projection_steps: int | None = None,
    keep: str = "last",
    group: int | None = None,
) -> Array:
    r"""The Lagrangian perceptual attack: ascends the margin minus a growing multiplier times the excess distance.

    From :math:`d \sim N(0, \sigma^2)` and :math:`\lambda = 0.01`, in up to 5 rounds of i = 0 .. N - 1:

    .. math::
      u = \nabla_d [\min(m(x + d), \kappa) - \lambda \max(D(x + d) - b, 0)] \text{ scaled to length 1}, \quad
      D(x') = \|\phi(x') - \phi(x)\|

      d \leftarrow \mathrm{clip}_{[0,1]}\Big(x + d + \frac{s c^{i/N}}{r + 10^{-8}}\, u\Big) - x, \quad
      r = \|\phi(x + d) - \phi(x + d \pm h u)\| / h

    so that a step covers about :math:`s c^{i/N}` of the distance. An example stops for good after the step in which it
    is found misclassified within the bound. After a round :math:`\lambda` grows tenfold where D, before the last
    step, is at or over the bound. The last iterate is projected.

    Args:
      key: a PRNG key, or one key per example (B,).
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: b, in units of the distance; 0.5 on CIFAR-10 and 0.25 on ImageNet-100. With bound 0 there is no start
        noise, and the image is returned.
      steps: N, gradient evaluations in a round.
      distance: from `lagrangian_jax.distances.create`, or any function from two batches of images to (B,); required.
      rounds: the most rounds, hence values of the multiplier, that are tried.
      multiplier: lambda in the first round.
      step_size: s, in units of the distance; the bound if not given.
      decay: c.
      kappa: the margin above which only the distance is reduced.
      init_std: standard deviation of the first perturbation.
      probe: where r is measured: "backward", against the step, as Lagrangian_Unseen does, or "forward", along it, as
        perceptual-advex does in its final version.
      projection: "bisection", "newton" or "none"; see `project_bisection` and `project_newton`.
      projection_steps: of that projection; 5 for bisection and 10 for Newton if not given.
      keep: "last" (the paper's), or "best": an example that is found misclassified within the bound keeps that very
        image; the step and the projection, which might undo it, are skipped.
      group: how many examples advance at a time, the first of those that still run. This affects only the speed; if not
        given, an eighth of the batch, but at least 16.

    Returns:
      adversarial images (B, H, W, C) in [0, 1]. After bisection they may exceed the bound slightly, as in the original.

    Source: Lagrangian_Unseen `eval_attacks/perceptual_attacks.py`, with its defaults. Those of perceptual-advex:
    ``steps=40, probe="forward", projection="newton"``.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)) - 90, 90 - images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("lpa", bound=1.0, steps=20, distance=lj.distances.create("l2"))
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 8, 8, 3), 0.5), jnp.array([0]))
    >>> bool(logits_fn(adversarial)[0, 0] < 0)
    True
    """
    first_step = bound if step_size is None else step_size
    objective = _Objective(logits_fn, *_space(distance), bound, kappa, probe, floor=1e-8)
    images, labels = jnp.asarray(images), jnp.asarray(labels)  # the loop indexes them with traced rows
    anchors = objective.represent(images)
    batch = images.shape[0]
    width = min(batch, group or max(16, batch // 8))

    def runs(progress):
        return ~progress.found & (progress.iteration < rounds * steps)

    def advance(progress):
        rows = jnp.argsort(~runs(progress))[:width]  # the sort is stable: those that run come first, in order
        now = jax.tree.map(lambda values: values[rows], progress)
        live, i = runs(now), now.iteration % steps
        moved, point = _step(
            objective,
            images[rows],
            labels[rows],
            anchors[rows],
            now.perturbation,
            now.multiplier,
            first_step * decay ** (i / steps),
        )
        found = live & point.fooled & (point.distance <= bound)
        grows = live & (i == steps - 1) & (point.distance >= bound)
        moves = live & ~found if keep == "best" else live
        after = _Progress(
            perturbation=jnp.where(expand(moves, moved), moved, now.perturbation),
            multiplier=jnp.where(grows, 10 * now.multiplier, now.multiplier),
            iteration=now.iteration + live,
            found=now.found | found,
        )
        return jax.tree.map(lambda values, new: values.at[rows].set(new), progress, after)

    start = _Progress(
        perturbation=_start(key, images, init_std, bound, keep),
        multiplier=jnp.full(batch, multiplier, jnp.float32),
        iteration=jnp.zeros(batch, jnp.int32),
        found=jnp.zeros(batch, bool),
    )
    end = lax.while_loop(lambda progress: jnp.any(runs(progress)), advance, start)
    adversarial = jnp.clip(images + end.perturbation, 0.0, 1.0)
    projected = _project(projection, projection_steps, _to_clean(distance, anchors), images, adversarial, bound)
    return jnp.where(expand(end.found, images), adversarial, projected) if keep == "best" else projected


def fast_lpa(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.5,
    steps: int = 20,
    distance: Any = None,
    multiplier: float | Array = 10.0,
    step_size: float | None = None,
    decay: float = 0.1,
    kappa: float = jnp.inf,
    init_std: float = 0.01,
    probe: str = "forward",
    projection: str = "none",
    projection_steps: int | None = None,
    keep: str = "last",
) -> Array:
    r"""Fast-LPA: one round of `lpa` in which the multiplier grows with every step; PAT trains with it, in 10 steps.

    .. math:: \lambda_i = \lambda c^{1 - i/N}, \quad \alpha_i = \frac{s c^{i/N}}{r + 10^{-4}}

    Args:
      key: a PRNG key, or one key per example (B,).
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: b, in units of the distance, a soft bound unless there is a projection. With bound 0 there is no start
        noise, and the image is returned.
      steps: N, gradient evaluations.
      distance: from `lagrangian_jax.distances.create`, or any function from two batches of images to (B,); required.
      multiplier: lambda, a number or one per example, (B,); with 20 steps the last uses 0.89 lambda, never lambda
        itself.
      step_size: s, in units of the distance; the bound if not given.
      decay: c.
      kappa: the margin above which only the distance is reduced.
      init_std: standard deviation of the first perturbation.
      probe: where the slope r is measured, as in `lpa`; the default is that of perceptual-advex's final version.
      projection: "none" (the original's), "bisection" or "newton".
      projection_steps: of that projection; 5 for bisection and 10 for Newton if not given.
      keep: "last" (the original's) or "best": the nearest of the misclassified iterates, or, if there is none, the one
        of largest objective.

    Returns:
      adversarial images (B, H, W, C) in [0, 1].

    Source: perceptual-advex `FastLagrangePerceptualAttack`.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)) - 90, 90 - images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("fast_lpa", bound=1.0, distance=lj.distances.create("l2"))
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 8, 8, 3), 0.5), jnp.array([0]))
    >>> bool(logits_fn(adversarial)[0, 0] < 0)
    True
    """
    first_step = bound if step_size is None else step_size
    objective = _Objective(logits_fn, *_space(distance), bound, kappa, probe, floor=1e-4)
    anchors = objective.represent(images)
    ones = jnp.ones(images.shape[0], images.dtype)

    def step(i, perturbation):
        weights, sizes = multiplier * decay ** (1 - i / steps) * ones, first_step * decay ** (i / steps) * ones
        moved, point = _step(objective, images, labels, anchors, perturbation, weights, sizes)
        return moved, _score(point)

    perturbation = _iterate(step, _start(key, images, init_std, bound, keep), steps, keep)
    adversarial = jnp.clip(images + perturbation, 0.0, 1.0)
    return _project(projection, projection_steps, _to_clean(distance, anchors), images, adversarial, bound)


def ppgd(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.5,
    steps: int = 40,
    distance: Any = None,
    step_size: float | None = None,
    decay: float = 1.0,
    kappa: float = 1.0,
    init_std: float = 0.01,
    solver_steps: int = 5,
    probe_size: float = 1e-3,
    projection: str = "newton",
    projection_steps: int | None = None,
    keep: str = "last",
) -> Array:
    r"""Perceptual projected gradient descent: steps of steepest ascent with respect to the distance, each projected.

    With b the gradient of the margin and J the Jacobian of :math:`\phi`, both at the current image, the direction u of
    steepest ascent solves :math:`J^T J u = b`, by conjugate gradients. The step is u scaled so that

    .. math:: \|\phi(x' + h u) - \phi(x')\| / h = s c^{i/N}

    and is followed by the projection. Products :math:`J v` are finite differences with step h, as in the original.

    Args:
      key: a PRNG key, or one key per example (B,).
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: in units of the distance. With bound 0 there is no start noise, and the image is returned.
      steps: N, the number of steps.
      distance: a distance with ``features``, from `lagrangian_jax.distances.create`; required.
      step_size: s, in units of the distance; ``2 * bound / steps`` if not given.
      decay: c; perceptual-advex's option of a decayed step is ``step_size=bound, decay=0.1``.
      kappa: the margin above which an example stays where it is.
      init_std: standard deviation of the first perturbation.
      solver_steps: conjugate gradient iterations.
      probe_size: h; the finite difference moves the image by h times the probed vector.
      projection: "newton", "bisection" or "none".
      projection_steps: of that projection; 5 for bisection and 10 for Newton if not given.
      keep: "last" (the original's) or "best": the nearest of the misclassified iterates, or, if there is none, the one
        of largest margin.

    Returns:
      adversarial images (B, H, W, C) in [0, 1].

    Source: perceptual-advex `PerceptualPGDAttack`; its default of 5 steps is raised to the 40 of its evaluation. Two of
    its tests on the whole batch are dropped, because they couple examples: its solver stops once all residuals are
    small, and nothing moves if all gradients are small. An example whose gradient has a norm below 1e-4 stays where it
    is, as in the original.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)) - 90, 90 - images.sum((1, 2, 3))], axis=-1)
    >>> distance, images = lj.distances.create("l2"), jnp.full((1, 8, 8, 3), 0.5)
    >>> attack = lj.attacks.create("ppgd", bound=1.0, distance=distance)
    >>> adversarial = attack(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> bool(logits_fn(adversarial)[0, 0] < 0), bool(distance(images, adversarial)[0] <= 1.0)
    (True, True)
    """
    if not hasattr(distance, "features"):
        raise ValueError(f"attack 'ppgd': distance must have features, as all but 'ssim' do; got {distance!r}")
    anchors = distance.features(images)
    to_clean = _to_clean(distance, anchors)
    first_step = 2 * bound / steps if step_size is None else step_size

    def step(i, perturbation):
        adversarial = images + perturbation
        features, pull_back = jax.vjp(distance.features, adversarial)

        def gain(adversarial):
            logits = logits_fn(adversarial)
            value = margin(logits, labels, kappa)
            return jnp.sum(value), (value, jnp.argmax(logits, axis=-1) != labels)

        def push_forward(v):
            return (distance.features(adversarial + probe_size * v) - features) / probe_size

        gradient, (value, fooled) = jax.grad(gain, has_aux=True)(adversarial)
        ascent = _conjugate_gradients(lambda v: pull_back(push_forward(v))[0], gradient, solver_steps)
        slope = l2_norm(push_forward(ascent))
        moves = (l2_norm(gradient) >= 1e-4) & (slope > 0)
        size = jnp.where(moves, first_step * decay ** (i / steps) / jnp.where(moves, slope, 1.0), 0.0)
        moved = jnp.clip(adversarial + expand(size, images) * ascent, 0.0, 1.0)
        projected = _project(projection, projection_steps, to_clean, images, moved, bound)
        return projected - images, _score(_Point(value, fooled, l2_norm(features - anchors)))

    return jnp.clip(images + _iterate(step, _start(key, images, init_std, bound, keep), steps, keep), 0.0, 1.0)


def project_bisection(
    to_clean: Callable[[Array], Array], images: Array, adversarial: Array, bound: float | Array, steps: int = 5
) -> Array:
    """Searches the segment from the clean to the adversarial image for the bound; returns the last point tried.

    As in the original, an image already within the bound keeps only 1 - 2^-steps of its perturbation, and the returned
    point may lie over the bound, by at most 2^-steps of the segment.

    Args:
      to_clean: images (B, H, W, C) to their distances from the clean ones, (B,).
      images: the clean images.
      adversarial: the images to project.
      bound: in units of the distance.
      steps: points tried; 5 in Lagrangian_Unseen, 10 in perceptual-advex.
    """

    def mix(weight):
        return (1 - expand(weight, images)) * images + expand(weight, images) * adversarial

    def halve(_, carry):
        low, high, _ = carry
        weight = 0.5 * (low + high)
        over = to_clean(mix(weight)) > bound
        return jnp.where(over, low, weight), jnp.where(over, weight, high), weight

    low = jnp.zeros(images.shape[0], images.dtype)
    return mix(lax.fori_loop(0, steps, halve, (low, low + 1.0, low))[2])


def project_newton(
    to_clean: Callable[[Array], Array],
    images: Array,
    adversarial: Array,
    bound: float | Array,
    steps: int = 10,
    overshoot: float = 0.1,
) -> Array:
    r"""Takes Newton steps down the distance until each example is within the bound.

    .. math:: x' \leftarrow \mathrm{clip}_{[0,1]}(x' - (1 + o)(D - b + o)\, g / \|g\|^2)

    with g the sum of the gradients of D at all steps so far: the original does not clear them. An example within the
    bound is left as it is; one that needs more than ``steps`` is projected by 10 bisections from where it got to (the
    original then bisects the whole batch; here examples stay independent).

    Args:
      to_clean: images (B, H, W, C) to their distances from the clean ones, (B,).
      images: the clean images.
      adversarial: the images to project.
      bound: b, in units of the distance.
      steps: gradient evaluations at most.
      overshoot: o; 0.1 in perceptual-advex, 0.01 (and no limit of steps) in Lagrangian_Unseen.
    """

    def descend(carry):
        i, current, summed, _ = carry
        distances, pull_back = jax.vjp(to_clean, current)
        summed += pull_back(jnp.ones_like(distances))[0]
        over = distances > bound
        square = jnp.sum(jnp.square(summed), axis=(1, 2, 3))
        length = (1 + overshoot) * (distances - bound + overshoot) / jnp.where(square > 0, square, 1.0)
        lower = jnp.clip(current - expand(length, current) * summed, 0.0, 1.0)
        return i + 1, jnp.where(expand(over, current), lower, current), summed, over

    everyone = jnp.ones(images.shape[0], bool)
    start = (0, adversarial, jnp.zeros_like(images), everyone)
    _, projected, _, left = lax.while_loop(lambda carry: (carry[0] < steps) & jnp.any(carry[3]), descend, start)

    def bisect(projected):
        return jnp.where(expand(left, images), project_bisection(to_clean, images, projected, bound, 10), projected)

    return lax.cond(jnp.any(left), bisect, lambda projected: projected, projected)


def _project(projection, steps, to_clean, images, adversarial, bound):
    if projection == "none":
        return adversarial
    project = {"bisection": project_bisection, "newton": project_newton}[projection]
    return project(to_clean, images, adversarial, bound, **({} if steps is None else {"steps": steps}))


def _space(distance: Any) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]:
    """``(represent, between)``: between(represent(a), represent(b)) is the distance of a and b.

    If the distance has features, those of an image are computed once and used twice; otherwise an image represents
    itself.
    """
    if hasattr(distance, "features"):
        return distance.features, lambda a, b: l2_norm(a - b)
    return lambda images: images, distance


def _to_clean(distance, anchors):
    represent, between = _space(distance)
    return lambda images: between(represent(images), anchors)


def _start(key, images, init_std, bound, keep="last"):
    """The first perturbation: noise. If it may be kept it is clipped to the box, unlike in the originals."""
    keys = example_keys(key, images.shape[0])
    start = init_std * normal(keys, images.shape[1:]) * (bound > 0)
    return clip_to_box(start, images) if keep == "best" else start


class _Objective(NamedTuple):
    """What LPA and Fast-LPA ascend, and how they scale a step."""

    logits_fn: LogitsFn
    represent: Callable[[Array], Array]
    between: Callable[[Array, Array], Array]
    bound: float | Array
    kappa: float
    probe: str
    floor: float  # added to the slope
    probe_size: float = 0.1


class _Point(NamedTuple):
    """The objective at an iterate; all (B,)."""

    value: Array  # the margin, clamped, minus the multiplier times the excess distance
    fooled: Array
    distance: Array


def _step(objective, images, labels, anchors, perturbation, multipliers, sizes) -> tuple[Array, _Point]:
    """A step up the gradient, scaled by a probed slope to cover ``sizes`` of the distance, and the point it left."""
    logits_fn, represent, between, bound, kappa, probe, floor, probe_size = objective

    def total(perturbation):
        adversarial = images + perturbation
        logits, features = logits_fn(adversarial), represent(adversarial)
        distance = between(features, anchors)
        value = margin(logits, labels, kappa) - multipliers * jax.nn.relu(distance - bound)
        return jnp.sum(value), (features, _Point(value, jnp.argmax(logits, axis=-1) != labels, distance))

    gradient, (features, point) = jax.grad(total, has_aux=True)(perturbation)
    unit = gradient / expand(l2_norm(gradient) + 1e-8, images)
    probed = represent(images + perturbation + (probe_size if probe == "forward" else -probe_size) * unit)
    slope = between(features, probed) / probe_size
    return clip_to_box(perturbation + expand(sizes / (slope + floor), images) * unit, images), point


def _score(point):
    """Scores iterates: the misclassified by nearness, which is positive, the others by value."""
    return jnp.where(point.fooled, 1 / (1 + point.distance), jnp.minimum(point.value, 0.0))


def _iterate(step, start, steps, keep):
    """Repeats ``perturbation, scores = step(i, perturbation)``; the scores are those of the perturbation passed in."""
    if keep == "last":
        return lax.fori_loop(0, steps, lambda i, perturbation: step(i, perturbation)[0], start)

    def body(i, carry):
        perturbation, best = carry
        moved, scores = step(i, perturbation)
        return moved, better(best, perturbation, scores)

    last, best = lax.fori_loop(0, steps, body, (start, (start, jnp.full(start.shape[0], -jnp.inf, start.dtype))))
    return better(best, last, step(steps, last)[1])[0]


def _conjugate_gradients(multiply, target, steps):
    """Solves ``multiply(u) = target`` for one vector per example, starting from zero."""

    def dot(a, b):
        return jnp.sum(a * b, axis=(1, 2, 3))

    def ratio(a, b):  # 0 once the residual has vanished
        return jnp.where(b != 0, a / jnp.where(b != 0, b, 1.0), 0.0)

    def improve(_, carry):
        solution, residual, direction = carry
        product = multiply(direction)
        square = dot(residual, residual)
        length = expand(ratio(square, dot(direction, product)), target)
        smaller = residual - length * product
        following = smaller + expand(ratio(dot(smaller, smaller), square), target) * direction
        return solution + length * direction, smaller, following

    return lax.fori_loop(0, steps, improve, (jnp.zeros_like(target), target, target))[0]
