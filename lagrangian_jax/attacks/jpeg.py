"""JPEG attack: bounded noise on the quantised DCT coefficients of an image (Kang et al. 2019)."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import clamp, example_keys, uniform
from lagrangian_jax.attacks.gradient import ascend
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import cross_entropy

# The quantisation tables of the JPEG standard, annex K, at quality 50; rows are vertical frequencies.
LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
CHROMA_TABLE = np.full((8, 8), 99, np.float32)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)  # rows Y, Cb, Cr of RGB
_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], np.float32)  # of Y, Cb, Cr

# Row u of this matrix is the cosine of frequency u on 8 pixels, scaled to norm 1.
_COSINES = np.cos((2 * np.arange(8) + 1) * np.arange(8)[:, None] * np.pi / 16) / 2
_COSINES[0] /= np.sqrt(2)
_COSINES = _COSINES.astype(np.float32)


def jpeg(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    bound: float = 0.125,
    steps: int = 50,
    step_size: float | None = None,
    random_start: bool = True,
    keep: str = "last",
) -> Array:
    r"""Sign ascent in the linf ball of quantised DCT coefficients, JPEG at quality 50 with 4:2:0 chroma.

    .. math:: v \leftarrow \mathrm{clip}_{[-b,b]}(v + s\,\mathrm{sign}(g)), \quad
       x' = \mathrm{clip}_{[0,255]}(\mathrm{decode}(\mathrm{encode}(x) + v / 2))

    Nothing is rounded: the noise stands for what rounding could do.

    Args:
      key: a PRNG key, or one key per example (B,), for the start.
      logits_fn: images (B, H, W, 3) to logits (B, K).
      images: (B, H, W, 3) float32 RGB in [0, 1], H and W multiples of 16.
      labels: (B,) integers.
      bound: b; half of it is the largest change of a coefficient, in units of its quantisation step. 0.125 in Tables 1
        and 2. With 0 the image still loses detail in its chroma (mean l2 norm 0.75 on CIFAR-10).
      steps: gradient evaluations.
      step_size: s, in units of the bound; ``bound / sqrt(steps)`` if not given. The paper's script has bound / 7.07.
      random_start: start with noise uniform within the bound, else with none.
      keep: "last" (the paper's) or "best" iterate by the loss.

    Returns:
      adversarial images (B, H, W, 3) in [0, 1].

    Raises:
      ValueError: H or W is not a multiple of 16, or there are not 3 channels.

    Source: advex-uar `jpeg_attack.py`, in the Lagrangian_Unseen copy. Kept from it: for the first gradient the noise
    is multiplied by the bound a second time. Deviations: as nothing is rounded, encoding and decoding cancel, so only
    the noise goes through the inverse DCT; ``keep="best"`` leaves out the first image, because that quirk makes it
    differ from the image of its noise.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.std((1, 2, 3)) - 0.01, 0.01 - images.std((1, 2, 3))], axis=-1)
    >>> images = jnp.full((1, 16, 16, 3), 0.5)
    >>> adversarial = lj.attacks.create("jpeg", steps=5)(jax.random.key(0), logits_fn, images, jnp.array([1]))
    >>> jnp.argmax(logits_fn(adversarial), axis=-1).item()
    0
    """
    batch, height, width, channels = images.shape
    if height % 16 or width % 16 or channels != 3:
        raise ValueError(
            f"jpeg: images must be RGB with a height and width that are multiples of 16, "
            f"got {height} x {width} x {channels}"
        )
    step_size = bound / steps**0.5 if step_size is None else step_size
    base = subsample_chroma(255 * images)
    shape = (height * width * 3 // 2,)
    keys = example_keys(key, batch)
    start = bound * uniform(keys, shape, -1.0, 1.0) if random_start else jnp.zeros((batch, *shape), images.dtype)

    def generate(noise):
        return clamp(base + decode(noise, height, width), 0.0, 255.0) / 255

    def objective(noise, first, i):
        values = cross_entropy(logits_fn(generate(jnp.where(first, bound, 1.0) * noise)), labels)
        return values, jnp.where(first, -jnp.inf, values), jnp.zeros_like(first)

    def update(i, noise, gradient):
        return jnp.clip(noise + step_size * jnp.sign(gradient), -bound, bound)

    return generate(ascend(objective, update, start, jnp.ones((), bool), steps, keep)[0])


def subsample_chroma(images: Array) -> Array:
    """Images (B, H, W, 3) after JPEG without rounding: chroma is averaged over 2 x 2 pixels, nothing is clipped."""
    batch, height, width, _ = images.shape
    planes = jnp.einsum("bhwc,dc->bhwd", images, _YCBCR, precision=lax.Precision.HIGHEST)
    luma, chroma = planes[..., :1], planes[..., 1:]
    chroma = jnp.mean(chroma.reshape(batch, height // 2, 2, width // 2, 2, 2), axis=(2, 4))
    return _to_rgb(luma, chroma)


def decode(noise: Array, height: int, width: int) -> Array:
    """The change of the RGB image, pixels in [0, 255], when half the noise is added to the quantised coefficients.

    Args:
      noise: (B, 3 H W / 2), in units of quantisation steps: the coefficients of Y, (H, W), then those of Cb and Cr,
        (2, H / 2, W / 2). Each 8 x 8 tile holds the frequencies of the block at its place, vertical ones by row.
      height, width: H and W.

    Returns:
      (B, H, W, 3).
    """
    luma, chroma = noise[:, : height * width], noise[:, height * width :]
    luma = _inverse_dct(luma.reshape(-1, 1, height, width), LUMA_TABLE)
    chroma = _inverse_dct(chroma.reshape(-1, 2, height // 2, width // 2), CHROMA_TABLE)
    return _to_rgb(jnp.moveaxis(luma, 1, -1), jnp.moveaxis(chroma, 1, -1))


def _inverse_dct(noise: Array, table: np.ndarray) -> Array:
    batch, planes, height, width = noise.shape
    tiles = noise.reshape(batch, planes, height // 8, 8, width // 8, 8) * (0.5 * table[None, None, None, :, None, :])
    pixels = jnp.einsum("bphuwv,ui,vj->bphiwj", tiles, _COSINES, _COSINES, precision=lax.Precision.HIGHEST)
    return pixels.reshape(noise.shape)


def _to_rgb(luma: Array, chroma: Array) -> Array:
    """Luma (B, H, W, 1) and chroma (B, H / 2, W / 2, 2), each pixel repeated 2 x 2, to RGB (B, H, W, 3)."""
    chroma = jnp.repeat(jnp.repeat(chroma, 2, axis=1), 2, axis=2)
    planes = jnp.concatenate([luma, chroma], axis=-1)
    return jnp.einsum("bhwc,dc->bhwd", planes, _RGB, precision=lax.Precision.HIGHEST)
