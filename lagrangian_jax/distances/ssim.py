"""The structural similarity of Wang et al. 2004, as a distance."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


@dataclasses.dataclass(frozen=True)
class SSIMDistance:
    r"""One minus the mean structural similarity: 0 for equal images, 1 for unrelated ones, up to 2.

    .. math::
      \mathrm{SSIM} = \frac{(2\mu_a\mu_b + C_1)(2\sigma_{ab} + C_2)}
                           {(\mu_a^2 + \mu_b^2 + C_1)(\sigma_a^2 + \sigma_b^2 + C_2)},
      \quad C_1 = 0.01^2, \; C_2 = 0.03^2

    with means and (co)variances under an 11x11 Gaussian window of standard deviation 1.5, averaged over the windows
    that lie inside the image and over the channels. Evaluations report the similarity for the images of each
    attack. `lpa` and `fast_lpa` also accept it as their distance; `ppgd`, which needs features, does not.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004. The copy in perceptual-advex differs: it pads with zeros.
    """

    window: int = 11
    sigma: float = 1.5

    def __call__(self, images_a: Array, images_b: Array) -> Array:
        """The distances (B,) between two batches (B, H, W, C), float32 in [0, 1]."""
        if min(images_a.shape[1:3]) < self.window:
            raise ValueError(f"images: ssim needs {self.window} pixels a side or more; got shape {images_a.shape}")
        rows, columns = self._weights(images_a.shape[1]), self._weights(images_a.shape[2])

        def local_mean(x):
            return jnp.einsum("ph,bhwc,qw->bpqc", rows, x, columns, precision=lax.Precision.HIGHEST)

        # Centred on 1/2, so that the variances, differences of second moments, keep their digits in float32.
        a, b = images_a - 0.5, images_b - 0.5
        mean_a, mean_b = local_mean(a), local_mean(b)
        variances = local_mean(a * a + b * b) - mean_a**2 - mean_b**2
        covariance = local_mean(a * b) - mean_a * mean_b
        mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
        luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        structure = (2 * covariance + 0.03**2) / (variances + 0.03**2)
        return 1 - jnp.mean(luminance * structure, axis=(1, 2, 3))

    def _weights(self, length: int) -> np.ndarray:
        """(length - window + 1, length): the window at every place inside the image."""
        offsets = np.arange(length) - np.arange(length - self.window + 1)[:, None]
        gaussian = np.exp(-0.5 * ((offsets - self.window // 2) / self.sigma) ** 2)
        gaussian *= (offsets >= 0) & (offsets < self.window)
        return (gaussian / gaussian.sum(1, keepdims=True)).astype(np.float32)


def ssim() -> SSIMDistance:
    """One minus the mean structural similarity; see `SSIMDistance`.

    >>> import jax.numpy as jnp, lagrangian_jax as lj
    >>> print(lj.distances.create("ssim")(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3))))
    [0.]
    """
    return SSIMDistance()
