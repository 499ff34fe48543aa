"""The paper's attack (Algorithm 1): margin loss minus a multiplier times the l2 norm, in a few normalised steps."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from lagrangian_jax.attacks.arrays import example_keys, expand, l2_norm, linf_norm, normal
from lagrangian_jax.attacks.gradient import Forward, ascend, clip_to_box, stateless
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import margin


def lagrangian(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    steps: int = 5,
    step_size: float = 0.15,
    multiplier: float = 2.0,
    decay: float = 0.1,
    init_std: float = 0.01,
    kappa: float = 1.0,
    keep: str = "last",
) -> Array:
    r"""The Lagrangian attack: it has no bound; only the multiplier holds down the norm of the perturbation.

    Starting from :math:`d \sim N(0, \sigma^2)`, for i = 0 .. N - 1 (Algorithm 1, lines 3 to 8):

    .. math::
      \lambda_i = \lambda c^{1 - i/N}, \quad \alpha_i = \alpha c^{i/N}

      g = \nabla_d [\min(\max_{k \neq y} z_k(x + d) - z_y(x + d), \kappa) - \lambda_i \|d\|_2]

      d \leftarrow \mathrm{clip}_{[0,1]}(x + d + \alpha_i\, g / \max_j |g_j|) - x

    Args:
      key: a PRNG key, or one key per example (B,).
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      steps: N, gradient evaluations.
      step_size: alpha, the change of the most changed pixel in the first step; 0.15 on CIFAR-10, 0.25 on ImageNet-100.
      multiplier: lambda; 2.0 on CIFAR-10, 0.45 on ImageNet-100. The last step uses 0.63 lambda, never lambda itself.
      decay: c.
      init_std: standard deviation of the first perturbation, which is not clipped before the first forward pass unless
        ``keep="best"`` might return it.
      kappa: the margin above which only the norm is reduced.
      keep: "last" (the paper's) or "best": of the iterates that fool the network, the one of smallest l2 norm; if none
        does, the one of largest margin.

    Returns:
      adversarial images (B, H, W, C) in [0, 1].

    Source: Lagrangian_Unseen `Lag_attack.py`. Where that code differs from the paper, it is followed: a standard
    deviation of 0.01 (the paper: a variance), the clip to the box (the paper: none), 1e-8 added to max|g|, and kappa.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> def logits_fn(images):  # class 0 above a mean of 0.45
    ...     total = images.sum((1, 2, 3)) - 86
    ...     return jnp.stack([total, -total], axis=-1)
    >>> images = jnp.full((1, 8, 8, 3), 0.5)
    >>> adversarial = lj.attacks.create("lagrangian")(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> jnp.argmax(logits_fn(adversarial), axis=-1).item()
    1
    """
    adversarial, _ = lagrangian_with_state(
        key,
        stateless(logits_fn),
        (),
        images,
        labels,
        steps=steps,
        step_size=step_size,
        multiplier=multiplier,
        decay=decay,
        init_std=init_std,
        kappa=kappa,
        keep=keep,
    )
    return adversarial


def lagrangian_with_state(
    key: Array,
    forward: Forward,
    state: Any,
    images: Array,
    labels: Array,
    *,
    steps: int = 5,
    step_size: float = 0.15,
    multiplier: float | Array = 2.0,
    decay: float = 0.1,
    init_std: float = 0.01,
    kappa: float = 1.0,
    keep: str = "last",
) -> tuple[Array, Any]:
    """`lagrangian` for training: ``forward(images, state) -> (logits, state)``; ``multiplier`` may be (B,).

    Returns:
      the adversarial images and the state after the last forward pass.
    """
    keys = example_keys(key, images.shape[0])
    start = init_std * normal(keys, images.shape[1:])
    start = clip_to_box(start, images) if keep == "best" else start

    def objective(perturbation, state, i):
        logits, state = forward(images + perturbation, state)
        gain, norm = margin(logits, labels, kappa), l2_norm(perturbation)
        # Not judged by the gain, which kappa may hold at 0 or below even where the network is fooled.
        fooled = jnp.argmax(logits, axis=-1) != labels
        score = jnp.where(fooled, 1 / (norm + 1e-12), gain)
        return gain - multiplier * decay ** (1 - i / steps) * norm, score, state

    def update(i, perturbation, gradient):
        unit = gradient / expand(linf_norm(gradient) + 1e-8, gradient)
        return clip_to_box(perturbation + step_size * decay ** (i / steps) * unit, images)

    perturbation, state = ascend(objective, update, start, state, steps, keep)
    return jnp.clip(images + perturbation, 0.0, 1.0), state
