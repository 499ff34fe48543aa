"""The Wasserstein attack: moves pixel mass to nearby pixels (Wong, Schmidt and Kolter 2019)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import expand
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import cross_entropy


def wasserstein(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.1,
    steps: int = 200,
    step_size: float = 0.1,
    kernel_size: int = 5,
    power: float = 2.0,
    regularisation: float = 3000.0,
    sinkhorn_steps: int = 400,
) -> Array:
    r"""PGD in the Wasserstein ball, projected by Sinkhorn iterations.

    .. math:: x' \leftarrow \mathrm{clip}_{[0,1]}(\Pi_b(x' + s\, \mathrm{sign}(\nabla \mathrm{CE}(z(x'), y))))

    The distance is the least cost of moving the mass of one image, scaled so that all its channels together sum to one,
    onto the other. Mass stays within its channel and moves within a window of ``kernel_size``; a unit that moves by
    (i, j) pixels costs :math:`(i^2 + j^2)^{p/2}`. A bound of 0.1 lets a tenth of the mass move by one pixel. See
    `project_wasserstein`.

    An example stops as soon as it fools the network.

    Args:
      key: not used; the attack is deterministic.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: radius b of the ball, mass times pixels to the power p; 0.1 is the publication's headline for CIFAR-10.
      steps: most gradient evaluations.
      step_size: s, largest change of a pixel before the projection, images in [0, 1].
      kernel_size: side of the window that mass may move in, odd.
      power: p.
      regularisation: weight of the distance to the step's image against the entropy of the transport plan; the larger,
        the sharper the projection and the longer it takes.
      sinkhorn_steps: most iterations of one projection.

    Returns:
      adversarial images (B, H, W, C) in [0, 1]. As in the original, the clip to [0, 1] comes last: where the projected
      image is brighter than 1, the mass above 1 is lost.

    Source: arXiv 1902.07906 and its release, `pgd.py` with the defaults of `attack_cifar.py` (sign steps). Deviations:
    the bound is fixed, where that script enlarges it from 0.001 by a factor of 1.17 every 10 steps until the example is
    fooled; Sinkhorn iterations stop for each example by itself, where the original's stop for the whole batch together;
    and see `project_wasserstein`. An image without mass (black) is returned as it is.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> images = jnp.zeros((1, 1, 4, 1)).at[0, 0, 1].set(1.0)
    >>> logits_fn = lambda images: jnp.stack([images[:, 0, 1, 0], images[:, 0, 2, 0] + 0.5], axis=-1)
    >>> attack = lj.attacks.create("wasserstein", bound=0.5, regularisation=100.0)
    >>> adversarial = attack(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> [round(float(value), 1) for value in adversarial.ravel()]
    [0.0, 0.6, 0.3, 0.0]
    """
    mass = jnp.sum(images, axis=(1, 2, 3), keepdims=True)
    unit = jnp.where(mass > 0, mass, 1.0)
    window = _window(kernel_size, power)

    def project(moved):
        projected = _project(images / unit, moved / unit, bound, window, regularisation, sinkhorn_steps) * unit
        return jnp.where(mass > 0, jnp.clip(projected, 0.0, 1.0), images)

    def objective(adversarial):
        logits = logits_fn(adversarial)
        return jnp.sum(cross_entropy(logits, labels)), logits

    def step(carry):
        i, adversarial, _ = carry
        gradient, logits = jax.grad(objective, has_aux=True)(adversarial)
        holds = jnp.argmax(logits, axis=-1) == labels
        moved = project(adversarial + step_size * jnp.sign(gradient))
        return i + 1, jnp.where(expand(holds, images), moved, adversarial), jnp.any(holds)

    start = (jnp.int32(0), images, jnp.array(True))
    return lax.while_loop(lambda carry: (carry[0] < steps) & carry[2], step, start)[1]


def project_wasserstein(
    center: Array,
    point: Array,
    bound: float | Array,
    *,
    kernel_size: int = 5,
    power: float = 2.0,
    regularisation: float = 3000.0,
    steps: int = 400,
    tolerance: float = 1e-4,
) -> Array:
    r"""The projection of a point onto the Wasserstein ball, by Sinkhorn iterations in the dual.

    .. math::
      \min_{Z, P} \tfrac{\lambda}{2} \|Z - Y\|^2 + \sum P \log P \quad \text{with} \quad
      P 1 = X, \; P^T 1 = Z, \; \langle C, P \rangle \le b

    The plan is :math:`P = \mathrm{diag}(a) K \mathrm{diag}(b)`, :math:`K = \exp(-\psi C - 1)`, and a step updates in
    turn

    .. math::
      a = X / (K b), \quad Z = \omega(\log \lambda + \lambda Y + \log K a) / \lambda, \quad b = Z / (K a)

    and :math:`\psi \ge 0` by a Newton step, where :math:`\omega(t) + \log \omega(t) = t`.

    Args:
      center: X, (B, H, W, C), nonnegative; each example sums to one.
      point: Y, (B, H, W, C).
      bound: the radius, a number or (B,).
      kernel_size, power, regularisation: see `wasserstein`; the last is lambda.
      steps: most iterations.
      tolerance: an example stops when its dual objective changes by at most this times one plus its absolute value.

    Returns:
      Z, (B, H, W, C), with the mass of each channel of X and at a transport cost of ``bound`` at most, whatever the
      number of iterations. The entropy blurs: even a point within the ball is returned unchanged only in the limit of
      a large ``regularisation``.

    Source: arXiv 1902.07906, algorithm 2, and `projected_sinkhorn.py`. Deviations: the Lambert function is evaluated in
    the logarithm of its argument, which overflows in the original on dark images. Factors beyond exp(80) are cut off:
    where lambda |Z - Y| exceeds 80, far beyond the attack's steps on natural images, Z is not quite the nearest point.
    At the end the plan's rows are scaled to sum to X; if its cost still exceeds the bound, it is mixed with the plan
    that moves nothing. The original may return a point slightly outside.
    """
    return _project(center, point, bound, _window(kernel_size, power), regularisation, steps, tolerance)


class _Window(NamedTuple):
    """The moves of a window, grouped by their cost: costs (R,) and the shifts (i, j) of each group."""

    reach: int
    costs: np.ndarray
    shifts: tuple[tuple[tuple[int, int], ...], ...]


def _window(kernel_size: int, power: float) -> _Window:
    if kernel_size % 2 == 0:
        raise ValueError(f"attack 'wasserstein': kernel_size must be an odd integer; got {kernel_size}")
    reach = kernel_size // 2
    groups: dict[int, list[tuple[int, int]]] = {}
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            groups.setdefault(i * i + j * j, []).append((i, j))
    squares = sorted(groups)
    costs = np.array(squares, np.float32) ** np.float32(power / 2)
    return _Window(reach, costs, tuple(tuple(groups[square]) for square in squares))


class _Dual(NamedTuple):
    """Where the dual problem of a projection stands; the plan is a K b, with K as in `kernel`."""

    iteration: Array
    psi: Array  # (B,), the multiplier of the bound
    b: Array  # (B, C, H, W), the plan's factor where mass arrives
    sums: Array  # (R, B, C, H, W), `group_sums` of b
    objective: Array  # (B,)
    running: Array  # (B,), which have not converged


def _project(center, point, bound, window, regularisation, steps, tolerance=1e-4):
    # Channels first, so that the shifts below run along a long minor axis.
    center, point = (jnp.moveaxis(x, -1, 1) for x in (center, point))
    count = center.shape[0]
    bound = jnp.broadcast_to(jnp.asarray(bound, jnp.float32), (count,))
    costs = jnp.asarray(window.costs)

    def group_sums(x):
        """The sum of x over each group of moves of equal cost, (R, B, C, H, W)."""
        reach, (height, width) = window.reach, x.shape[2:]
        padded = jnp.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        windows = [
            sum(padded[:, :, reach + i : reach + i + height, reach + j : reach + j + width] for i, j in shifts)
            for shifts in window.shifts
        ]
        return jnp.stack(windows)

    def kernel(sums, psi, moment=0):
        """K applied to x, given its group sums; C K for ``moment`` 1, C C K for 2, with elementwise products."""
        weights = costs[:, None] ** moment * jnp.exp(-psi[None] * costs[:, None] - 1)
        return sum(expand(weight, x) * x for weight, x in zip(weights, sums, strict=True))

    def rows(sums, psi):
        """a, which makes the plan's rows sum to X."""
        return center / jnp.maximum(kernel(sums, psi), 1e-37)

    def step(state):
        # The columns of the plan for given rows: b, by way of z, which is lambda times the projection Z.
        a = rows(state.sums, state.psi)
        arrived, tilt = kernel(group_sums(a), state.psi), regularisation * point
        # Where no mass can arrive, log(arrived) is minus infinity and its omega zero.
        z = jnp.where(arrived > 0, _omega(jnp.log(regularisation * jnp.maximum(arrived, 1e-37)) + tilt), 0.0)
        beta = z - tilt
        b = jnp.exp(jnp.clip(-beta, -80.0, 80.0))
        sums = group_sums(b)

        # Newton's step on psi, the multiplier of the bound; shortened where that keeps it positive.
        slope, curvature = _dot(a, kernel(sums, state.psi, 1)) - bound, _dot(a, kernel(sums, state.psi, 2))
        newton = slope / jnp.maximum(curvature, 1e-30)
        for _ in range(7):
            newton = jnp.where(state.psi + newton < 0, newton / 2, newton)
        psi = jnp.maximum(state.psi + newton, 0.0)

        alpha = jnp.where(center > 0, -jnp.log(jnp.maximum(a, 1e-37)), 0.0)
        dual = _dot(beta, -0.5 / regularisation * beta - point) - psi * bound - _dot(alpha, center)
        dual -= _dot(a, kernel(sums, psi))
        running = state.running
        return _Dual(
            iteration=state.iteration + 1,
            psi=jnp.where(running, psi, state.psi),
            b=jnp.where(expand(running, b), b, state.b),
            sums=jnp.where(running[None, :, None, None, None], sums, state.sums),
            objective=dual,
            running=running & ~(jnp.abs(dual - state.objective) <= tolerance * (1 + jnp.abs(dual))),
        )

    b = jnp.full_like(center, center[0].size)
    start = _Dual(
        iteration=jnp.int32(0),
        psi=jnp.ones_like(bound),
        b=b,
        sums=group_sums(b),
        objective=jnp.full_like(bound, -jnp.inf),
        running=jnp.full(count, True),
    )
    final = lax.while_loop(lambda state: (state.iteration < steps) & jnp.any(state.running), step, start)
    psi, b, sums = final.psi, final.b, final.sums
    a = rows(sums, psi)
    # What arrives minus what leaves: the mass of a channel is kept, whatever overflows or is cut off above.
    flow = b * kernel(group_sums(a), psi) - a * kernel(sums, psi)
    cost = _dot(a, kernel(sums, psi, 1))
    share = jnp.where(cost > bound, bound / jnp.where(cost > 0, cost, 1.0), 1.0)
    return jnp.moveaxis(center + expand(share, center) * flow, 1, -1)


def _dot(x: Array, y: Array) -> Array:
    return jnp.sum(x * y, axis=(1, 2, 3))


def _omega(t: Array) -> Array:
    """The Wright omega function of a real number: the w > 0 with w + log(w) = t; W(e^t) in terms of Lambert's W."""
    high = t > 1
    w = jnp.where(high, jnp.maximum(t, 1.0) - jnp.log(jnp.maximum(t, 1.0)), jnp.exp(jnp.minimum(t, 1.0)) / 1.5)
    for _ in range(4):
        # Newton's step, multiplied out so that w stays positive.
        w = jnp.maximum(w, 1e-37)
        w = w * (1 + t - jnp.log(w)) / (1 + w)
    return w
