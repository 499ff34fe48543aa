"""AutoAttack (Croce and Hein 2020), standard version: four attacks in turn on the examples that still hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lagrangian_jax.attacks.apgd import apgd_ce, apgd_t, random_in_ball
from lagrangian_jax.attacks.arrays import example_axes, example_keys
from lagrangian_jax.attacks.attack import Execution, Stage
from lagrangian_jax.attacks.fab import fab_t
from lagrangian_jax.attacks.inputs import LogitsFn, finite_gradient, float32_logits
from lagrangian_jax.attacks.square import square
from lagrangian_jax.losses import cross_entropy, margin


def autoattack(
    *,
    norm: str = "linf",
    bound: float = 8 / 255,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
) -> tuple[Stage, ...]:
    """The standard version: APGD-CE, APGD-T, FAB-T, Square, each on the examples that no earlier one has fooled.

    Args:
      norm: "linf" or "l2".
      bound: radius of the ball, in units of images.
      steps: steps of each run of APGD and FAB.
      targets: number of target classes of APGD-T and FAB-T, the likeliest by the logits of the clean image; where there
        are fewer other classes, all of them.
      queries: queries of Square.

    Returns:
      2 + 2 ``targets`` stages. The targets of a part share one compiled program. An example that was misclassified from
      the start, or that nothing fools, keeps its clean image.

    Source: auto-attack `autoattack.py`; for the deviations see the parts (`apgd_t`: fewer than 4 classes; `square`:
    random numbers are drawn for each example). All parts get the same keys, as all get the same seed in the original.

    >>> import lagrangian_jax as lj
    >>> len(lj.attacks.create("autoattack", norm="l2", bound=1.0).stages)
    20
    """
    return (
        Stage(functools.partial(apgd_ce, norm=norm, bound=bound, steps=steps)),
        *apgd_t(norm=norm, bound=bound, steps=steps, targets=targets),
        *fab_t(norm=norm, bound=bound, steps=steps, targets=targets),
        Stage(functools.partial(square, norm=norm, bound=bound, queries=queries)),
    )


def checks(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: str = "linf",
    bound: float = 8 / 255,
) -> list[str]:
    """Looks for what makes a white-box evaluation unreliable, on a few images, before AutoAttack runs.

    Args:
      key: a PRNG key, or one key per example (B,), for the points at which gradients are looked at.
      logits_fn: images (B, H, W, C) to logits (B, K). It is called outside of `jax.jit`, which would freeze a random
        number drawn on the host.
      images: (B, H, W, C); a batch is enough.
      labels: (B,).
      norm, bound: the ball in which the network will be attacked.

    Returns:
      warnings, each with a sentence on what was seen and one on what it means; empty if nothing was found.

    Source: auto-attack `checks.py` (random networks, probabilities, zero gradients, number of classes), with its
    thresholds. Added: dependence on batch-mates. Different: the gradients tested are those of the margin and
    the cross-entropy, because the difference-of-logits ratio is constant where the label comes third.

    >>> import jax, jax.numpy as jnp
    >>> images, labels = jnp.full((2, 4, 4, 3), 0.5), jnp.array([0, 1])
    >>> found = checks(jax.random.key(0), lambda x: jax.nn.softmax(x[:, 0, :2].reshape(-1, 6)), images, labels)
    >>> print(found[0][:45])
    the network's outputs look like probabilities
    """
    images, labels, logits_fn = jnp.asarray(images), jnp.asarray(labels), float32_logits(logits_fn)
    logits = logits_fn(images)
    found = [
        _probabilities(logits),
        _random(logits_fn, images, labels),
        _batch_mates(logits_fn, images, logits),
        _classes(logits.shape[-1]),
        *_zero_gradients(key, logits_fn, images, labels, norm, bound),
    ]
    return [warning for warning in found if warning]


def square_check(execution: Execution, labels: Array | np.ndarray) -> list[str]:
    """A warning if Square, the last stage, fooled more than 0.2 % of all examples after the gradient attacks failed.

    Args:
      execution: what `lagrangian_jax.attacks.execute` returned for `autoattack`.
      labels: (N,).

    Source: auto-attack `checks.py`.
    """
    before, after = execution.attacked[-1], int(np.sum(execution.predictions == np.asarray(labels)))
    if before - after <= 0.002 * len(labels):
        return []
    return [
        f"Square, which uses no gradients, fooled {before - after} of the {before} examples that held against the "
        "gradient attacks. That is a sign of masked gradients: the robust accuracy is likely overestimated; try an "
        "adaptive attack."
    ]


def _probabilities(logits: Array, tolerance: float = 1e-5) -> str | None:
    in_range = (jnp.max(logits) < 1 + tolerance) & (jnp.min(logits) > -tolerance)
    if not (in_range & jnp.all(jnp.abs(jnp.sum(logits, axis=-1) - 1) < tolerance)):
        return None
    return (
        "the network's outputs look like probabilities (between 0 and 1, with sum 1). Attacks need logits: a softmax "
        "on top makes gradients vanish and robustness look better than it is."
    )


def _unit_rows(logits: Array) -> Array:
    return logits / (jnp.linalg.norm(logits, axis=-1, keepdims=True) + 1e-10)


def _random(logits_fn: LogitsFn, images: Array, labels: Array, times: int = 5, tolerance: float = 1e-4) -> str | None:
    outputs = jnp.stack([logits_fn(images) for _ in range(times)])
    correct = jnp.sum(jnp.argmax(outputs, axis=-1) == labels[None], axis=-1)
    rows = _unit_rows(outputs)
    spread = jnp.max(jnp.linalg.norm(rows[:, None] - rows[None], axis=-1))
    if spread <= tolerance and jnp.all(correct == correct[0]):
        return None
    return (
        f"the network is random: in {times} runs on the same {len(images)} images, between {int(correct.min())} and "
        f"{int(correct.max())} were correct, and the logits differed. One gradient is not that of the expected loss: "
        "average over several (expectation over transformation), or the robustness is overestimated."
    )


def _batch_mates(logits_fn: LogitsFn, images: Array, logits: Array, tolerance: float = 1e-3) -> str | None:
    half = len(images) // 2
    if half == 0:
        return None
    difference = _unit_rows(logits_fn(images[:half])) - _unit_rows(logits[:half])
    if jnp.max(jnp.linalg.norm(difference, axis=-1)) <= tolerance:
        return None
    return (
        "the logits of an image depend on the other images of its batch (batch normalisation in training mode?). "
        "Results then depend on the batch size and on which examples still hold; use the statistics of training "
        "(train=False)."
    )


def _classes(classes: int) -> str | None:
    if classes >= 4:
        return None
    return (
        f"with {classes} classes the targeted difference-of-logits ratio does not exist. APGD-T ascends the negative "
        "cross-entropy of the target instead, which is weaker where logits are large."
    )


def _zero_gradients(
    key: Array, logits_fn: LogitsFn, images: Array, labels: Array, norm: str, bound: float
) -> list[str]:
    start = random_in_ball(example_keys(key, images.shape[0]), images, norm, bound)

    def zeros(loss):
        gradient = jax.grad(lambda x: jnp.sum(loss(logits_fn(finite_gradient(x)), labels)))(start)
        return int(jnp.sum(jnp.sum(jnp.abs(gradient), example_axes(gradient)) == 0))

    count, of_logits, of_entropy = len(images), zeros(margin), zeros(cross_entropy)
    found = []
    if of_logits:
        found.append(
            f"the gradient of the logits is zero or not a number at {of_logits} of {count} starting points. Gradient "
            "attacks cannot move there (a quantised or otherwise piecewise constant network?), so only Square tests "
            "them; use a differentiable surrogate for the backward pass (BPDA)."
        )
    if of_entropy > of_logits:
        found.append(
            f"the gradient of the cross-entropy is zero at {of_entropy} of {count} starting points, that of the logits "
            f"at {of_logits}. The softmax is saturated by large logits: attacks on the cross-entropy (PGD, APGD-CE) "
            "overestimate the robustness; those on margins and ratios of logits do not."
        )
    return found
