"""What elastic, JPEG, fog, Gabor and snow have in common, and their strength on the recorded network."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks.arrays import clamp
from lagrangian_jax.attacks.sign_ascent import sign_ascent


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "message"),
    [
        ("jpeg", (24, 32, 3), {}, "jpeg: images must be RGB .* multiples of 16, got 24 x 32 x 3"),
        ("jpeg", (16, 16, 1), {}, "jpeg: images must be RGB .* got 16 x 16 x 1"),
        ("snow", (16, 18, 3), {}, "snow: images must be RGB .* multiples of 4, got 16 x 18 x 3"),
        ("snow", (16, 16, 1), {}, "snow: images must be RGB"),
        ("elastic", (8, 32, 3), {"kernel_size": 25}, "elastic: kernel_size .* got 25 for images of 8 x 32"),
        ("elastic", (16, 16, 3), {"sigma": 0.0}, "attack 'elastic': sigma must be a positive number; got 0.0"),
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
