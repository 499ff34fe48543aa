"""Minimal-norm attacks: DDN and DeepFool, and what such attacks share.

They look for the smallest perturbation that fools the network; there is no bound. An example for which they find none,
or that is misclassified to begin with, comes back unchanged. The robust accuracy at a budget counts the examples whose
perturbation is within the budget as fooled.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, expand, fold_in, l2_norm, normal, project_l2
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import cross_entropy, label_logit


class Closest(NamedTuple):
    """The closest adversarial images so far; clean ones, at infinite distance, where none was found."""

    images: Array  # (B, H, W, C)
    distances: Array  # (B,)

    @classmethod
    def none(cls, images: Array) -> "Closest":
        return cls(images, jnp.full(images.shape[0], jnp.inf, images.dtype))

    def updated(self, candidates: Array, distances: Array, fooled: Array) -> "Closest":
        """The result of replacing images by candidates that fool the network at a smaller distance."""
        nearer = fooled & (distances < self.distances)
        return Closest(
            jnp.where(expand(nearer, candidates), candidates, self.images),
            jnp.where(nearer, distances, self.distances),
        )


def quantise(images: Array, levels: int | None) -> Array:
    """Images clipped to [0, 1] and rounded to ``levels`` values (256: 8 bits); None only clips."""
    images = jnp.clip(images, 0.0, 1.0)
    return images if levels is None else jnp.round(images * (levels - 1)) / (levels - 1)


def unit_or_noise(gradient: Array, keys: Array) -> Array:
    """The gradient of each example over its l2 norm; normal noise where it is zero, so that the search moves on."""
    norms = l2_norm(gradient)
    lost = ~(norms >= 1e-12)
    noise = lax.cond(jnp.any(lost), lambda: normal(keys, gradient.shape[1:]), lambda: jnp.zeros_like(gradient))
    return jnp.where(expand(lost, gradient), noise, gradient / expand(jnp.where(lost, 1.0, norms), gradient))


def ddn(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    steps: int = 100,
    gamma: float = 0.05,
    init_norm: float = 1.0,
    levels: int | None = 256,
    max_norm: float | None = None,
) -> Array:
    r"""Decoupled direction and norm (Rony et al. 2019): gradient steps on a sphere whose radius shrinks or grows.

    Starting from d = 0 and radius r = ``init_norm``, for i = 0 .. N - 1:

    .. math::
      r \leftarrow \min(r (1 \mp \gamma), \|\max(x, 1 - x)\|_2), \quad - \text{ if } x + d \text{ fools the network}

      d \leftarrow d + \alpha_i\, g / \|g\|_2, \quad d \leftarrow r\, d / \|d\|_2, \quad
      d \leftarrow \mathrm{quantise}_{[0,1]}(x + d) - x

    where g is the gradient of the cross-entropy and :math:`\alpha_i` falls from 1 to 0.01 on a cosine.

    Args:
      key: a PRNG key, or one key per example (B,); used only where the gradient is zero.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      steps: N, gradient evaluations. The image after the last step is not tested, as in the original.
      gamma: relative change of the radius per step.
      init_norm: first radius, l2 over all pixels and channels.
      levels: the images tried and returned have this many values per channel; None for any value.
      max_norm: shrink larger perturbations to this l2 norm (they then need not fool the network); DDN training uses
        1.0. Rounding to ``levels`` comes afterwards, so the norm holds up to that rounding.

    Returns:
      the adversarial images of smallest l2 norm (B, H, W, C), in [0, 1]; the clean image where none was found.

    Source: adversarial-library `ddn`; ``max_norm``: fast_adversarial `DDN`. Deviation: with ``max_norm`` the image is
    rounded, not the perturbation; for 8-bit images that is the same, for others it keeps the image 8-bit.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)) - 1.8, 1.8 - images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("ddn", levels=None)
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(f"{jnp.linalg.norm(adversarial - 0.5):.2f}")  # the boundary is at distance 0.1
    0.10
    """
    keys = example_keys(key, images.shape[0])
    largest_norm = l2_norm(jnp.maximum(images, 1 - images))

    def loss(adversarial):
        logits = logits_fn(adversarial)
        return jnp.sum(cross_entropy(logits, labels)), logits

    def step(i, carry):
        adversarial, radius, closest = carry
        gradient, logits = jax.grad(loss, has_aux=True)(adversarial)
        perturbation = adversarial - images
        fooled = jnp.argmax(logits, axis=-1) != labels
        closest = closest.updated(adversarial, l2_norm(perturbation), fooled)
        rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * i / steps)) / 2
        perturbation = perturbation + rate * unit_or_noise(gradient, fold_in(keys, i))
        radius = jnp.minimum(radius * jnp.where(fooled, 1 - gamma, 1 + gamma), largest_norm)
        norms = l2_norm(perturbation)
        perturbation = perturbation * expand(radius / jnp.where(norms > 0, norms, 1.0), images)
        return quantise(images + perturbation, levels), radius, closest

    start = (images, jnp.full(images.shape[0], init_norm, images.dtype), Closest.none(images))
    _, _, closest = lax.fori_loop(0, steps, step, start)
    if max_norm is None:
        return closest.images
    shrunk = quantise(images + project_l2(closest.images - images, max_norm), levels)
    too_far = (closest.distances > max_norm) & jnp.isfinite(closest.distances)
    return jnp.where(expand(too_far, images), shrunk, closest.images)


def deepfool(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    classes: int = 10,
) -> Array:
    r"""DeepFool in l2 (Moosavi-Dezfooli et al. 2016): steps to the nearest boundary of the linearised network.

    Starting from r = 0, until :math:`x' = \mathrm{clip}_{[0,1]}(x + (1 + o) r)` fools the network:

    .. math::
      f_k = z_k(x') - z_y(x'), \quad w_k = \nabla f_k, \quad
      k^* = \arg\min_k |f_k| / \|w_k\|_2, \quad r \leftarrow r + (|f_{k^*}| + 10^{-4})\, w_{k^*} / \|w_{k^*}\|_2^2

    Args:
      key: unused; the attack is deterministic.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      steps: the most steps; each costs a forward pass, and a backward pass for each class considered except the label.
      overshoot: o, by how much the image goes past the boundary, relative to the perturbation.
      classes: how many classes are considered: the label and those of largest logit on the clean image. Gradients are
        taken one after another, so memory does not grow with their number.

    Returns:
      adversarial images (B, H, W, C) in [0, 1]; the clean image where even the last step does not fool the network.

    Source: Moosavi-Dezfooli et al. 2016, algorithm 2, and its released code (10 classes, 50 steps, 1e-4).
    Deviations: the label takes the place of the network's own prediction, the image is clipped to [0, 1], and a
    gradient below 1e-6 in norm counts as 1e-6.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)) - 1.8, 1.8 - images.sum((1, 2, 3))], axis=-1)
    >>> attack = lj.attacks.create("deepfool")
    >>> adversarial = attack(jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0]))
    >>> print(f"{jnp.linalg.norm(adversarial - 0.5):.3f}")  # the boundary is at distance 0.1
    0.102
    """
    clean = logits_fn(images)
    one_hot = jax.nn.one_hot(labels, clean.shape[-1], dtype=clean.dtype)
    others = jnp.where(one_hot > 0, -jnp.inf, clean)
    rivals = lax.top_k(others, min(classes, clean.shape[-1]) - 1)[1]

    def nearest_boundary(adversarial):
        logits, vjp = jax.vjp(logits_fn, adversarial)

        def consider(carry, targets):
            nearest, step = carry
            (gradient,) = vjp(jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype) - one_hot)
            norms = jnp.maximum(l2_norm(gradient), 1e-6)
            gap = jnp.abs(label_logit(logits, targets) - label_logit(logits, labels))
            # The label may be among the rivals if other classes are masked, with logits of -inf.
            nearer = (gap / norms < nearest) & (targets != labels)
            towards = gradient * expand((gap + 1e-4) / jnp.square(norms), gradient)
            return (jnp.where(nearer, gap / norms, nearest), jnp.where(expand(nearer, step), towards, step)), None

        start = (jnp.full(labels.shape, jnp.inf, logits.dtype), jnp.zeros_like(adversarial))
        (_, step), _ = lax.scan(consider, start, rivals.T)
        return jnp.argmax(logits, axis=-1) != labels, step

    def image(perturbation):
        return jnp.clip(images + (1 + overshoot) * perturbation, 0.0, 1.0)

    def unfinished(carry):
        i, _, fooled = carry
        return (i < steps) & ~jnp.all(fooled)

    def step(carry):
        i, perturbation, _ = carry
        fooled, towards = nearest_boundary(image(perturbation))
        return i + 1, jnp.where(expand(fooled, images), perturbation, perturbation + towards), fooled

    start = (0, jnp.zeros_like(images), jnp.argmax(clean, axis=-1) != labels)
    _, perturbation, _ = lax.while_loop(unfinished, step, start)
    adversarial = image(perturbation)
    fooled = jnp.argmax(logits_fn(adversarial), axis=-1) != labels
    return jnp.where(expand(fooled, images), adversarial, images)
