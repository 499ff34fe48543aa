"""The segmentation network: its maps by their formulas, its loss, its training; foreground found from labels alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagrangian_jax as lj
from lagrangian_jax import config as configuration
from lagrangian_jax import methods, parallel
from lagrangian_jax.build import build_optimizer
from lagrangian_jax.methods.segmentation import background_loss
from lagrangian_jax.models.segmentation import SegmentationNetwork, foreground_probability, resize_corners
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, training_step

NETWORK = SegmentationNetwork(stages=(1, 1), num_classes=3, width=4)


@jax.jit
def evaluate(variables, images):
    return NETWORK.apply(variables, images), foreground_probability(NETWORK, variables, images)


@pytest.fixture(scope="module")
def trained():
    """Images, masks of their foreground, labels, and the variables after 60 steps on the labels.

    Each image is a square on a dull background; the square's colour is the class.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 256).astype(np.int32)
    images = rng.integers(90, 130, (256, 12, 12, 3)).astype(np.uint8)
    square = np.zeros(images.shape[:3], bool)
    for inside, image, label in zip(square, images, labels, strict=True):
        row, column = rng.integers(0, 8, 2)
        inside[row : row + 5, column : column + 5] = True
        image[inside] = np.where(np.arange(3) == label, 220, 40)
    optimizer = optax.sgd(0.1, 0.9, True)
    state, mesh = initial_state(jax.random.key(0), NETWORK, (12, 12, 3), optimizer), parallel.mesh()
    state, *arrays = parallel.replicate((state, images, labels), mesh)
    plain = dict(padding=0, mode="reflect", flip=False)
    run = resident_steps(training_step(NETWORK, methods.create("segmentation"), optimizer, plain, 8, 0.0), mesh)
    for _ in range(60):
        state, metrics = run(state, *arrays, rng.permutation(256)[None, :32].astype(np.int32))
        jax.block_until_ready(metrics)
    return images / np.float32(255), square, labels, state.variables()


@pytest.fixture(scope="module")
def maps(trained):
    """For each mode: the first images' logits, foreground and attention, and the logits of their pixels."""
    images, *_, variables = trained

    @jax.jit
    def both(variables, images):
        keep = dict(mutable=["intermediates", "batch_stats"], capture_intermediates=lambda m, _: m.name == "classify_2")
        results = []
        for mode in (dict(train=False, maps=True), dict(train=True)):
            segmentation, rest = NETWORK.apply(variables, images, **mode, **keep)
            results.append((*segmentation, rest["intermediates"]["classify_2"]["__call__"][0]))
        return results

    return jax.tree.map(np.asarray, both(variables, images[:8]))


def test_foreground_is_found_from_labels_alone(trained):
    images, square, labels, variables = trained
    logits, foreground = map(np.asarray, evaluate(variables, images))
    assert np.mean(np.argmax(logits, -1) == labels) > 0.95
    assert foreground[square].mean() > foreground[~square].mean() + 0.2


def test_foreground_is_the_share_of_all_classes_beside_an_implicit_background(maps):
    for _, foreground, _, pixels in maps:
        total = np.exp(pixels.astype(np.float64)).sum(-1)
        np.testing.assert_allclose(foreground, total / (1 + total), rtol=1e-5)


def test_pixels_are_weighed_by_the_foreground_in_evaluation_and_by_the_head_in_training(maps):
    for (logits, foreground, attention, pixels), train in zip(maps, (False, True), strict=True):
        weights = attention if train else foreground
        expected = (pixels * weights[..., None]).sum((1, 2)) / weights.sum((1, 2))[:, None]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        assert np.ptp(weights, axis=(1, 2)).min() > 0.05  # or the weights would not matter


def test_a_picture_of_background_alone_still_has_logits(trained):
    images, *_, variables = trained
    never = jax.tree.map(lambda x: x, variables)
    never["params"]["classify_0"] = {"scale": jnp.zeros(12), "bias": jnp.ones(12)}
    never["params"]["classify_2"] = {"kernel": jnp.full((1, 1, 12, 3), -100.0)}
    logits, foreground = evaluate(never, images)
    np.testing.assert_array_equal(foreground, 0)
    assert np.isfinite(logits).all()


def test_resize_keeps_linear_pictures_and_corners():
    """A plane is a plane at any size; PyTorch's own numbers are in test_interop_torch."""
    row, column = np.mgrid[:3, :4] / np.array([2.0, 3.0])[:, None, None]
    larger = np.mgrid[:5, :9] / np.array([4.0, 8.0])[:, None, None]
    picture = jnp.asarray(2 * row + column, jnp.float32)[None, ..., None]
    np.testing.assert_allclose(resize_corners(picture, (5, 9))[0, ..., 0], 2 * larger[0] + larger[1], atol=1e-6)
    np.testing.assert_array_equal(resize_corners(picture[:, :1, :1], (2, 2)), np.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(resize_corners(picture, (3, 4)), picture)


class TestBackgroundLoss:
    def test_is_least_where_the_foreground_is_the_attention(self):
        """And is the entropy of the attention there."""
        rng = np.random.default_rng(0)
        attention = jnp.asarray(rng.uniform(0.05, 0.95, (4, 3, 5)), jnp.float32)
        least = background_loss(attention, attention)
        t = np.asarray(attention, np.float64)
        np.testing.assert_allclose(least, -(t * np.log(t) + (1 - t) * np.log(1 - t)).mean((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(jax.grad(lambda a: background_loss(a, attention).sum())(attention), 0, atol=1e-6)
        others = jnp.asarray(rng.uniform(size=attention.shape), jnp.float32)
        assert (background_loss(others, attention) > least).all()

    def test_the_attention_is_a_target(self):
        foreground = jnp.full((1, 2, 2), 0.3)
        gradient = jax.grad(lambda t: background_loss(foreground, t).sum())(jnp.full((1, 2, 2), 0.9))
        np.testing.assert_array_equal(gradient, 0)

    def test_is_bounded_at_certainty(self):
        certain = background_loss(jnp.array([[[0.0, 1.0]]]), jnp.array([[[1.0, 0.0]]]))
        np.testing.assert_allclose(certain, -np.log(1e-5), rtol=1e-6)


class TestRelativeRates:
    def config(self, **rates):
        config = configuration.load("segmentation_cifar").unlock()
        config.optimizer.relative_rates = rates
        return config

    def test_the_head_moves_at_its_own_rate_with_its_own_momentum_and_decay(self):
        """As PyTorch's parameter groups: one optimizer at each rate would do the same."""
        params = {"conv1": jnp.ones(3), "attn0": {"conv1": jnp.full(3, 2.0)}}
        gradients = [jax.tree.map(lambda p, s=s: s * jnp.arange(3.0) + p, params) for s in (1.0, -2.0, 0.5)]

        def after(optimizer):
            state, at = optimizer.init(params), params
            for gradient in gradients:
                updates, state = optimizer.update(gradient, state, at)
                at = optax.apply_updates(at, updates)
            return at

        both = after(build_optimizer(self.config(attn0=0.01), lambda step: 0.1))
        fast, slow = (after(build_optimizer(self.config(), lambda step, rate=r: rate)) for r in (0.1, 0.001))
        np.testing.assert_allclose(both["conv1"], fast["conv1"], rtol=1e-6)
        np.testing.assert_allclose(both["attn0"]["conv1"], slow["attn0"]["conv1"], rtol=1e-6)
        assert np.abs(fast["attn0"]["conv1"] - slow["attn0"]["conv1"]).min() > 0.1

    def test_unknown_submodules_are_named(self):
        optimizer = build_optimizer(self.config(attn=0.01), lambda step: 0.1)
        params = {"attn0": jnp.ones(1)}
        with pytest.raises(ValueError, match=r"relative_rates: 'attn'; did you mean 'attn0'"):
            optimizer.update(params, optimizer.init(params), params)


def test_configuration_is_the_originals():
    config = configuration.load("segmentation_cifar")
    assert config.method.to_dict() == {"name": "segmentation", "weight": 1.0}
    assert (config.train.epochs, config.train.clean_epochs, config.train.batch_size) == (90, 0, 128)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.nesterov) == (0.1, 0.9, True)
    assert (optimizer.weight_decay, optimizer.schedule) == (5e-4, "cosine")
    assert optimizer.relative_rates.to_dict() == {"attn0": 0.01}
    assert lj.models.create(**config.network).mean == lj.models.NORMALISATIONS["cifar10"][0]
    assert "segmentation" not in methods.names()  # no method against attacks
