"""What elastic, JPEG, fog, Gabor and snow have in common, and their strength on the recorded network."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import ATTACKS, elastic, jpeg, snow
from lagrangian_jax.attacks.sign_ascent import clamp, sign_ascent
from lagrangian_jax.losses import cross_entropy

NAMES = ["elastic", "jpeg", "fog", "gabor", "snow"]
BOUNDS = {"elastic": 0.5, "jpeg": 0.125, "fog": 256.0, "gabor": 12.5, "snow": 0.125}
SIDE = 16


def network(images):
    """Three classes; not linear, so that attacks find something to climb."""
    rng = np.random.default_rng(1)
    first = rng.normal(size=(SIDE * SIDE * 3, 8)).astype(np.float32) / 10
    second = rng.normal(size=(8, 3)).astype(np.float32)
    return jnp.tanh(images.reshape(images.shape[0], -1) @ first) @ second


def loss(images, labels):
    return np.asarray(cross_entropy(network(images), labels))


@functools.cache
def compiled(name, random_start, keep):
    """The attack as a compiled function of keys, images, labels, the bound and a scale of the logits; five steps."""
    options = {"kernel_size": 5, "sigma": 1.0} if name == "elastic" else {}

    @jax.jit
    def run(keys, images, labels, bound, scale):
        return ATTACKS[name](
            keys,
            lambda images: scale * network(images),
            images,
            labels,
            bound=bound,
            steps=5,
            random_start=random_start,
            keep=keep,
            **options,
        )

    def attack(keys, images, labels, bound=BOUNDS[name], scale=1.0):
        return np.asarray(run(keys, jnp.asarray(images), jnp.asarray(labels), jnp.float32(bound), jnp.float32(scale)))

    return attack


@pytest.fixture
def images():
    return np.random.default_rng(0).random((4, SIDE, SIDE, 3), np.float32)


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(0), 4)


LABELS = np.array([0, 1, 2, 0], np.int32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 1e6, 0.0])
def test_finite_and_in_the_box_on_extreme_images_and_logits(name, scale, images, keys):
    for i, value in enumerate((0.0, 0.5, 1.0)):
        images[i] = value
    for labels in (LABELS, np.argmin(network(images), -1)):  # the second: every example is misclassified
        adversarial = compiled(name, True, "last")(keys, images, labels, scale=scale)
        assert np.isfinite(adversarial).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_one_extreme_example_without_a_random_start(name, images, keys):
    attack = compiled(name, False, "best")
    for value in (0.0, 0.5, 1.0):
        adversarial = attack(keys[:1], np.full_like(images[:1], value), LABELS[2:3])
        assert np.isfinite(adversarial).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
    one, two = (attack(key[None], images[:1], LABELS[:1]) for key in keys[:2])
    drawn = name in ("gabor", "snow")  # their kernels
    assert (np.abs(one - two).max() > 1e-4) == drawn


@pytest.mark.parametrize("name", NAMES)
def test_does_not_depend_on_the_rest_of_the_batch(name, images, keys):
    attack = compiled(name, True, "last")
    together = attack(keys, images, LABELS)
    other = 1 - images
    other[2] = images[2]
    mixed = attack(keys[jnp.array([3, 1, 2, 0])], other, np.array([2, 0, 2, 1], np.int32))
    # A sign may turn where a gradient is all rounding; nearly all pixels agree.
    assert np.mean(np.abs(together[2] - mixed[2]) > 1e-5) < 0.01
    assert np.abs(together[0] - mixed[0]).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_raises_the_loss_and_more_with_a_larger_bound(name, images, keys):
    attack = compiled(name, True, "last")
    reached = [loss(attack(keys, images, LABELS, BOUNDS[name] * factor), LABELS).mean() for factor in (0, 0.5, 2)]
    assert reached[0] < reached[2]
    if name != "fog":  # more fog also takes contrast away
        assert reached[0] < reached[1] < reached[2]


@pytest.mark.parametrize("name", NAMES)
def test_bound_zero_leaves_what_the_original_leaves(name, images, keys):
    images[1] = 0
    left = compiled(name, True, "last")(keys, images, LABELS, bound=0.0)
    brightest = images.max((1, 2), keepdims=True)
    expected = {
        "elastic": lambda: elastic.displace(images, jnp.zeros((4, SIDE, SIDE, 2)), False),
        "jpeg": lambda: np.clip(jpeg.subsample_chroma(255 * images) / 255, 0, 1),
        "fog": lambda: images / np.where(brightest > 0, brightest, 1),
        "gabor": lambda: images,
        "snow": lambda: np.clip(snow.fade(images), 0, 1),
    }[name]()
    np.testing.assert_allclose(left, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "message"),
    [
        ("jpeg", (24, 32, 3), {}, "jpeg: images must be RGB .* multiples of 16, got 24 x 32 x 3"),
        ("jpeg", (16, 16, 1), {}, "jpeg: images must be RGB .* got 16 x 16 x 1"),
        ("snow", (16, 18, 3), {}, "snow: images must be RGB .* multiples of 4, got 16 x 18 x 3"),
        ("snow", (16, 16, 1), {}, "snow: images must be RGB"),
        ("elastic", (16, 16, 3), {"kernel_size": 4}, "elastic: kernel_size must be odd and positive, got 4"),
        ("elastic", (8, 32, 3), {"kernel_size": 25}, "elastic: kernel_size .* got 25 for images of 8 x 32"),
        ("elastic", (16, 16, 3), {"sigma": 0.0}, "elastic: sigma must be positive, got 0.0"),
    ],
)
def test_refuses_what_it_cannot_do(name, shape, parameters, message, key):
    images = np.full((1, *shape), 0.5, np.float32)
    with pytest.raises(ValueError, match=message):
        lj.attacks.create(name, **parameters)(key, lambda x: x.reshape(1, -1)[:, :3], images, np.array([0]))


def test_sign_ascent_by_hand():
    """One variable, two logits (0, sin v): ascending the loss of class 0 climbs to v = pi / 2 and overshoots."""

    def climb(steps, keep):
        return sign_ascent(
            lambda v: v,
            lambda i, v: jnp.clip(v, 0.0, 2.5),
            jnp.zeros((1, 1)),
            lambda v: jnp.concatenate([jnp.zeros((1, 1)), jnp.sin(v)], axis=1),
            jnp.array([0]),
            steps=steps,
            step_size=0.9,
            keep=keep,
        ).item()

    assert climb(1, "last") == pytest.approx(0.9)
    assert climb(2, "last") == climb(2, "best") == pytest.approx(1.8)
    assert climb(3, "last") == pytest.approx(0.9)
    assert climb(3, "best") == pytest.approx(1.8)  # sin 1.8 is larger than sin 0.9


def test_clamp_passes_the_gradient_at_its_limits():
    gradient = jax.grad(lambda x: jnp.sum(clamp(x, 0.0, 1.0)))(jnp.array([-0.1, 0.0, 0.5, 1.0, 1.1]))
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row", "parameters"),
    [
        ("elastic", "elastic_k25", {}),
        ("elastic", "elastic_k25_align_true", {"align_corners": True}),
        ("elastic", "elastic", {"kernel_size": 5, "sigma": 3 / 7}),
        ("elastic", "elastic_align_true", {"kernel_size": 5, "sigma": 3 / 7, "align_corners": True}),
        ("jpeg", "jpeg", {}),
        ("fog", "fog", {"batch_normalise": True}),
        ("gabor", "gabor", {}),
        ("gabor", "gabor_0p125", {"bound": 0.125}),
        ("snow", "snow", {}),
    ],
)
def test_as_strong_as_the_original(golden, cifar10_test, network_a, key, name, row, parameters):
    with open(golden / "results.csv") as file:
        original = next(r for r in csv.DictReader(file) if r["model"] == "A" and r["attack"] == row)
    images, labels = cifar10_test(int(original["n"]))
    adversarial = np.asarray(lj.attacks.create(name, **parameters)(key, network_a, images, labels))
    accuracy = 100 * np.mean(np.argmax(network_a(adversarial), -1) == labels)
    l2 = np.sqrt(np.square(adversarial - images).sum((1, 2, 3))).mean()
    assert accuracy <= float(original["robust_acc"]) + 2.0
    assert l2 == pytest.approx(float(original["mean_l2"]), rel=0.05)
