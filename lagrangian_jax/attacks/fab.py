"""FAB-T (Croce and Hein 2020): the targeted fast adaptive boundary attack, which looks for the nearest boundary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.apgd import ranked_class
from lagrangian_jax.attacks.arrays import example_axes, expand, l2_norm, linf_norm
from lagrangian_jax.attacks.attack import Stage
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import label_logit

_NORMS = {"linf": linf_norm, "l2": l2_norm}


def hyperplane_step(points: Array, weights: Array, gap: Array, norm: str) -> Array:
    r"""The shortest step inside the box onto a hyperplane.

    .. math:: \arg\min_t \|t\|_p \quad \text{subject to} \quad \langle w, t \rangle = -\text{gap},\; 0 \le x + t \le 1

    Each coordinate moves against the sign of ``w * gap`` by :math:`\min(\mu r_j, \text{room}_j)`, with the rate
    :math:`r_j` = 1 (linf) or :math:`|w_j|` (l2) and the room that the box leaves, until the gap closes:
    :math:`\sum_j |w_j| \min(\mu r_j, \text{room}_j) = |\text{gap}|`. The left side is concave and piecewise linear in
    :math:`\mu`, so Newton's method from 0 never overshoots and ends at the exact solution after a few rounds. Unlike
    a search among sorted breakpoints, it needs neither a sort nor differences of long cumulative sums.

    Where the box does not reach the hyperplane, each coordinate with a nonzero weight goes to its face of the box.

    Args:
      points: x, (B, ...) in [0, 1].
      weights: w, shaped as ``points``; coordinates of weight zero do not move.
      gap: (B,), the value at x of the affine function that is zero on the hyperplane and has the gradient w.
      norm: "linf" or "l2".

    Returns:
      t, shaped as ``points``.
    """
    axes = example_axes(points)
    down = jnp.sign(expand(gap, points)) * weights
    weight, gap = jnp.abs(down), jnp.abs(gap)
    room = jnp.where(down > 0, points, 1 - points)
    rate = jnp.where(weight > 0, 1.0, 0.0) if norm == "linf" else weight
    everywhere = jnp.finfo(points.dtype).max

    def newton(carry):
        scale, _ = carry
        full = expand(scale, points) * rate >= room
        filled = jnp.sum(jnp.where(full, weight * room, 0.0), axes)
        slope = jnp.sum(jnp.where(full, 0.0, weight * rate), axes)
        reached = (gap - filled) / jnp.where(slope > 0, slope, 1.0)
        # The maximum keeps the sequence monotone in floating point: it ends at a fixed point whatever batch-mates do.
        return jnp.maximum(scale, jnp.where(slope > 0, reached, everywhere)), scale

    def moves(carry):
        scale, before = carry
        return jnp.any(scale > before)

    start = newton((jnp.zeros_like(gap), ()))
    scale, _ = lax.while_loop(moves, newton, start)
    return -jnp.sign(down) * jnp.minimum(expand(scale, points) * rate, room)


def fab(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    targets: Array,
    *,
    norm: str,
    steps: int = 100,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
) -> tuple[Array, Array]:
    r"""The nearest misclassified image found by approaching the boundary between label and target.

    At the iterate :math:`x_i` the boundary is approximated by the hyperplane where the linearised :math:`z_t - z_y` is
    zero. With :math:`d_1` and :math:`d_2` the steps (see `hyperplane_step`) onto it from the iterate and from the clean
    image, and :math:`\alpha = \min(\|d_1\| / (\|d_1\| + \|d_2\|), \alpha_{max})`:

    .. math:: x_{i+1} = \mathrm{clip}_{[0,1]}((1 - \alpha)(x_i + \eta d_1) + \alpha (x + \eta d_2))

    A misclassified iterate is kept if it is the nearest so far, and the next one starts between it and the clean image,
    at :math:`x + \beta (x_{i+1} - x)`.

    Args:
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) in [0, 1].
      labels: (B,).
      targets: (B,), t, the classes whose boundary with the label is approached.
      norm: "linf" or "l2".
      steps: iterations; each costs one gradient and one more forward pass.
      alpha_max: largest weight of the step from the clean image.
      eta: the factor by which steps are lengthened, to overshoot the hyperplane.
      beta: where to start again after a success, as a share of the perturbation.

    Returns:
      the nearest misclassified images and their distances (B,); where there is none, the clean image and infinity.

    Source: auto-attack `fab_base.py`, first restart (no random start).
    """
    size = _NORMS[norm]
    axes = example_axes(images)

    def difference(x):
        logits = logits_fn(x)
        values = label_logit(logits, targets) - label_logit(logits, labels)
        return jnp.sum(values), values

    def step(i, carry):
        x, nearest, distance = carry
        weights, gap = jax.grad(difference, has_aux=True)(x)
        gap_of_image = gap + jnp.sum(weights * (images - x), axes)
        both = hyperplane_step(
            jnp.concatenate([x, images]),
            jnp.concatenate([weights, weights]),
            jnp.concatenate([gap, gap_of_image]),
            norm,
        )
        from_x, from_image = jnp.split(both, 2)
        length, length_of_image = (jnp.maximum(size(d), 1e-8) for d in (from_x, from_image))
        alpha = expand(jnp.minimum(length / (length + length_of_image), alpha_max), x)
        x = jnp.clip((1 - alpha) * (x + eta * from_x) + alpha * (images + eta * from_image), 0.0, 1.0)

        fools = jnp.argmax(logits_fn(x), axis=-1) != labels
        reached = size(x - images)
        nearer = fools & (reached < distance)
        nearest = jnp.where(expand(nearer, x), x, nearest)
        distance = jnp.where(nearer, reached, distance)
        x = jnp.where(expand(fools, x), images + beta * (x - images), x)
        return x, nearest, distance

    start = (images, images, jnp.full(images.shape[0], jnp.inf, images.dtype))
    _, nearest, distance = lax.fori_loop(0, steps, step, start)
    return nearest, distance


def fab_t(
    *,
    norm: str = "linf",
    bound: float = 8 / 255,
    steps: int = 100,
    targets: int = 9,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
) -> tuple[Stage, ...]:
    """The targeted FAB attack, one stage per target class; deterministic.

    The targets are the classes ranked 2 .. ``targets`` + 1 by the logits of the clean image; a stage runs on the
    examples that still hold. Any misclassified image within the bound counts, whatever its class; where even the
    nearest one is farther away, the clean image is returned.

    Args:
      norm: "linf" or "l2", the distance that is minimised.
      bound: largest distance that counts, in units of images.
      steps: iterations per target; each costs one gradient and one more forward pass.
      targets: number of target classes; where there are fewer other classes, all of them.
      alpha_max, eta, beta: see `fab`.

    Returns:
      the stages; they share one compiled program, because the rank is traced.

    Source: Croce and Hein 2020 (arXiv 1907.02044); auto-attack `fab_base.py`, targeted.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: images[:, 0, :, 0]  # four classes, one a pixel of the first row
    >>> images = jnp.full((1, 4, 4, 1), 0.5).at[0, 0, 0].set(0.6)
    >>> attack = lj.attacks.create("fab_t", bound=0.1, steps=10)
    >>> adversarial = attack(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> bool(jnp.argmax(logits_fn(adversarial)) != 0)
    True
    """
    search = functools.partial(fab, norm=norm, steps=steps, alpha_max=alpha_max, eta=eta, beta=beta)
    attack = functools.partial(_fab_rank, search=search, bound=bound)
    return tuple(Stage(attack, (np.int32(rank),)) for rank in range(1, targets + 1))


def _fab_rank(keys, logits_fn, images, labels, rank, *, search, bound):
    logits = logits_fn(images)
    goal = ranked_class(logits, rank)

    def attack():
        nearest, distance = search(logits_fn, images, labels, goal)
        return jnp.where(expand(distance <= bound, images), nearest, images)

    return lax.cond(rank < logits.shape[-1], attack, lambda: images)
