"""Attacks that change few pixels: PGD in the l0 ball, and CornerSearch (Croce and Hein 2019)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.attacks.arrays import example_keys, expand, fold_in, uniform
from lagrangian_jax.attacks.attack import Stage
from lagrangian_jax.attacks.inputs import LogitsFn
from lagrangian_jax.losses import cross_entropy


def pgd_l0(
    *,
    pixels: int | None = None,
    max_pixels: int = 9,
    restarts: int | None = None,
    steps: int = 20,
    step_size: float = 30000 / 255,
) -> list[Stage]:
    r"""PGD0: projected gradient descent on the number of changed pixels.

    One run starts at a uniformly random image and repeats, for N steps,

    .. math:: d \leftarrow P_k(d + s\, g / \|g\|_1), \quad g = \nabla_d \mathrm{CE}(z(x + d), y)

    where :math:`P_k` keeps the k pixels that matter most, clipped to the box; see `project_l0`. The image returned is
    the last one of a run that fools the network, or the clean one if no run does.

    By default there are ten runs for k = 1, then ten for k = 2, and so on up to ``max_pixels``: the 90 runs of the
    paper's script. Each run sees only the examples that no earlier run has fooled, so an image changes no more pixels
    than the smallest k that succeeded.

    Args:
      pixels: only this k; None for all from 1 to ``max_pixels``.
      max_pixels: largest k; 9 in the paper's script, although its table says 10. Not used with ``pixels``.
      restarts: runs for each k; by default 10, as in the paper's script, or 20 with ``pixels``: the original makes 10
        on all examples, and 20 on those that still hold cost about the same.
      steps: N; as in the original, the first only projects the start, so a run makes N - 1 gradient evaluations.
      step_size: s, the l1 norm of a step, with images in [0, 1]; 30000/255 in the paper's script.

    Returns:
      the stages of the attack, which share one compiled program.

    Source: Lagrangian_Unseen `eval_attacks/PGD0.py`, after Croce and Hein 2019. Deviations: the original attacks every
    example in every run and a later success overwrites an earlier one, so its images may change more pixels than these
    (the accuracy is the same). It does not test the result of the last step, which here counts if no earlier image of
    the run fools the network. It keeps all pixels tied with the k-th, after adding noise of 1e-12 (in float64) that
    makes ties unlikely; here no more than k pixels change. The cross-entropy is summed over the batch here, not
    averaged, so that the effect of the guard of 1e-10 in the l1 norm does not depend on the batch size.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), 7.2 - images.sum((1, 2, 3))], axis=-1)
    >>> images = jnp.full((1, 3, 3, 1), 0.5)
    >>> adversarial = lj.attacks.create("pgd_l0", restarts=1)(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> int(jnp.sum(adversarial != images))
    2
    """
    most = max_pixels if pixels is None else pixels

    def run(keys, logits_fn, images, labels, k, restart):
        keys = fold_in(fold_in(example_keys(keys, images.shape[0]), k), restart)
        start = project_l0(uniform(keys, images.shape[1:]) - images, images, k, most)

        def objective(perturbation):
            logits = logits_fn(images + perturbation)
            return jnp.sum(cross_entropy(logits, labels)), logits

        def step(i, carry):
            perturbation, found, ever = carry
            gradient, logits = jax.grad(objective, has_aux=True)(perturbation)
            fooled = jnp.argmax(logits, axis=-1) != labels
            found = jnp.where(expand(fooled, found), perturbation, found)
            size = jnp.sum(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
            moved = perturbation + step_size * gradient / (size + 1e-10)
            return project_l0(moved, images, k, most), found, ever | fooled

        last, found, ever = lax.fori_loop(1, steps, step, (start, start, jnp.zeros(labels.shape, bool)))
        return images + jnp.where(expand(ever, found), found, last)

    numbers = range(1, max_pixels + 1) if pixels is None else (pixels,)
    restarts = restarts or (10 if pixels is None else 20)
    return [Stage(run, (np.int32(k), np.int32(restart))) for k in numbers for restart in range(restarts)]


def project_l0(perturbation: Array, images: Array, pixels: int | Array, most: int) -> Array:
    r"""The nearest perturbation that changes at most ``pixels`` pixels and keeps the image in [0, 1].

    Keeping a pixel clipped to the box, instead of zeroing it, gains :math:`\|d\|^2 - \|d - \mathrm{clip}(d)\|^2`. The
    pixels with the largest gains stay; of equal ones, the first.

    Args:
      perturbation: (B, H, W, C).
      images: (B, H, W, C) in [0, 1].
      pixels: k, which may be traced.
      most: the static upper limit of k.
    """
    clipped = jnp.clip(perturbation, -images, 1 - images)
    gain = jnp.sum(clipped * (2 * perturbation - clipped), axis=-1)  # the difference of squares, without cancellation
    flat = gain.reshape(gain.shape[0], -1)
    most = min(most, flat.shape[1])
    largest = lax.top_k(flat, most)[1]
    chosen = jnp.arange(most) < pixels
    keep = jax.vmap(lambda index: jnp.zeros(flat.shape[1], bool).at[index].set(chosen))(largest)
    return clipped * keep.reshape(gain.shape)[..., None]


def corner_search(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    pixels: int = 10,
    iterations: int = 1000,
    candidates: int = 100,
    batch_size: int = 512,
) -> Array:
    """CornerSearch: a black-box search for a few pixels to set to extreme colours.

    1. Every pixel is set to each corner of the colour cube, one change at a time: 2^C H W images. The first that fools
       the network is returned.
    2. If none does, the changes are ordered K times: by z_y - z_k for each other class k, and by
       z_y - max_{k != y} z_k. For 2, 3, .. ``pixels`` pixels, and for each ordering, ``iterations`` random sets of
       changes are tried, drawn from the best ``candidates`` with more weight on the better: of rank k, counted from 0,
       with probability (2 (n - k) - 1) / n^2. The first image that fools the network is returned, or the
       clean one if none does.

    An image costs up to 2^C H W + (pixels - 1) K iterations forward passes: at the defaults 98,000 on CIFAR-10.
    Examples are searched one after the other, each in batches of ``batch_size`` images, and a search ends with its
    first success; examples that are misclassified from the start cost one forward pass.

    Args:
      key: a PRNG key, or one key per example (B,).
      logits_fn: images (B, H, W, C) to logits (B, K).
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integers.
      pixels: most pixels that may change.
      iterations: sets tried for each number of pixels and each ordering.
      candidates: n, the number of single changes that sets are drawn from.
      batch_size: images in one forward pass; the result does not depend on it.

    Returns:
      adversarial images (B, H, W, C) in [0, 1].

    Source: Croce and Hein 2019, `cornersearch_attacks_pt.py`, type L0. Deviation: the original's loop over the
    numbers of pixels ends one short of the number given; this one includes it.

    >>> import jax, jax.numpy as jnp, lagrangian_jax as lj
    >>> logits_fn = lambda images: jnp.stack([images.sum((1, 2, 3)), 7.2 - images.sum((1, 2, 3))], axis=-1)
    >>> images = jnp.full((1, 3, 3, 1), 0.5)
    >>> adversarial = lj.attacks.create("corner_search")(jax.random.key(0), logits_fn, images, jnp.array([0]))
    >>> int(jnp.sum(adversarial != images))
    2
    """
    if pixels is None:
        raise ValueError("attack 'corner_search': pixels must be an integer, 1 or larger; got None")
    shape = images.shape[1:]
    area, corners = shape[0] * shape[1], 2 ** shape[2]
    changes = area * corners
    candidates = min(candidates, changes)

    def change(flat: Array, index: Array) -> Array:
        """Sets a pixel of a (H W, C) image to a corner of the colour cube; an index beyond the last changes nothing."""
        color = (index % corners >> jnp.arange(shape[2])) & 1
        return flat.at[index // corners].set(color.astype(flat.dtype), mode="drop")

    def first_success(draw, count, flat, label, keep_logits=False):
        """Tests images ``draw(0), draw(1), .. draw(count - 1)`` up to the first that fools the network."""
        batches = -(-count // batch_size)

        def test(tried):
            index = jnp.minimum(tried.batch * batch_size + jnp.arange(batch_size), count - 1)
            drawn = jax.vmap(draw)(index)
            values = logits_fn(drawn.reshape(batch_size, *shape)).astype(jnp.float32)
            fooled = jnp.argmax(values, axis=-1) != label
            found = jnp.any(fooled)
            image = jnp.where(found, drawn[jnp.argmax(fooled)], tried.image)
            logits = tried.logits.at[tried.batch].set(values) if keep_logits else tried.logits
            return _Tried(tried.batch + 1, found, image, logits)

        classes = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct((1, *shape), flat.dtype)).shape[1]
        logits = jnp.zeros((batches, batch_size, classes)) if keep_logits else ()
        start = _Tried(jnp.int32(0), jnp.array(False), flat, logits)
        return lax.while_loop(lambda tried: (tried.batch < batches) & ~tried.found, test, start)

    def search(key, flat, label):
        single = first_success(lambda i: change(flat, i), changes, flat, label, keep_logits=True)
        order = _orderings(single.logits.reshape(-1, single.logits.shape[-1])[:changes], label, candidates)
        classes = order.shape[0]

        def draw(attempt, i):
            """The i-th set of changes of an attempt, which is a number of pixels and an ordering."""
            size, ordering = 2 + attempt // classes, attempt % classes
            set_key = jax.random.fold_in(jax.random.fold_in(key, attempt), i)
            # The original's n - 1 - floor(sqrt(U{0 .. n^2 - 1})) has the distribution of the better of two ranks.
            two = jax.random.randint(set_key, (2, pixels), 0, candidates)
            chosen = jnp.where(jnp.arange(pixels) < size, order[ordering, jnp.min(two, axis=0)], changes)
            # One after the other, so that of two colours for one pixel the later wins, on any device.
            return lax.fori_loop(0, pixels, lambda j, flat: change(flat, chosen[j]), flat)

        def attempt(carry):
            number, _, _ = carry
            sets = first_success(functools.partial(draw, number), iterations, flat, label)
            return number + 1, sets.found, sets.image

        def goes_on(carry):
            number, found, _ = carry
            return (number < (pixels - 1) * classes) & ~found

        return lax.while_loop(goes_on, attempt, (jnp.int32(0), single.found, single.image))[2]

    def attack(example):
        holds, key, flat, label = example
        return lax.cond(holds, search, lambda key, flat, label: flat, key, flat, label)

    keys = example_keys(key, images.shape[0])
    holds = jnp.argmax(logits_fn(images), axis=-1) == labels
    flat = images.reshape(images.shape[0], area, shape[2])
    return lax.map(attack, (holds, keys, flat, labels)).reshape(images.shape)


class _Tried(NamedTuple):
    """Batches of changed images that CornerSearch has tried on an example."""

    batch: Array  # how many
    found: Array  # whether an image of the last one fools the network
    image: Array  # the first that does, else the clean one
    logits: Any  # of all of them, (batches, batch_size, K), or ()


def _orderings(logits: Array, label: Array, candidates: int) -> Array:
    """The best ``candidates`` of N changes by each of K criteria, (N, K) to (K, candidates); row y: by the margin."""
    is_label = jnp.arange(logits.shape[1]) == label
    true = logits[:, label][:, None]
    best_other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=1, keepdims=True)
    return lax.top_k((jnp.where(is_label, best_other, logits) - true).T, candidates)[1]
