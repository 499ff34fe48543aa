"""Additions to the loss of any training method: smoothed labels, perturbed weights, a penalty on variation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lagrangian_jax.attacks.arrays import l2_norm


class Regularisation(NamedTuple):
    """Options of a training step, each off at 0; the paper uses none.

    Attributes:
      label_smoothing: share of the label's probability that is spread evenly over all classes, in the cross-entropies
        that are minimised (Szegedy et al. 2016).
      weight_perturbation: gamma of adversarial weight perturbation (Wu et al. 2020), see `perturbed`; 0.005 to 0.01
        there. Costs one more gradient of the loss.
      variation: weight of `variation`; costs one more pass of the clean images.
      variation_of: "logits" (adversarial logit regularisation, Dai et al. 2025) or "features", the pooled ones before
        the last layer (variation regularisation, Dai et al. 2022).
    """

    label_smoothing: float = 0.0
    weight_perturbation: float = 0.0
    variation: float = 0.0
    variation_of: str = "logits"

    def checked(self) -> "Regularisation":
        """Returns itself; raises a `ValueError` that names a wrong field and its valid values."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"regularisation.label_smoothing: expected 0 or more, below 1; got {self.label_smoothing}")
        for name in ("weight_perturbation", "variation"):
            if getattr(self, name) < 0:
                raise ValueError(f"regularisation.{name}: expected 0 or more; got {getattr(self, name)}")
        if self.variation_of not in ("logits", "features"):
            raise ValueError(f"regularisation.variation_of: expected 'logits' or 'features'; got {self.variation_of!r}")
        return self


def perturbed(params: Any, gradient: Any, gamma: float) -> Any:
    r"""The weights moved towards higher loss: :math:`w + \gamma \|w\| g / \|g\|`, for each array by itself.

    Biases and the scales of normalisation stay as they are, as in the original; so does an array with zero gradient.

    Args:
      params: parameters.
      gradient: gradient of the loss, with the same structure.
      gamma: size of the perturbation, relative to each array's l2 norm.

    Source: csdongxian/AWP `utils_awp.py`, whose one step of gradient ascent on a copy gives this direction.

    >>> import jax.numpy as jnp
    >>> print(perturbed(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]]), 0.1))
    [[3.  4.5]]
    """

    def move(w, g):
        if w.ndim < 2:
            return w
        return w + gamma * jnp.linalg.norm(w.ravel()) * g / (jnp.linalg.norm(g.ravel()) + 1e-20)

    return jax.tree.map(move, params, gradient)


def variation(clean: Array, crafted: Array) -> Array:
    r"""How far an attack moves logits or features (B, K): :math:`\|z(x') - z(x)\|_2` for each example, (B,).

    For features, the original searches the ball for the two images that are furthest apart; here the two are the clean
    image and the one that the method has crafted anyway. The gradient is zero where nothing moved.

    >>> import jax.numpy as jnp
    >>> print(variation(jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]])))
    [5.]
    """
    return l2_norm(crafted - clean)
