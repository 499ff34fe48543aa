"""StAdv (Xiao et al. 2018): moves pixels along a smooth flow."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.attacks.sampling import bilinear_sample
from lagrangian_jax.attacks.transformation import attack_transformation


def stadv(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.05,
    steps: int = 100,
    step_size: float = 0.001,
    smoothness: float = 0.05,
    align_corners: bool = False,
    keep: str = "last",
) -> Array:
    r"""StAdv: reads each pixel from a place nearby, and optimises the places.

    .. math::
      \max_\theta\; \max_{k \ne y} z_k(x_\theta) - z_y(x_\theta) - w R(\theta), \quad
      x_\theta = \mathrm{sample}(x, \theta), \quad \|\theta - \mathrm{id}\|_\infty \le b

    Args:
      key: not used; the attack is deterministic.
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      bound: largest move of a pixel along x and along y, in the units of a grid on which the image spans [-1, 1]; 0.05
        in the paper's tables, which is 0.8 pixels at 32 x 32 and 5.6 at 224 x 224.
      steps: gradient evaluations.
      step_size: Adam's learning rate, in the units of ``bound``; 0.001 in the paper's script, 0.01 in perceptual-advex.
      smoothness: w, the weight of R, see `flow_roughness`; 0.05 in both.
      align_corners: whether -1 and 1 are the centres of the border pixels, as in PyTorch before 1.3, or their outer
        edges. The flow is at most ``bound`` times (n - 1)/2 pixels with the centres, and n/2 with the edges.
      keep: "last" (the paper's) or "best" iterate, by the margin.

    Returns:
      adversarial images (B, H, W, C) in [0, 1]. A bound of zero returns the input up to rounding.

    Source: ReColorAdv `recoloradv.utils.get_attack_from_name("stadv")` as called by Lagrangian_Unseen `eval_model.py`.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images[:, 1, 1, 0], 1.4 - images[:, 1, 1, 0]], axis=-1)
    >>> images = jnp.zeros((1, 4, 4, 1)).at[:, 1, 1].set(1.0)
    >>> attack = lj.attacks.create("stadv", bound=0.2, steps=20, step_size=0.05)
    >>> adversarial = attack(jax.random.key(0), logits_fn, images, jnp.array([0]))  # both moves by 0.4 pixels
    >>> round(float(adversarial[0, 1, 1, 0]), 2)
    0.36
    """
    identity = identity_flow(images.shape[1], images.shape[2], align_corners)[None]

    def project(grid):
        return jnp.clip(jnp.clip(grid, -1.0, 1.0), identity - bound, identity + bound)

    return attack_transformation(
        logits_fn,
        labels,
        jnp.repeat(identity, images.shape[0], axis=0),
        lambda grid: bilinear_sample(images, grid, align_corners),
        lambda grid: flow_roughness(grid - identity),
        project,
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        keep=keep,
    )


def identity_flow(height: int, width: int, align_corners: bool = False) -> Array:
    """The places (x, y) of the pixels themselves, (H, W, 2)."""
    axes = []
    for size in (width, height):
        last = 1 if align_corners else 1 - 1 / size
        axes.append(np.linspace(-last, last, size, dtype=np.float32))
    return jnp.asarray(np.stack(np.meshgrid(*axes), axis=-1))


def flow_roughness(flow: Array) -> Array:
    r"""The sum over pixels and their four neighbours of :math:`\sqrt{|w - w'|^2 + 10^{-10}}`; (B, H, W, 2) to (B,).

    Neighbours outside the image count as equal, each pair counts twice, and there is no division by the number of
    pixels: the same flow at a larger size is rougher.
    """
    height, width = flow.shape[1:3]
    down = _length(flow[:, 1:] - flow[:, :-1])
    right = _length(flow[:, :, 1:] - flow[:, :, :-1])
    return 2 * (jnp.sum(down, axis=(1, 2)) + jnp.sum(right, axis=(1, 2)) + (height + width) * 1e-5)


def _length(step: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(step), axis=-1) + 1e-10)
