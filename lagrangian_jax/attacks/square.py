"""Square (Andriushchenko et al. 2020): random search with square-shaped changes, without gradients."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, expand, fold_in, l2_norm, predictions, uniform
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import margin

# The share p of the image that a square covers halves after these queries.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

Propose = Callable[[Array, Array, Array], Array]  # (keys, query, best images) -> candidates


def square(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: str = "linf",
    bound: float = 8 / 255,
    queries: int = 5000,
    share: float = 0.8,
) -> Array:
    """Random search for a misclassified image in the ball; the last part of AutoAttack.

    A query changes one square window of the best image so far, and the change is kept if the margin (logit of the label
    minus the best other) falls or the image is misclassified. linf: the search starts from vertical stripes of +-bound,
    and a query adds +-2 bound to a window, one sign per channel. l2: it starts from 5 x 5 tiles, and a query moves the
    perturbation of one window into another, on top of a pattern with a positive and a negative half; the perturbation
    always has the length of the bound before the box clips it.

    The side of the window is sqrt(p H W); p starts at ``share`` and halves after 10, 50, 200, 500, 1000, 2000, 4000,
    6000 and 8000 queries. An example is left alone once it is misclassified, and the search ends when all are.

    Args:
      key: a PRNG key, or one key per example (B,).
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      norm: "linf" or "l2".
      bound: radius of the ball, in units of images.
      queries: forward passes after the first.
      share: p at the first queries, a share of the image's area.

    Returns:
      the misclassified images, within the bound; the clean ones where none was found.

    Source: auto-attack `square.py` as AutoAttack calls it (margin loss, fixed schedule). Deviations: windows and the
    signs of linf are drawn for each example (in the original once for the whole batch), so that an example does not
    depend on its batch-mates; windows larger than the image are cut to it; where the label is tied for the largest
    logit and still predicted, the search goes on.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: images[:, 0, :, 0]  # four classes, one a pixel of the first row
    >>> images = jnp.full((1, 4, 4, 1), 0.5).at[0, 0, 0].set(0.6)
    >>> attack = lj.attacks.create("square", bound=0.1, queries=100)
    >>> adversarial = attack(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> bool(jnp.argmax(logits_fn(adversarial)) != 0)
    True
    """
    best, _, fooled = search(key, logits_fn, images, labels, norm=norm, bound=bound, queries=queries, share=share)
    return jnp.where(expand(fooled, images), best, images)


def search(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: str,
    bound: float,
    queries: int,
    share: float = 0.8,
) -> tuple[Array, Array, Array]:
    """The search of `square`: the images of smallest margin found, their margins, (B,), and whether they fool, (B,)."""
    keys = example_keys(key, images.shape[0])
    start, propose = (_linf if norm == "linf" else _l2)(keys, images, bound, share)

    def goes_on(carry):
        i, _, _, fooled = carry
        return (i <= queries) & ~jnp.all(fooled)

    def query(carry):
        # The start is evaluated as query 0, so that the program contains the network only once.
        i, best, margins, fooled = carry
        candidate = jnp.where(i == 0, start, propose(fold_in(keys, i), i - 1, best))
        logits = logits_fn(candidate)
        # Not judged by the margin: at a tie, frequent among bfloat16 logits, the label may still be predicted.
        found, fools = -margin(logits, labels), predictions(logits) != labels
        better = ~fooled & ((found < margins) | fools)
        best = jnp.where(expand(better, best), candidate, best)
        return i + 1, best, jnp.where(better, found, margins), fooled | fools

    nothing = jnp.full(images.shape[0], jnp.inf, images.dtype), jnp.zeros(images.shape[0], bool)
    _, best, margins, fooled = lax.while_loop(goes_on, query, (0, start, *nothing))
    return best, margins, fooled


def halvings(query: Array | int) -> Array:
    """How often the share has halved by this query (the first is query 0)."""
    return jnp.sum(query > jnp.asarray(_HALVINGS))


def sides(height: int, width: int, share: float, norm: str) -> list[int]:
    """The side of the window after each number of halvings; odd and at least 3 for l2, within the image.

    >>> sides(32, 32, 0.8, "linf")
    [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    >>> sides(32, 32, 0.8, "l2")
    [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]
    """
    found = []
    for times in range(len(_HALVINGS) + 1):
        side = round(math.sqrt(share / 2**times * height * width))
        side = max(side, 1) if norm == "linf" else max(side, 3) | 1
        found.append(min(side, height, width))
    return found


def _signs(values: Array) -> Array:
    """Uniform numbers in [0, 1) to signs."""
    return jnp.where(values < 0.5, -1.0, 1.0)


def _corner(values: Array, side: Array, length: int) -> Array:
    """Uniform numbers to the first row or column of a window; never the last possible one, as in the original."""
    return jnp.floor(values * (length - side)).astype(jnp.int32)


def _window(top: Array, left: Array, side: Array, images: Array) -> Array:
    """(B, H, W, 1), true inside the window."""

    def inside(first, length):
        offset = jnp.arange(length)[None] - first[:, None]
        return (offset >= 0) & (offset < side)

    rows, columns = inside(top, images.shape[1]), inside(left, images.shape[2])
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _linf(keys: Array, images: Array, bound: float, share: float) -> tuple[Array, Propose]:
    """The start and the proposals of the linf search."""
    _, height, width, channels = images.shape
    side_of = jnp.asarray(sides(height, width, share, "linf"))
    stripes = _signs(uniform(keys, (1, width, channels)))
    start = jnp.clip(images + bound * stripes, 0.0, 1.0)

    def propose(keys, query, best):
        random = uniform(keys, (2 + channels,))
        side = side_of[halvings(query)]
        window = _window(_corner(random[:, 0], side, height), _corner(random[:, 1], side, width), side, images)
        change = jnp.where(window, 2 * bound * _signs(random[:, None, None, 2:]), 0.0)
        return jnp.clip(jnp.clip(best + change, images - bound, images + bound), 0.0, 1.0)

    return start, propose


def bumps(height: int, width: int) -> np.ndarray:
    """A pattern that falls off in square rings from the centre, of unit l2 norm."""
    rows, columns = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    ring = np.maximum(rows[:, None], columns[None, :])
    terms = 1.0 / (np.arange(max(height, width) // 2 + 1) + 1.0) ** 2
    value = np.cumsum(terms[::-1])[::-1][ring]  # rings around the centre add up from the outside
    return value / np.sqrt(np.sum(value**2))


def tile(side: int) -> np.ndarray:
    """A positive bump above a negative one, of unit l2 norm."""
    upper = side // 2
    value = np.concatenate([bumps(upper, side), -bumps(side - upper, side)]) if upper else -bumps(side, side)
    return (value / np.sqrt(np.sum(value**2))).astype(np.float32)


def _l2(keys: Array, images: Array, bound: float, share: float) -> tuple[Array, Propose]:
    """The start and the proposals of the l2 search."""
    _, height, width, channels = images.shape
    axes = (1, 2)  # over pixels: a window has one norm per channel
    side_at = sides(height, width, share, "l2")
    side_of = jnp.asarray(side_at)
    corner_patterns = np.zeros((len(side_at), 2, height, width), np.float32)
    for patterns, side in zip(corner_patterns, side_at, strict=True):
        patterns[0, :side, :side] = tile(side)
        patterns[1, :side, :side] = tile(side).T
    pattern_of = jnp.asarray(corner_patterns)

    def scaled(perturbation):
        return perturbation * expand(bound / (l2_norm(perturbation) + 1e-12), perturbation)

    def norm_of_channels(perturbation):
        return jnp.sqrt(jnp.sum(jnp.square(perturbation), axes, keepdims=True))

    def propose(keys, query, best):
        random = uniform(keys, (5 + channels,))
        level = halvings(query)
        side = side_of[level]
        top, other_top = (_corner(random[:, k], side, height) for k in (0, 1))
        left, other_left = (_corner(random[:, k], side, width) for k in (2, 3))
        window = _window(top, left, side, images)
        other = _window(other_top, other_left, side, images)
        # A window never leaves the image, so rolling the pattern from the corner moves it there.
        pattern = pattern_of[level][(random[:, 4] < 0.5).astype(jnp.int32)]
        pattern = jax.vmap(lambda p, *shift: jnp.roll(p, shift, (0, 1)))(pattern, top, left)[..., None]

        perturbation = best - images
        inside = jnp.where(window, perturbation, 0.0)
        fresh = pattern * _signs(random[:, None, None, 5:]) + inside / (1e-12 + norm_of_channels(inside))
        unused = jnp.maximum(bound**2 - jnp.square(l2_norm(perturbation)), 0.0) / channels
        budget = jnp.sqrt(unused + jnp.square(l2_norm(jnp.where(window | other, perturbation, 0.0))))
        fresh *= expand(budget, fresh) / (1e-12 + norm_of_channels(fresh))
        perturbation = jnp.where(window, fresh, jnp.where(other, 0.0, perturbation))
        return jnp.clip(images + scaled(perturbation), 0.0, 1.0)

    return jnp.clip(images + scaled(_tiles(keys, height, width, channels)), 0.0, 1.0), propose


def _tiles(keys: Array, height: int, width: int, channels: int) -> Array:
    """The start of the l2 search before scaling: 5 x 5 tiles, turned at random, with a random sign per channel."""
    side = max(height // 5, 1)
    first = max((height - 5 * side) // 2, 0)
    rows, columns = (np.arange(length) - first for length in (height, width))
    row_tile, column_tile = rows // side, columns // side
    counts = (height // side, width // side)
    covered = ((row_tile >= 0) & (row_tile < counts[0]))[:, None] & ((column_tile >= 0) & (column_tile < counts[1]))
    upright = tile(side)[rows % side][:, columns % side] * covered
    turned = tile(side).T[rows % side][:, columns % side] * covered

    random = uniform(keys, (*counts, 1 + channels))
    random = random[:, np.clip(row_tile, 0, counts[0] - 1)][:, :, np.clip(column_tile, 0, counts[1] - 1)]
    pattern = jnp.where(random[..., :1] < 0.5, turned[..., None], upright[..., None])
    return pattern * _signs(random[..., 1:])
