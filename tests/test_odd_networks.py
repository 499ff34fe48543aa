"""Logits that are infinite, tied, or without a derivative somewhere: attacks must not take that for success."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax import methods
from lagrangian_jax.attacks.arrays import l2_norm
from lagrangian_jax.methods.method import Network

CLASSES = 5
WEIGHTS = np.random.default_rng(0).normal(size=(48, CLASSES)).astype(np.float32)
IMAGES = np.random.default_rng(1).random((12, 4, 4, 3), np.float32)


def linear(images):
    return images.reshape(len(images), -1) @ WEIGHTS


LABELS = np.asarray(linear(IMAGES)).argmax(-1)
WITH_GRADIENTS = {
    "fgsm": {},
    "pgd_linf": {},
    "pgd_l2": {"bound": 0.2},
    "lagrangian": {},
    "apgd_ce": {"steps": 10},
    "apgd_t": {"steps": 10},
    "fab_t": {"steps": 10},
    "deepfool": {},
    "ddn": {"steps": 20},
    "carlini_wagner": {"steps": 10, "search_steps": 2},
    "stadv": {"steps": 10},
    "fast_lpa": {"distance": lj.distances.create("l2")},
}


def fooled(logits_fn, images, labels):
    return np.asarray(logits_fn(images)).argmax(-1) != labels


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_masked_classes_are_as_if_they_were_not_there(name):
    """A usual way to restrict a network to some of its classes."""

    def masked(images):
        return jnp.concatenate([linear(images), jnp.full((len(images), 3), -jnp.inf)], axis=-1)

    attack = lj.attacks.create(name, **WITH_GRADIENTS[name])
    expected, found = (attack(jax.random.key(0), logits_fn, IMAGES, LABELS) for logits_fn in (linear, masked))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert fooled(linear, expected, LABELS).any()


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_without_a_derivative_an_image_stays(name):
    """The norm of features that vanish on a black image, in a network that nothing fools."""

    def logits_fn(images):
        features = linear(images)
        directions = features / (jnp.linalg.norm(features, axis=-1, keepdims=True) + 1e-6)
        return 0.1 * directions + jnp.zeros((1, CLASSES)).at[0, 0].set(10.0)

    images, labels = np.concatenate([np.zeros_like(IMAGES[:2]), IMAGES[:2]]), np.zeros(4, int)
    assert np.isnan(jax.grad(lambda x: jnp.sum(logits_fn(x)))(images)).any()
    attack = lj.attacks.create(name, **WITH_GRADIENTS[name])
    adversarial = attack(jax.random.key(0), logits_fn, images, labels)
    assert np.isfinite(adversarial).all()
    assert not fooled(logits_fn, adversarial, labels).any()


def test_an_infinite_derivative_is_a_direction():
    """The square root of a black pixel."""

    def logits_fn(images):
        return jnp.stack([jnp.full(len(images), 0.5), jnp.sqrt(images).mean((1, 2, 3))], axis=-1)

    black = np.zeros((1, 4, 4, 3), np.float32)
    adversarial = lj.attacks.create("pgd_linf", bound=0.5, steps=4)(jax.random.key(0), logits_fn, black, np.array([0]))
    np.testing.assert_allclose(adversarial, 0.5, atol=1e-6)


@pytest.mark.parametrize("name", ["lagrangian", "pgd_linf", "ddn"])
def test_crafting_for_training_makes_no_nan(name):
    """A network whose derivative is not a number at every image."""

    class Module:
        def apply(self, variables, images, train, mutable=()):
            still = jnp.linalg.norm(jnp.zeros_like(images) * images, axis=(1, 2))[:, :1]
            logits = jnp.concatenate([still, still + 1, still], axis=-1)
            return (logits, {}) if mutable else logits

    method = methods.create(name)
    batch = methods.Batch(jnp.asarray(IMAGES), jnp.zeros(len(IMAGES), jnp.int32), jnp.arange(len(IMAGES)), 5)
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    crafted = method.craft(keys, Network(Module(), {}, {}), batch, (), 10.0)
    assert np.isfinite(crafted.images).all()


def test_the_l2_norm_of_what_is_no_number_is_none():
    assert np.isnan(l2_norm(jnp.array([[3.0, jnp.nan]])))[0]
    np.testing.assert_array_equal(jax.grad(lambda x: l2_norm(x)[0])(jnp.zeros((1, 3))), np.zeros((1, 3)))


@pytest.mark.parametrize("name", ["lagrangian", "lpa", "fast_lpa"])
def test_the_best_iterate_is_one_that_can_be_returned(name):
    """Below 0, where noise around a black image is no image, this network is fooled, and by less than above 0."""

    def logits_fn(images):
        rival = 50 * (images[:, 0, 0, 0] - 0.02) + jnp.where(images.min((1, 2, 3)) < 0, 100.0, 0.0)
        return jnp.stack([jnp.zeros(len(images)), rival], axis=-1)

    black, labels = np.zeros((16, 4, 4, 3), np.float32), np.zeros(16, int)
    parameters = {} if name == "lagrangian" else {"distance": lj.distances.create("l2"), "bound": 1.0}
    last, best = (
        lj.attacks.create(name, keep=keep, **parameters)(jax.random.key(0), logits_fn, black, labels)
        for keep in ("last", "best")
    )
    assert fooled(logits_fn, best, labels).any()
    assert np.all(fooled(logits_fn, best, labels) >= fooled(logits_fn, last, labels))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_goes_on_at_a_tie(norm):
    """The label is predicted while all logits are equal."""

    def logits_fn(images):
        return jnp.maximum(jnp.stack([jnp.zeros(len(images)), images.mean((1, 2, 3)) - 0.505], axis=-1), 0)

    images, labels = np.full((8, 6, 6, 1), 0.5, np.float32), np.zeros(8, int)
    bound = 0.1 if norm == "linf" else 0.6
    adversarial = lj.attacks.create("square", norm=norm, bound=bound, queries=100)(
        jax.random.key(0), logits_fn, images, labels
    )
    assert fooled(logits_fn, adversarial, labels).sum() >= 6  # one where the tie ends the search


def test_ddn_leaves_what_is_misclassified_as_it_is():
    labels = (LABELS + 1) % CLASSES
    adversarial = lj.attacks.create("ddn", max_norm=1.0, steps=5)(jax.random.key(0), linear, IMAGES, labels)
    np.testing.assert_array_equal(adversarial, IMAGES)
