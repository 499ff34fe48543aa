"""Losses against float64 formulas, recorded values, and the edges where implementations differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagrangian_jax import losses

EXTREME = np.array([[1e4, -1e4, 0, 3], [-1e4, 1e4, 5, 0], [80, 0, -80, 1], [0, 0, 0, 0]], np.float32)


@pytest.fixture(scope="module")
def random_logits():
    rng = np.random.default_rng(0)
    return (5 * rng.normal(size=(32, 10))).astype(np.float32), rng.integers(0, 10, 32)


def log_softmax64(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def others64(logits, labels):
    masked = logits.astype(np.float64).copy()
    masked[np.arange(len(labels)), labels] = -np.inf
    return masked.max(-1)


def margin64(logits, labels):
    return others64(logits, labels) - logits.astype(np.float64)[np.arange(len(labels)), labels]


class TestFormulas:
    def test_margin(self, random_logits):
        logits, labels = random_logits
        np.testing.assert_allclose(losses.margin(logits, labels), margin64(logits, labels), rtol=1e-6, atol=1e-5)
        clamped = losses.margin(logits, labels, kappa=1.0)
        np.testing.assert_allclose(clamped, np.minimum(margin64(logits, labels), 1.0), rtol=1e-6, atol=1e-5)

    def test_cross_entropy(self, random_logits):
        logits, labels = random_logits
        expected = -log_softmax64(logits)[np.arange(32), labels]
        np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-5, atol=1e-6)

    def test_cross_entropy_of_a_confident_network_keeps_its_digits(self):
        logits = np.array([[1030.0, 1020.0], [-700.0, -712.0]], np.float32)
        expected = -log_softmax64(logits)[:, 0]  # 4.5e-5 and 6.1e-6
        np.testing.assert_allclose(losses.cross_entropy(logits, np.array([0, 0])), expected, rtol=0.05)

    def test_kl_divergence(self, random_logits):
        logits, _ = random_logits
        log_p, log_q = log_softmax64(logits), log_softmax64(logits[::-1])
        expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        np.testing.assert_allclose(losses.kl_divergence(logits, logits[::-1]), expected, rtol=1e-5)
        np.testing.assert_allclose(losses.kl_divergence(logits, logits + 3), 0, atol=1e-5)

    def test_kl_divergence_of_masked_classes(self):
        """A class that neither distribution has adds nothing; one that only q lacks makes it infinite."""
        p, q, masked = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, -1.0]]), jnp.full((1, 1), -jnp.inf)

        def value(p, q):
            return losses.kl_divergence(jnp.hstack([p, masked]), jnp.hstack([q, masked]))[0]

        def plain(p, q):
            return losses.kl_divergence(p, q)[0]

        np.testing.assert_allclose(value(p, q), plain(p, q), rtol=1e-6)
        for got, wanted in zip(jax.grad(value, (0, 1))(p, q), jax.grad(plain, (0, 1))(p, q), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
        assert losses.kl_divergence(jnp.hstack([p, p[:, :1]]), jnp.hstack([q, masked])) == jnp.inf

    def test_dlr(self, random_logits):
        logits, labels = random_logits
        ordered = np.sort(logits.astype(np.float64), -1)
        expected = margin64(logits, labels) / (ordered[:, -1] - ordered[:, -3])
        np.testing.assert_allclose(losses.dlr(logits, labels), expected, rtol=1e-4)

    def test_dlr_ignores_the_scale_of_the_logits(self, random_logits):
        logits, labels = random_logits
        np.testing.assert_allclose(losses.dlr(1000 * logits, labels), losses.dlr(logits, labels), rtol=1e-4)

    def test_targeted_dlr(self, random_logits):
        logits, labels = random_logits
        targets = (labels + 3) % 10
        wide, rows = logits.astype(np.float64), np.arange(32)
        ordered = np.sort(wide, -1)
        expected = wide[rows, targets] - wide[rows, labels]
        expected /= ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2
        np.testing.assert_allclose(losses.targeted_dlr(logits, labels, targets), expected, rtol=1e-4)

    def test_boosted_cross_entropy(self, random_logits):
        logits, labels = random_logits
        log_p = log_softmax64(logits)
        other = np.exp(others64(log_p, labels))
        expected = -log_p[np.arange(32), labels] - np.log(1.0001 - other + 1e-12)
        np.testing.assert_allclose(losses.boosted_cross_entropy(logits, labels), expected, rtol=1e-3)

    @pytest.mark.parametrize("label", [0, 9])
    def test_labels_at_the_ends_of_their_range(self, random_logits, label):
        logits, labels = random_logits[0], np.full(32, label)
        np.testing.assert_allclose(losses.margin(logits, labels), margin64(logits, labels), rtol=1e-6, atol=1e-5)


class TestEdges:
    @pytest.mark.parametrize("label", [0, 1, 2])
    def test_margin_without_rivals(self, label):
        """The other classes masked: no class is nearer, whichever comes first."""
        logits = jnp.full((1, 3), -jnp.inf).at[0, label].set(1.0)
        assert losses.margin(logits, jnp.array([label])) == -np.inf

    def test_a_tie_sends_the_whole_gradient_to_one_class(self):
        gradient = jax.grad(lambda z: losses.margin(z, jnp.array([0])).sum())(jnp.array([[0.0, 2.0, 2.0, 2.0]]))
        np.testing.assert_array_equal(gradient, [[-1, 1, 0, 0]])

    def test_a_tie_with_the_label_never_counts_it_twice(self):
        assert losses.margin(jnp.array([[1.0, 1.0, 0.0]]), jnp.array([1]))[0] == 0
        gradient = jax.grad(lambda z: losses.margin(z, jnp.array([1])).sum())(jnp.array([[1.0, 1.0, 0.0]]))
        np.testing.assert_array_equal(gradient, [[1, -1, 0]])

    @pytest.mark.parametrize(("gap", "slope"), [(0.5, 1.0), (1.0, 1.0), (1.5, 0.0)])
    def test_gradient_passes_up_to_the_clamp_and_at_it(self, gap, slope):
        gradient = jax.grad(lambda z: losses.margin(z, jnp.array([0]), kappa=1.0).sum())(jnp.array([[0.0, gap]]))
        np.testing.assert_array_equal(gradient, [[-slope, slope]])

    def test_margin_shows_nan(self):
        assert jnp.isnan(losses.margin(jnp.array([[jnp.nan, 1.0]]), jnp.array([0]), kappa=1.0))[0]

    @pytest.mark.parametrize(
        "loss",
        [losses.margin, losses.cross_entropy, losses.dlr, losses.boosted_cross_entropy, lambda z, y: z[:, 0] * 0],
    )
    @pytest.mark.parametrize("label", [0, 3])
    def test_saturated_and_equal_logits_have_finite_values_and_gradients(self, loss, label):
        labels = jnp.full(4, label)
        assert np.isfinite(loss(jnp.asarray(EXTREME), labels)).all()
        assert np.isfinite(jax.grad(lambda z: loss(z, labels).sum())(jnp.asarray(EXTREME))).all()

    def test_saturated_divergence_and_targeted_ratio_are_finite(self):
        def total(p, q):
            targets = jnp.array([1, 2, 3, 0])
            return (losses.kl_divergence(p, q) + losses.targeted_dlr(p, jnp.array([0, 1, 2, 3]), targets)).sum()

        gradients = jax.grad(total, argnums=(0, 1))(jnp.asarray(EXTREME), jnp.asarray(EXTREME[::-1].copy()))
        assert all(np.isfinite(g).all() for g in gradients)

    def test_a_saturated_cross_entropy_has_no_gradient_but_the_margin_has(self):
        logits, labels = jnp.array([[200.0, 0.0, 0.0]]), jnp.array([0])
        assert not jax.grad(lambda z: losses.cross_entropy(z, labels).sum())(logits).any()
        assert jax.grad(lambda z: losses.margin(z, labels).sum())(logits).any()


@pytest.fixture
def components(original):
    return lambda name: np.load(original / "components" / f"{name}.npz")


class TestRecorded:
    @pytest.mark.parametrize(("kappa", "name"), [(1.0, "1"), (np.inf, "_inf")])
    def test_margin(self, components, kappa, name):
        recorded = components("margin_loss")
        logits, labels = jnp.asarray(recorded["logits"]), recorded["labels"]
        np.testing.assert_allclose(
            losses.margin(logits, labels, kappa), recorded[f"loss_kappa{name}"], rtol=1e-6, atol=1e-6
        )
        gradient = jax.grad(lambda z: losses.margin(z, labels, kappa).sum())(logits)
        # The originals take either of two equal logits; elsewhere gradients are -1, 0 or 1 exactly.
        top = np.sort(np.where(np.eye(10, dtype=bool)[labels], -np.inf, recorded["logits"]), axis=-1)
        tied = top[:, -1] == top[:, -2]
        np.testing.assert_array_equal(gradient[~tied], recorded[f"grad_logits_kappa{name}"][~tied])
        np.testing.assert_array_equal(np.sort(gradient), np.sort(recorded[f"grad_logits_kappa{name}"]))

    @pytest.mark.parametrize(("kappa", "name"), [(1.0, "1"), (np.inf, "_inf")])
    def test_margin_of_network(self, components, network_a, kappa, name):
        recorded = components("margin_loss")
        images, labels = jnp.asarray(recorded["model_images"]), recorded["model_labels"]

        def total(images):
            values = losses.margin(network_a(images), labels, kappa)
            return values.sum(), values

        gradient, values = jax.jit(jax.grad(total, has_aux=True))(images)
        np.testing.assert_allclose(values, recorded[f"model_loss_kappa{name}"], atol=1e-5)
        np.testing.assert_allclose(gradient, recorded[f"model_input_grad_kappa{name}"], atol=1e-5)

    def test_cross_entropy_of_network(self, components, network_a):
        recorded = components("margin_loss")
        images, labels = jnp.asarray(recorded["model_images"]), recorded["model_labels"]

        def total(images):
            values = losses.cross_entropy(network_a(images), labels)
            return values.sum(), values

        gradient, values = jax.jit(jax.grad(total, has_aux=True))(images)
        np.testing.assert_allclose(values, recorded["model_ce_loss"], atol=1e-5)
        np.testing.assert_allclose(gradient, recorded["model_ce_input_grad"], atol=1e-5)

    def test_dlr(self, components):
        recorded = components("apgd")
        logits, labels = jnp.asarray(recorded["logits"]), recorded["labels"]
        np.testing.assert_allclose(losses.dlr(logits, labels), recorded["dlr"], rtol=1e-5, atol=1e-6)
        gradient = jax.grad(lambda z: losses.dlr(z, labels).sum())(logits)
        np.testing.assert_allclose(gradient, recorded["dlr_grad"], rtol=1e-4, atol=1e-6)

    def test_targeted_dlr(self, components):
        recorded = components("apgd")
        logits, labels, targets = jnp.asarray(recorded["logits"]), recorded["labels"], recorded["targets"]
        values = losses.targeted_dlr(logits, labels, targets)
        np.testing.assert_allclose(values, recorded["targeted_dlr"], rtol=1e-5, atol=1e-6)
        gradient = jax.grad(lambda z: losses.targeted_dlr(z, labels, targets).sum())(logits)
        np.testing.assert_allclose(gradient, recorded["targeted_dlr_grad"], rtol=1e-4, atol=1e-6)

    def test_trades(self, components):
        recorded = components("losses")
        labels, beta = recorded["labels"], recorded["trades_beta"]

        def trades(clean, adversarial):
            natural = losses.cross_entropy(clean, labels).mean()
            robust = losses.kl_divergence(clean, adversarial).mean()
            return natural + beta * robust, (natural, robust)

        logits = jnp.asarray(recorded["nat_logits"]), jnp.asarray(recorded["adv_logits"])
        (total, parts), gradients = jax.value_and_grad(trades, argnums=(0, 1), has_aux=True)(*logits)
        np.testing.assert_allclose(total, recorded["trades_total"], rtol=1e-5)
        np.testing.assert_allclose(parts, [recorded["trades_natural"], recorded["trades_robust"]], rtol=1e-5)
        np.testing.assert_allclose(gradients[0], recorded["trades_grad_natural_logits"], atol=1e-6)
        np.testing.assert_allclose(gradients[1], recorded["trades_grad_adv_logits"], atol=1e-6)

    def test_mart(self, components):
        recorded = components("losses")
        labels, beta = recorded["labels"], recorded["mart_beta"]

        def mart(clean, adversarial):
            p_label = losses.label_logit(jax.nn.softmax(clean), labels)
            regulariser = losses.kl_divergence(clean, adversarial) * (1.0000001 - p_label)
            return (losses.boosted_cross_entropy(adversarial, labels) + beta * regulariser).mean()

        logits = jnp.asarray(recorded["nat_logits"]), jnp.asarray(recorded["adv_logits"])
        total, gradients = jax.value_and_grad(mart, argnums=(0, 1))(*logits)
        np.testing.assert_allclose(total, recorded["mart_total"], rtol=1e-5)
        np.testing.assert_allclose(gradients[0], recorded["mart_grad_natural_logits"], atol=1e-6)
        np.testing.assert_allclose(gradients[1], recorded["mart_grad_adv_logits"], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_values_are_float32_whatever_the_logits_are(random_logits, dtype):
    logits, labels = jnp.asarray(random_logits[0], dtype), random_logits[1]
    full = logits.astype(jnp.float32)
    for name in ("margin", "soft_margin", "cross_entropy", "dlr", "boosted_cross_entropy"):
        loss = getattr(losses, name)
        assert loss(logits, labels).dtype == jnp.float32, name
        np.testing.assert_array_equal(loss(logits, labels), loss(full, labels), err_msg=name)
    targets = (labels + 1) % 10
    np.testing.assert_array_equal(
        losses.targeted_dlr(logits, labels, targets), losses.targeted_dlr(full, labels, targets)
    )
    np.testing.assert_array_equal(losses.kl_divergence(logits, logits[::-1]), losses.kl_divergence(full, full[::-1]))
    with jax.enable_x64(True):
        assert losses.cross_entropy(jnp.zeros((2, 3)) + jnp.arange(3.0)[None], np.array([0, 1])).dtype == jnp.float64
