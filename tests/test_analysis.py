"""The analyses against closed forms: linear networks, independent sums, scipy; and what their figures show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import lagrangian_jax as lj
from lagrangian_jax import analysis
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.report import analysis_figures, figures

SHAPE = (4, 4, 3)


@pytest.fixture(scope="module")
def linear(linear_network):
    """(logits_fn, weights, biases) of a linear network of two classes, grey images, and labels both right and wrong."""
    logits_fn, weights, biases = linear_network(SHAPE, classes=2)
    images = np.random.default_rng(2).uniform(0.4, 0.6, size=(6, *SHAPE)).astype(np.float32)
    return logits_fn, weights, biases, images, np.array([0, 1, 0, 1, 0, 1], np.int32)


def multipliers(logits_fn, images, labels, **options):
    function = functools.partial(analysis.effective_multiplier, logits_fn=logits_fn, **options)
    return jax.tree.map(np.asarray, jax.jit(function)(jax.random.key(0), images=images, labels=labels))


class TestEffectiveMultiplier:
    def test_of_the_margin_of_a_linear_network_is_the_distance_of_the_weights(self, linear):
        """The box is far away: grey images, a budget of 0.3."""
        logits_fn, weights, _, images, labels = linear
        result = multipliers(logits_fn, images, labels, center=0.3, loss="margin")
        np.testing.assert_allclose(result.envelope, np.linalg.norm(weights[:, 1] - weights[:, 0]), rtol=1e-5)
        np.testing.assert_allclose(result.difference, result.envelope, rtol=1e-4)

    def test_of_several_classes_is_that_of_the_best_other_class(self, linear_network):
        logits_fn, weights, biases = linear_network(SHAPE, classes=4)
        images = np.random.default_rng(3).uniform(0.4, 0.6, size=(16, *SHAPE)).astype(np.float32)
        labels = np.arange(16, dtype=np.int32) % 4
        low, high = 0.28, 0.32

        # For each class, the margin at a budget is the clean margin plus the distance of the weights times the budget.
        flat, mine = images.reshape(16, -1).astype(np.float64), weights.T[labels]
        distances = np.linalg.norm(weights.T[None] - mine[:, None], axis=-1)
        clean = flat @ weights + biases
        clean = clean - np.take_along_axis(clean, labels[:, None], 1) + np.where(np.eye(4)[labels] > 0, -np.inf, 0)
        largest = [np.argmax(clean + budget * distances, axis=-1) for budget in (low, high)]
        same = largest[0] == largest[1]
        assert same.sum() > 10
        expected = np.take_along_axis(distances, largest[0][:, None], 1)[:, 0]
        result = multipliers(logits_fn, images, labels, center=0.3, half_width=0.02, loss="margin")
        # Ascent may stay with the class that is best from the clean image: the loss it reaches tells whether it did.
        first = np.argmax(clean, axis=-1) == largest[0]
        assert (same & first).sum() > 8
        for estimate in result:
            np.testing.assert_allclose(estimate[same & first], expected[same & first], rtol=2e-4)

    def test_of_the_cross_entropy_is_that_of_the_margin_times_its_derivative(self, linear):
        logits_fn, weights, biases, images, labels = linear
        result = multipliers(logits_fn, images, labels, center=0.3, half_width=0.01)
        direction = (weights[:, 1] - weights[:, 0]) * np.where(labels == 0, 1, -1)[:, None]
        size = np.linalg.norm(direction, axis=-1)
        margin = (direction * images.reshape(6, -1)).sum(-1) + np.where(labels == 0, 1, -1) * (biases[1] - biases[0])
        expected = size / (1 + np.exp(-(margin + 0.3 * size)))
        np.testing.assert_allclose(result.envelope, expected, rtol=1e-4)
        np.testing.assert_allclose(result.difference, expected, rtol=2e-3)

    def test_values_at_the_edge_of_the_box_count_where_they_can_move(self, linear):
        """As in photographs: of the black and white values, only those that would move inwards take part."""
        logits_fn, weights, _, images, labels = linear
        images = np.where(images < 0.45, 0, np.where(images > 0.55, 1, images)).astype(np.float32)
        slope = ((weights[:, 1] - weights[:, 0]) * np.where(labels == 0, 1, -1)[:, None]).reshape(images.shape)
        stuck = ((images == 0) & (slope < 0)) | ((images == 1) & (slope > 0))
        expected = np.linalg.norm(np.where(stuck, 0, slope).reshape(6, -1), axis=-1)
        assert (expected < 0.95 * np.linalg.norm(slope.reshape(6, -1), axis=-1)).all()  # the box does matter
        result = multipliers(logits_fn, images, labels, center=0.3, loss="margin")
        np.testing.assert_allclose(result.envelope, expected, rtol=1e-4)
        np.testing.assert_allclose(result.difference, expected, rtol=1e-4)

    def test_values_that_reach_the_edge_of_the_box_stay_there(self, linear):
        """A larger budget moves only the others; the exact optimum in ball and box is by bisection of the scale."""
        logits_fn, weights, _, images, labels = linear
        images = np.where(images < 0.45, 0.02, np.where(images > 0.55, 0.98, images)).astype(np.float32)
        slope = ((weights[:, 1] - weights[:, 0]) * np.where(labels == 0, 1, -1)[:, None]).reshape(images.shape)
        low, high = np.zeros(6), np.full(6, 10.0)
        for _ in range(60):
            scale = (low + high) / 2
            moved = np.clip(images + scale[:, None, None, None] * slope, 0, 1) - images
            inside = np.linalg.norm(moved.reshape(6, -1), axis=-1) < 0.6
            low, high = np.where(inside, scale, low), np.where(inside, high, scale)
        free = (images + moved > 1e-6) & (images + moved < 1 - 1e-6)
        assert ((moved != 0) & ~free).any((1, 2, 3)).all()
        share = np.linalg.norm(np.where(free, slope, 0).reshape(6, -1), axis=-1)
        expected = share * 0.6 / np.linalg.norm(np.where(free, moved, 0).reshape(6, -1), axis=-1)
        result = multipliers(logits_fn, images, labels, center=0.6, half_width=0.01, loss="margin")
        np.testing.assert_allclose(result.difference, expected, rtol=0.05)  # PGD ends short of the optimum
        np.testing.assert_allclose(result.envelope, expected, rtol=0.05)

    def test_where_nothing_can_grow_it_is_zero(self, linear):
        *_, images, labels = linear
        result = multipliers(lambda x: jnp.zeros((len(x), 3)), images, labels)
        np.testing.assert_array_equal(result.difference, 0)
        np.testing.assert_array_equal(result.envelope, 0)

    def test_at_a_peak_within_the_budget_it_is_zero(self):
        """The loss has a maximum at a distance of 0.2, next to which steps of a fixed size end."""

        def logits_fn(images):
            bowl = 10 * jnp.sum(jnp.square(images - 0.6), axis=(1, 2, 3))  # a slope of 4 at the image
            return jnp.stack([bowl, jnp.zeros_like(bowl)], axis=-1)

        images = np.full((1, 2, 2, 1), 0.5, np.float32)
        result = multipliers(logits_fn, images, np.array([0]), center=0.33, loss="margin")
        np.testing.assert_allclose(result, 0, atol=0.1)

    def test_wrong_arguments_are_named(self, key, linear):
        logits_fn, _, _, images, labels = linear
        with pytest.raises(ValueError, match="loss 'cross_entropi'; did you mean 'cross_entropy'"):
            analysis.effective_multiplier(key, logits_fn, images, labels, loss="cross_entropi")
        with pytest.raises(ValueError, match="less than the centre"):
            analysis.effective_multiplier(key, logits_fn, images, labels, center=0.1, half_width=0.1)


class TestNorms:
    def test_confidence_is_of_the_clean_image_and_norms_are_the_attacks(self, key, linear):
        logits_fn, *_, images, labels = linear
        attack = lj.attacks.create("lagrangian", steps=2)
        result = analysis.norms_and_confidence(key, attack, logits_fn, images, labels)
        logits = np.asarray(logits_fn(images), np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(result.confidence, p[np.arange(6), labels], rtol=1e-4)
        difference = (np.asarray(attack(key, logits_fn, images, labels)) - images).reshape(6, -1)
        np.testing.assert_allclose(result.norm, np.linalg.norm(difference, axis=-1), rtol=1e-5)

    def test_of_logits_in_bfloat16_losses_and_confidences_are_float32(self, key, linear):
        logits_fn, *_, images, labels = linear

        def half(x):
            return logits_fn(x).astype(jnp.bfloat16)

        result = analysis.norms_and_confidence(key, lj.attacks.create("none"), half, images, labels)
        expected = jax.nn.softmax(half(images).astype(jnp.float32))[jnp.arange(6), labels]
        np.testing.assert_allclose(result.confidence, expected, rtol=1e-6)
        assert multipliers(half, images, labels, steps=2).difference.dtype == jnp.float32

    def test_rank_correlation_is_spearmans_with_ties(self):
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 9, 200), rng.normal(size=200).round(1)
        assert analysis.rank_correlation(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
        assert analysis.rank_correlation(b, -(b**3)) == pytest.approx(-1)

    def test_a_network_that_is_sure_has_ranks(self):
        """Confidences that differ in the sixth digit and beyond."""
        confidence = 1 - np.logspace(-6, -9, 50)
        assert analysis.rank_correlation(confidence, np.linspace(1, 2, 50)) == pytest.approx(1)

    def test_rounding_errors_are_no_ranks(self):
        """Norms as from an attack that ends on the surface of its ball, except for three images."""
        rng = np.random.default_rng(0)
        confidence = np.sort(rng.uniform(size=100)).astype(np.float32)
        norms = np.float32(1.3) * (1 + np.linspace(-3e-7, 3e-7, 100, dtype=np.float32))
        assert len(np.unique(norms)) > 3
        assert np.isnan(analysis.rank_correlation(confidence, norms))
        norms[:3] = 0.5, 0.0, 0.7
        ranks = np.full(100, (3 + 99) / 2)
        ranks[:3] = 1, 0, 2
        expected = np.corrcoef(np.arange(100), ranks)[0, 1]
        assert analysis.rank_correlation(confidence, norms) == pytest.approx(expected)


class TestForegroundToBackground:
    def test_of_noise_of_one_size_is_one(self):
        rng = np.random.default_rng(0)
        noise = 0.03 * rng.choice([-1.0, 1.0], size=(8, 16, 16, 3))
        ratio = analysis.foreground_to_background(noise, rng.uniform(size=(8, 16, 16)))
        np.testing.assert_allclose(ratio, 1, rtol=1e-5)

    def test_of_random_noise_is_one_on_average(self):
        rng = np.random.default_rng(0)
        foreground = np.zeros((400, 16, 16))
        foreground[:, 3:9, 4:12] = 1
        ratio = analysis.foreground_to_background(rng.normal(size=(400, 16, 16, 3)), foreground)
        assert abs(np.mean(ratio) - 1) < 3 * np.std(ratio) / 20
        assert np.std(ratio) < 0.1

    def test_of_hard_foregrounds_is_the_ratio_of_means(self):
        rng = np.random.default_rng(1)
        d, inside = rng.normal(size=(3, 6, 7, 2)), rng.uniform(size=(3, 6, 7)) < 0.3
        size = np.abs(d).sum(-1)
        expected = [s[m].mean() / s[~m].mean() for s, m in zip(size, inside, strict=True)]
        np.testing.assert_allclose(analysis.foreground_to_background(d, inside.astype(float)), expected, rtol=1e-5)

    def test_is_not_defined_without_foreground_background_or_perturbation(self):
        d, half = np.ones((4, 2, 2, 1)), np.array([[1.0, 1.0], [0.0, 0.0]])
        d[2] = 0
        d[3, 1] = 0
        ratio = analysis.foreground_to_background(d, np.stack([np.zeros((2, 2)), np.ones((2, 2)), half, half]))
        assert np.isnan(ratio).all()


class TestAttentionMap:
    def test_of_a_stage_of_a_network(self):
        network = ResNet(stages=(1, 1), width=4)
        images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
        variables = jax.jit(network.init)(jax.random.key(0), images)
        features = jax.jit(functools.partial(network.apply, features=True))(variables, images)[1][-1]
        assert features.shape == (2, 4, 4, 8)
        attention = np.asarray(analysis.attention_map(features, (4, 4)))
        energy = np.square(np.asarray(features, np.float64)).mean(-1)
        low, high = energy.min((1, 2), keepdims=True), energy.max((1, 2), keepdims=True)
        np.testing.assert_allclose(attention, (energy - low) / (high - low), rtol=1e-4, atol=1e-5)
        large = np.asarray(analysis.attention_map(features, (16, 16)))
        assert large.shape == (2, 16, 16)
        np.testing.assert_array_equal(large.min((1, 2)), 0)
        np.testing.assert_allclose(large.max((1, 2)), 1, rtol=1e-6)

    def test_a_constant_map_sees_nothing(self):
        np.testing.assert_array_equal(analysis.attention_map(jnp.ones((1, 2, 2, 3)), (4, 4)), 0)


class TestFigures:
    """What is written and marked in them; how they look is for eyes."""

    def text(self, drawn):
        """The words of a figure, and its axes."""
        from matplotlib.figure import Figure
        from matplotlib.text import Text

        draw, size = drawn
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, figures.LIGHT)
        assert figures.render(draw, size)  # nothing in it fails to be drawn
        return [item.get_text() for item in figure.findobj(Text) if item.get_visible()], figure.axes

    def test_norm_against_confidence(self):
        rng = np.random.default_rng(0)
        confidence = rng.uniform(size=2500)
        panels = {
            "ours": analysis.NormsAndConfidence(confidence, 1 + confidence),
            "ball": (confidence, np.ones(2500)),
            "other": (confidence, 3 - confidence),
        }
        words, axes = self.text(analysis_figures.norm_against_confidence(panels))
        shown = {"ours", "ball", "other", "image", "median", "probability of the label on the clean image"}
        assert shown <= set(words)
        for correlation in ("1.00", "not defined", "\N{MINUS SIGN}1.00"):
            assert f"rank correlation {correlation}" in words
        assert [axis.get_visible() for axis in axes] == [True, True, True, False]
        assert len({axis.get_ylim() for axis in axes[:3]}) == 1
        assert axes[0].get_ylim()[1] >= 3  # the highest point of any panel
        assert len(axes[0].collections[0].get_offsets()) == 834  # every third

    def test_foreground(self):
        images, half = np.full((2, 4, 4, 3), 0.5), np.zeros((2, 4, 4))
        half[:, :2] = 1
        d = np.where(half[..., None] > 0, 0.1, 0.05) * np.ones(3)
        words, axes = self.text(analysis_figures.foreground(images, half, {"l2 penalty": d, "nothing": 0 * d}))
        assert words.count("2.00") == 2
        assert words.count("not defined") == 2
        assert "l2 penalty\nperturbation ×5" in words
        np.testing.assert_allclose(axes[4].images[0].get_array(), 0.5 + 5 * d[0])

    def test_accuracy_against_bound(self):
        curves = {"ours": ([0, 1, 2], [80, 55, 30]), "theirs": ([0, 1, 2], [82, 50, 20])}
        words, (axes,) = self.text(analysis_figures.accuracy_against_bound(curves, "l2 norm"))
        assert {"ours", "theirs", "accuracy (%)", "bound of the attack (l2 norm)"} <= set(words)
        assert axes.get_ylim() == (0, 100)
        looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
        assert len(looks) == len({marker for *_, marker in looks}) == 2
