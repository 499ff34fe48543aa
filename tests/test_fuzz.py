"""Random input to the public functions: shapes, types, ranges, no and one example, odd sizes, 2 to 1,000 classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lagrangian_jax as lj
from lagrangian_jax import attacks, data, losses
from lagrangian_jax.attacks.arrays import project_l2
from lagrangian_jax.attacks.msd import project_l1
from lagrangian_jax.data.augmentation import augment, unit_interval
from lagrangian_jax.data.images import centre_crop, random_box
from lagrangian_jax.data.stream import epoch_order

few = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(max_examples=100, deadline=None, derandomize=True)  # of what does not compile
seeds = st.integers(0, 2**31 - 1)
batches = st.sampled_from([0, 1, 2, 5])


@jax.jit
def all_losses(logits, labels):
    values = {
        "cross_entropy": losses.cross_entropy(logits, labels),
        "smoothed": losses.cross_entropy(logits, labels, 0.1),
        "margin": losses.margin(logits, labels),
        "soft_margin": losses.soft_margin(logits, labels),
        "boosted": losses.boosted_cross_entropy(logits, labels),
        "kl": losses.kl_divergence(logits, logits[:, ::-1]),
    }
    if logits.shape[1] > 2:
        values["dlr"] = losses.dlr(logits, labels)
    return values, jax.grad(lambda z: losses.cross_entropy(z, labels).sum())(logits)


@few
@given(st.sampled_from([0, 1, 3]), st.sampled_from([2, 3, 10, 1000]), st.sampled_from([0.0, 1.0, 1e4]), seeds)
def test_losses(batch, classes, scale, seed):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(batch, classes))).astype(np.float32)
    labels = rng.integers(0, classes, batch).astype(np.int32)
    values, gradient = all_losses(logits, labels)
    for name, value in values.items():
        assert value.shape == (batch,), name
        assert value.dtype == jnp.float32, name
        assert np.isfinite(value).all(), name
    for name in ("cross_entropy", "boosted", "kl"):
        assert np.all(values[name] >= -1e-3), name
    wrong = logits.argmax(-1) != labels
    assert np.all(np.asarray(values["margin"])[wrong] >= 0)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-5)  # softmax less one


PROJECTIONS = {  # and the norm of the ball
    jax.jit(project_l2): lambda d: np.sqrt((d**2).sum((1, 2, 3))),
    jax.jit(project_l1): lambda d: abs(d).sum((1, 2, 3)),
}


@few
@given(st.sampled_from([(0, 3, 5, 3), (1, 1, 1, 1), (3, 4, 7, 3)]), st.sampled_from([0.0, 1e-6, 0.5, 100.0]), seeds)
def test_projections_are_feasible_and_stay(shape, bound, seed):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for project, norm in PROJECTIONS.items():
        projected = np.asarray(project(x, bound))
        assert projected.shape == x.shape
        assert projected.dtype == x.dtype
        assert np.all(norm(projected) <= bound * (1 + 1e-5) + 1e-6)
        np.testing.assert_allclose(project(projected, bound), projected, rtol=1e-4, atol=1e-6)


AUGMENT = [jax.jit(functools.partial(augment, padding=1, mode="reflect", flip=flip)) for flip in (False, True)]


@few
@given(st.sampled_from([(0, 5, 5, 3), (1, 2, 3, 1), (3, 9, 4, 3)]), st.booleans(), seeds)
def test_augmentation_moves_pixels_and_makes_none(shape, flip, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    images = AUGMENT[flip](jax.random.split(jax.random.key(seed), len(pixels)), pixels)
    assert images.shape == pixels.shape
    assert images.dtype == jnp.float32
    for image, original in zip(np.asarray(images), np.asarray(unit_interval(pixels)), strict=True):
        assert set(np.unique(image)) <= set(np.unique(original))


@many
@given(st.lists(st.integers(0, 999), min_size=1, max_size=200), st.data())
def test_held_out_images_are_balanced(labels, draw):
    labels = np.array(labels)
    count = draw.draw(st.integers(0, len(labels)))
    kept, held = data.hold_out(labels, count)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert len(held) == count
    for label in np.unique(labels):
        share = count * np.mean(labels == label)
        assert abs(np.sum(labels[held] == label) - share) < 1 + 1e-9


@many
@given(st.integers(1, 4000), st.integers(1, 4000), seeds)
def test_random_boxes_lie_inside(width, height, seed):
    left, upper, right, lower = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


@many
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
def test_centre_crops_have_the_size(width, height, size):
    from PIL import Image

    assert centre_crop(Image.new("RGB", (width, height)), size).size == (size, size)


@many
@given(seeds, st.integers(0, 1000), st.integers(1, 500))
def test_orders_are_permutations(seed, epoch, examples):
    assert sorted(epoch_order(seed, epoch, examples)) == list(range(examples))


# Attacks

SMALL = {  # parameters that make each quick, where its own would not
    "pgd_linf": {"steps": 2, "bound": 0.1},
    "pgd_l2": {"steps": 2, "bound": 0.5},
    "fgsm": {"bound": 0.1},
    "mi_fgsm": {"steps": 2, "bound": 0.1},
    "lagrangian": {"steps": 2},
    "msd": {"steps": 2},
    "ddn": {"steps": 3},
    "deepfool": {"steps": 2},
    "carlini_wagner": {"steps": 2},
    "stadv": {"steps": 2},
    "recolor": {"steps": 2},
    "jpeg": {"steps": 2},
    "elastic": {"steps": 2},
    "fog": {"steps": 2},
    "gabor": {"steps": 2},
    "snow": {"steps": 2},
    "gaussian_noise": {"clip": True},
    "gaussian_blur": {},
    "none": {},
    "apgd_ce": {"steps": 2},
    "apgd_dlr": {"steps": 2},
    "apgd_t": {"steps": 2, "targets": 2},
    "fab_t": {"steps": 2, "targets": 2},
    "square": {"queries": 3},
    "autoattack": {"steps": 2, "targets": 2, "queries": 3},
    "mpgd": {"steps": 2, "bound": 0.1},
    "augmented_lagrangian": {"steps": 2},
    "lpa": {"steps": 2, "rounds": 1, "distance": lj.distances.create("l2")},
    "fast_lpa": {"steps": 2, "distance": lj.distances.create("l2")},
    "ppgd": {"steps": 2, "distance": lj.distances.create("l2")},
    "pgd_l0": {"pixels": 2, "steps": 2, "restarts": 2},
    "corner_search": {"pixels": 2, "iterations": 3},
    "wasserstein": {"steps": 2, "sinkhorn_steps": 5},
}
NORMS = {"pgd_linf": "linf", "fgsm": "linf", "mi_fgsm": "linf", "mpgd": "linf", "pgd_l2": "l2"}


def attacked(name, batch, height, width, classes, seed):
    """Random images, and what the attack makes of them on a linear network."""
    rng = np.random.default_rng(seed)
    weights = jnp.asarray(rng.normal(size=(height * width * 3, classes)), jnp.float32)
    images = jnp.asarray(rng.choice([0.0, 1.0, 0.5, 0.25], (batch, height, width, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, classes, batch), jnp.int32)
    attack = attacks.create(name, **SMALL[name])

    def logits_fn(images):
        return images.reshape(len(images), len(weights)) @ weights

    run = jax.jit(lambda key, images, labels: attack(key, logits_fn, images, labels))
    return images, run(jax.random.key(seed), images, labels)


def assert_valid(name, images, adversarial):
    assert adversarial.shape == images.shape
    assert adversarial.dtype == jnp.float32
    assert np.all((np.asarray(adversarial) >= 0) & (np.asarray(adversarial) <= 1))  # false for NaN, too
    difference = np.asarray(adversarial - images)
    if NORMS.get(name) == "linf":
        assert np.all(abs(difference) <= SMALL[name]["bound"] + 1e-6)
    if NORMS.get(name) == "l2":
        assert np.all(np.sqrt((difference**2).sum((1, 2, 3))) <= SMALL[name]["bound"] + 1e-5)


def test_no_attack_is_forgotten():
    assert set(SMALL) == set(attacks.names())


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_attacks_take_any_batch(batch):
    for name in ("pgd_l2", "lagrangian"):
        assert_valid(name, *attacked(name, batch, 5, 7, 3, seed=batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(batches, st.integers(16, 33), st.integers(16, 33), st.sampled_from([2, 3, 10, 1000]), seeds)
def test_attacks_on_any_input(name, batch, height, width, classes, seed):
    multiple = {"jpeg": 16, "snow": 4}.get(name, 1)  # of their blocks, as documented
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    if name in ("apgd_dlr", "augmented_lagrangian"):  # their ratio takes a third class, as documented
        classes = max(classes, 3)
    assert_valid(name, *attacked(name, batch, height, width, classes, seed))


@few
@given(st.integers(1, 9), st.sampled_from([2, 11]), st.sampled_from([np.float32, np.uint8]), st.integers(1, 12), seeds)
def test_evaluation_counts_every_example_once(count, classes, dtype, batch_size, seed):
    rng = np.random.default_rng(seed)
    images = rng.random((count, 5, 3, 3), np.float32)
    images = images if dtype == np.float32 else (255 * images).astype(np.uint8)
    labels = rng.integers(0, classes, count)
    index = rng.choice(2**32 - 1, count, replace=False)

    def logits_fn(x):
        return jnp.outer(x[:, 0, :, 0].sum(-1), jnp.arange(classes, dtype=jnp.float32))

    rows = [lj.evaluation.Row("none")]
    result = lj.evaluation.run(logits_fn, images, labels, suite=rows, batch_size=batch_size, index=index)
    floats = images if dtype == np.float32 else images.astype(np.float32) / np.float32(255)
    predictions = np.where(floats[:, 0, :, 0].sum(-1) > 0, classes - 1, 0)
    assert result["none"].correct == np.sum(predictions == labels)
    assert result["none"].total == count
    np.testing.assert_array_equal(result.examples["none"]["index"], index)
