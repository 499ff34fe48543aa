"""Training methods: what each crafts of a linear network, where the answer is known, and what it minimises."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagrangian_jax import methods
from lagrangian_jax.attacks.arrays import fold_in, l2_norm, linf_norm
from lagrangian_jax.losses import cross_entropy, soft_margin
from lagrangian_jax.methods.iaat import next_budgets
from lagrangian_jax.methods.method import random_factors
from lagrangian_jax.methods.mma import mma_loss
from lagrangian_jax.methods.threshold import confidence_factor
from lagrangian_jax.methods.trades import mart_loss, trades_loss
from lagrangian_jax.models.forward import bind
from lagrangian_jax.models.layers import BatchNorm


class Linear(nn.Module):
    """One matrix product, after batch normalisation if ``norm``."""

    classes: int = 2
    norm: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False, features=False):
        x = BatchNorm(axis_name=self.axis_name, name="norm")(images, train) if self.norm else images
        logits = nn.Dense(self.classes, name="linear")(x.reshape(len(x), -1))
        return (logits, [x]) if features else logits


# ---- Losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "loss"), [("trades", trades_loss), ("mart", mart_loss)])
def test_loss_matches_the_original(original, name, loss):
    recorded = np.load(original / "components" / "losses.npz")
    clean, adversarial, labels = (jnp.asarray(recorded[k]) for k in ("nat_logits", "adv_logits", "labels"))
    beta = float(recorded[f"{name}_beta"])

    def mean(clean, adversarial):
        return jnp.mean(loss(clean, adversarial, labels, beta))

    value, gradients = jax.value_and_grad(mean, (0, 1))(clean, adversarial)
    np.testing.assert_allclose(value, recorded[f"{name}_total"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], recorded[f"{name}_grad_natural_logits"], atol=1e-6)
    np.testing.assert_allclose(gradients[1], recorded[f"{name}_grad_adv_logits"], atol=1e-6)


def _softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _reference(name, clean, crafted, labels, smoothing=0.0):
    """The loss of each example in float64, from its definition; for MMA, every second example is not attacked."""
    rows, classes = np.arange(len(labels)), clean.shape[-1]
    p, q = _softmax(clean), _softmax(crafted)
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    kl = (p * np.log(p / q)).sum(-1)
    on_clean, on_crafted = -(target * np.log(p)).sum(-1), -(target * np.log(q)).sum(-1)
    if name == "trades":
        return on_clean + 6.0 * kl
    if name == "mart":
        other = np.where(np.eye(classes, dtype=bool)[labels], 0, q).max(-1)
        return on_crafted - np.log(1.0001 - other + 1e-12) + 5.0 * kl * (1.0000001 - p[rows, labels])
    if name == "mma":
        return on_clean / 3 + np.where(rows % 2, 0, 2 / 3 * on_crafted)
    return on_crafted


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["trades", "mart", "msd", "mma", "lagrangian"])
def test_gradient_of_the_loss_in_float64(name, smoothing):
    """From given images: the gradient by the weights against differences of the float64 loss."""
    rng = np.random.default_rng(3)
    x, crafted, labels = rng.random((6, 2, 2, 3)), rng.random((6, 2, 2, 3)), rng.integers(0, 4, 6)
    weights = rng.normal(size=(12, 4))

    def reference(weights):
        clean, adversarial = (images.reshape(6, -1) @ weights for images in (x, crafted))
        return _reference(name, clean, adversarial, labels, smoothing).mean()

    step = 1e-6 * np.eye(48).reshape(48, 12, 4)
    expected = np.array([reference(weights + h) - reference(weights - h) for h in step]).reshape(12, 4) / 2e-6

    batch = methods.Batch(jnp.float32(x), jnp.asarray(labels), jnp.arange(6), smoothing)
    distances = jnp.where(jnp.arange(6) % 2, 9.0, 1.0)  # of every second example beyond MMA's largest
    given = methods.Crafted(jnp.float32(crafted), {}, distances)

    def mean(kernel):
        params = {"linear": {"kernel": kernel, "bias": jnp.zeros(4)}}
        outcome = methods.create(name).loss(bind(Linear(4), params, "train"), {}, batch, given)
        return outcome.losses.mean()

    value, gradient = jax.value_and_grad(mean)(jnp.float32(weights))
    np.testing.assert_allclose(value, reference(weights), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-6)


def test_mma_loss_by_hand():
    logits, labels = jnp.zeros((2, 4)), jnp.array([0, 1])
    np.testing.assert_allclose(
        mma_loss(logits, logits, labels, jnp.array([True, False]), 0.25), np.log(4) * np.array([1, 0.25])
    )


# ---- What is crafted, on two classes that a plane divides ----------------------------------------


class Situation:
    """Eight images about as far from the plane as the attacks reach, the last two on the wrong side of it."""

    def __init__(self):
        rng = np.random.default_rng(0)
        w = rng.normal(size=(16, 16, 3)).astype(np.float32)
        self.images = jnp.asarray(rng.uniform(0.4, 0.6, (8, 16, 16, 3)), jnp.float32)
        self.labels = jnp.arange(8) % 2
        # Margins in units of the distance: the plane lies at 0.
        self.distances = np.array([0.2, 0.3, 0.45, 0.6, 0.8, 2.5, -0.2, -0.3], np.float32)
        self.unit = w / np.linalg.norm(w)
        side = np.where(self.labels == 0, 1, -1) * self.distances
        offset = side - np.asarray(jnp.einsum("bhwc,hwc->b", self.images, self.unit))
        self.images += jnp.asarray(offset[:, None, None, None] * self.unit)
        self.scale = 3.0  # logits per unit of distance
        kernel = np.stack([self.unit.ravel(), -self.unit.ravel()], -1) * self.scale
        self.params = {"linear": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(2)}}
        self.batch = methods.Batch(self.images, self.labels, jnp.arange(8))
        self.network = methods.Network(Linear(), self.params, {})
        #: the direction that raises the loss of each example
        self.towards = -np.where(self.labels == 0, 1, -1)[:, None, None, None] * self.unit
        self.correct = self.distances > 0


SITUATION = Situation()
KEYS = jax.random.split(jax.random.key(0), 8)


@functools.cache
def _crafted(name, epoch=0.0, memory=None, **values):
    method = methods.create(name, **values)
    rows = method.memory(8) if memory is None else jnp.asarray(memory)

    @jax.jit  # everything is an argument, since XLA would spend time folding constants
    def craft(keys, params, batch, rows, epoch):
        return method.craft(keys, methods.Network(Linear(), params, {}), methods.Batch(*batch), rows, epoch)

    return craft(KEYS, SITUATION.params, SITUATION.batch[:3], rows, epoch)


def _moved(name, **values):
    return np.asarray(_crafted(name, **values).images - SITUATION.images)


def _assert_moves(moved, sizes, tolerance, towards=SITUATION.towards):
    """Asserts that each example moved by its size, straight towards the plane."""
    norms = np.asarray(l2_norm(jnp.asarray(moved)))
    np.testing.assert_allclose(norms, sizes, atol=tolerance)
    assert np.all((moved * towards).sum((1, 2, 3)) >= 0.97 * norms - 1e-6)  # the random start leaves a little


def test_standard_trains_on_clean_images():
    assert not _moved("standard").any()


def test_pgd_l2_goes_to_its_bound_whatever_the_label_says_already():
    _assert_moves(_moved("pgd_l2", bound=0.4, step_size=0.1, statistics="eval"), 0.4, 1e-5)


@pytest.mark.parametrize("name", ["pgd_linf", "mart"])
def test_sign_attacks_go_to_the_corner(name):
    moved = _moved(name, bound=0.02, steps=10, step_size=0.005, statistics="eval")
    np.testing.assert_allclose(moved, 0.02 * np.sign(SITUATION.towards), atol=1e-6)


def test_trades_moves_away_from_the_prediction_on_either_side():
    """Along the plane's normal, in the sense in which the random start happens to lie."""
    moved = _moved("trades", bound=0.02, steps=10, step_size=0.005)
    sense = np.sign((moved * SITUATION.unit).sum((1, 2, 3)))
    np.testing.assert_allclose(moved, 0.02 * sense[:, None, None, None] * np.sign(SITUATION.unit), atol=1e-6)


def test_lagrangian_moves_at_the_plane_and_not_far_beyond_it():
    moved = _moved("lagrangian", step_size=0.05, init_std=0.0, multiplier=12.0, statistics="eval")
    norms = np.linalg.norm(moved.reshape(8, -1), axis=-1)
    assert np.all((moved * SITUATION.towards).sum((1, 2, 3))[:6] > 0.99 * norms[:6])
    logits = Linear().apply({"params": SITUATION.params}, SITUATION.images + moved)
    assert np.all(soft_margin(logits, SITUATION.labels)[:4] > 0)
    assert norms[7] < 0.5 * norms[5]  # beyond kappa only the multiplier's term is left


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lagrangian", dict(step_size=0.02, init_std=0.0, multiplier=8.0, statistics="eval")),
        ("pat", dict(distance="l2", bound=0.1, init_std=1e-4, multiplier=8.0)),
    ],
)
def test_multipliers_of_a_spread_give_perturbations_of_many_sizes(name, options):
    same = jax.tree.map(lambda x: x[jnp.zeros(8, int)], SITUATION.batch[:3])

    def norms(spread):
        method = methods.create(name, multiplier_spread=spread, **options)
        craft = jax.jit(lambda batch: method.craft(KEYS, SITUATION.network, methods.Batch(*batch), (), 0.0).images)
        return np.asarray(l2_norm(craft(same) - same[0]))

    np.testing.assert_allclose(norms(1.0), norms(1.0)[0], rtol=2e-3)  # pat starts at random
    factors, sizes = np.asarray(random_factors(KEYS, 8.0)), norms(8.0)
    assert np.ptp(sizes) > 0.1 * sizes.max()
    assert np.corrcoef(np.log(factors), sizes)[0, 1] < -0.9  # the larger the multiplier, the smaller


@pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2", "trades", "mart", "threshold_linf", "threshold_l2"])
def test_bounds_of_a_spread_are_those_of_the_factors(name):
    """After ten steps at the bound, after one as far as a step, each times the example's factor."""
    l2 = name.endswith("l2")
    bound = (0.4 if l2 else 0.02) * np.asarray(random_factors(KEYS, 3.0))
    if name.startswith("threshold"):
        bound *= np.asarray(confidence_factor(_confidence()))
    for steps in (10, 1):
        start = {} if "init_std" in methods.parameters(name) else dict(random_start=steps > 1)
        options = dict(bound=0.4 if l2 else 0.02, steps=steps, step_size=0.1 if l2 else 0.005, statistics="eval")
        moved = _moved(name, bound_spread=3.0, **options, **start)
        sizes = np.asarray((l2_norm if l2 else linf_norm)(moved))
        np.testing.assert_allclose(
            sizes, bound if steps > 1 else bound / 4, rtol=1e-4, atol=0 if start or steps > 1 else 0.004
        )


def test_random_factors_are_log_uniform():
    factors = np.asarray(random_factors(jax.random.split(jax.random.key(1), 4000), 4.0))
    assert factors.min() >= 0.25
    assert factors.max() <= 4
    np.testing.assert_allclose(np.log(factors).mean(), 0, atol=0.05)
    np.testing.assert_allclose(np.log(factors).std(), np.log(4) / np.sqrt(3), rtol=0.05)  # of a uniform logarithm


def _confidence():
    logits = Linear().apply({"params": SITUATION.params}, SITUATION.images)
    return jnp.take_along_axis(jax.nn.softmax(logits), SITUATION.labels[:, None], -1)[:, 0]


def test_thresholds_shrink_the_ball_by_the_confidence():
    factors = np.asarray(confidence_factor(_confidence()))
    assert len(set(factors)) > 1
    moved = _moved("threshold_l2", bound=0.4, step_size=0.1, statistics="eval")
    _assert_moves(moved, 0.4 * factors, 1e-5)
    moved = _moved("threshold_l2", bound=0.4, step_size=0.1, steps=1, random_start=False, statistics="eval")
    _assert_moves(moved, 0.1 * factors, 1e-5)
    moved = _moved("threshold_linf", bound=0.02, step_size=0.005, statistics="eval")
    expected = 0.02 * factors[:, None, None, None] * np.sign(SITUATION.towards)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_ddn_goes_just_over_the_plane_or_to_its_longest():
    sizes = np.where(SITUATION.correct, np.minimum(SITUATION.distances, 0.5), 0)
    _assert_moves(_moved("ddn", max_norm=0.5, levels=None), sizes, 0.03)
    assert np.all(_moved("ddn", max_norm=None, levels=None)[6:] == 0)  # misclassified: as they are


def test_carlini_wagner_goes_just_over_the_plane():
    sizes = np.where(SITUATION.correct, SITUATION.distances, 0)
    _assert_moves(_moved("carlini_wagner", steps=80, search_steps=6), sizes, 0.1)


def test_msd_stays_in_one_of_its_balls_and_uses_the_best():
    moved = _moved("msd", bound_l2=0.3, statistics="eval")
    norms = l2_norm(jnp.asarray(moved)), linf_norm(jnp.asarray(moved)), np.abs(moved).sum((1, 2, 3))
    inside = (norms[0] <= 0.3 + 1e-5) | (norms[1] <= 0.03 + 1e-6) | (norms[2] <= 12 + 1e-3)
    assert np.all(inside)
    gain = (moved * SITUATION.towards).sum((1, 2, 3))
    # What each ball alone gains: its dual norm of the normal.
    alone = 0.3, 0.03 * np.abs(SITUATION.unit).sum(), 12 * np.abs(SITUATION.unit).max()
    assert np.all(gain > 0.85 * max(alone[:2]))


def test_pat_attacks_what_is_classified_correctly():
    """With the l2 distance and a multiplier that outweighs the logits, Fast-LPA settles at its bound."""
    moved = _moved("pat", distance="l2", bound=0.5, init_std=1e-4, multiplier=100.0)
    assert not moved[6:].any()
    _assert_moves(moved[:6], 0.5, 0.1, towards=SITUATION.towards[:6])


def test_pat_by_its_own_features():
    moved = _moved("pat", distance="self_lpips")
    assert not moved[6:].any()
    assert np.all((moved * SITUATION.towards).sum((1, 2, 3))[:6] > 0)


def test_jpeg_gains_more_with_a_larger_bound_and_scales_it():
    def gain(**values):
        return (_moved("jpeg", **values) * SITUATION.towards).sum((1, 2, 3))

    small, large, scaled = gain(bound=0.05), gain(bound=0.4), gain(bound=0.4, scaled=True)
    assert np.all(large > small + 0.05)
    assert np.all(scaled < large + 1e-4)
    assert np.ptp(large - scaled) > 0.02  # by another factor for each example


def test_mma_measures_the_distance_and_trains_at_the_plane():
    crafted = _crafted("mma", largest=1.0, smallest=0.1, statistics="eval", search_statistics="eval")
    expected = np.where(SITUATION.correct, np.minimum(SITUATION.distances, 1.05), 0)
    resolution = 1.05 / 2**10
    assert np.all(crafted.memory >= expected - resolution)
    assert np.all(crafted.memory <= expected / 0.97 + resolution)  # a little askew, it is a little further
    _assert_moves(np.asarray(crafted.images - SITUATION.images), crafted.memory, 1e-5)
    outcome = methods.create("mma", largest=1.0).loss(
        bind(Linear(), SITUATION.params, "eval"), {}, SITUATION.batch, crafted
    )
    clean, logits = (Linear().apply({"params": SITUATION.params}, x) for x in (SITUATION.images, crafted.images))
    parts = np.asarray(cross_entropy(clean, SITUATION.labels)), np.asarray(cross_entropy(logits, SITUATION.labels))
    expected = parts[0] / 3 + 2 / 3 * np.where(np.arange(8) == 5, 0, parts[1])  # the sixth is far beyond d_max
    np.testing.assert_allclose(outcome.losses, expected, rtol=1e-5)
    np.testing.assert_allclose(parts[1][:5], np.log(2), atol=0.03)  # on the plane


def test_iaat_warms_up_with_one_budget():
    crafted = _crafted("iaat", epoch=0.0, bound=0.02, statistics="eval")
    np.testing.assert_allclose(crafted.memory, np.where(SITUATION.correct, 0.02, 0), atol=1e-7)
    expected = np.where(SITUATION.correct, 0.02, 0)[:, None, None, None] * np.sign(SITUATION.towards)
    np.testing.assert_allclose(crafted.images - SITUATION.images, expected, atol=1e-6)


def test_iaat_s_steps_reach_across_the_budget_however_few_they_are():
    """Together they are twice the budget: a single one reaches the far side from any start."""
    moved = _moved("iaat", bound=0.02, steps=1, step_size=1e-6, statistics="eval")
    corners = np.where(SITUATION.correct, 0.02, 0)[:, None, None, None] * np.sign(SITUATION.towards)
    np.testing.assert_allclose(moved, corners, atol=1e-6)


def test_iaat_moves_each_budget_towards_what_holds():
    reach = SITUATION.distances / np.abs(SITUATION.unit).sum()  # the linf distance to the plane
    gamma = 0.004
    # Two that could rise, two that hold, one that falls, one that falls to zero; two misclassified.
    steps = np.array([-2, -1.5, -0.5, -0.5, 0.5, 0.0, 0.5, 0.5]) * gamma
    memory = np.maximum(reach + steps, 0).astype(np.float32)
    memory[5] = 0.0
    options = dict(increment=gamma, rate=0.5, warmup=3.0, statistics="eval", steps=20, step_size=0.01)
    crafted = _crafted("iaat", epoch=3.0, memory=tuple(memory.tolist()), **options)
    change = np.array([gamma, gamma, 0, 0, -gamma, gamma, 0, 0])
    target = np.where(SITUATION.correct, memory + change, 0)
    np.testing.assert_allclose(crafted.memory, 0.5 * target + 0.5 * memory, atol=1e-6)
    np.testing.assert_allclose(linf_norm(crafted.images - SITUATION.images), crafted.memory, atol=1e-6)


def test_iaat_budgets_never_fall_below_zero():
    nothing = jnp.zeros(1, bool)
    assert next_budgets(jnp.array([0.01]), ~nothing, nothing, nothing, 0.1, 1.0) == 0


def test_msd_follows_the_steps_of_a_float64_reference():
    """Three steps on a linear softmax network, with the numbers of coordinates that the keys give."""
    rng = np.random.default_rng(5)
    images, labels = rng.uniform(0.1, 0.9, (4, 4, 4, 3)), rng.integers(0, 3, 4)
    weights = rng.normal(size=(48, 3))
    options = dict(steps=3, bound_linf=0.03, bound_l2=0.3, bound_l1=4.0, step_size_linf=0.02, step_size_l2=0.2)
    keys = jax.random.split(jax.random.key(7), 4)

    def losses(x):
        return -np.log(_softmax(x.reshape(4, -1) @ weights)[np.arange(4), labels])

    def l1_projection(d):
        flat = np.abs(d).ravel()
        if flat.sum() <= 4.0:
            return d
        low, high = 0.0, flat.max()
        for _ in range(100):  # the threshold by bisection, not by sorting
            middle = (low + high) / 2
            low, high = (middle, high) if np.maximum(flat - middle, 0).sum() > 4.0 else (low, middle)
        return np.sign(d) * np.maximum(np.abs(d) - low, 0)

    d = best = np.zeros_like(images)
    best_losses = np.zeros(4)
    for i in range(3):
        p = _softmax((images + d).reshape(4, -1) @ weights)
        gradient = ((p - np.eye(3)[labels]) @ weights.T).reshape(d.shape)
        ks = [int(jax.random.randint(key, (), 5, 21)) for key in fold_in(keys, i)]
        l1, l2 = np.empty_like(d), np.empty_like(d)
        for n, k in enumerate(ks):
            size, at = 0.05 * 20 / k, images[n] + d[n]
            stuck = ((gradient[n] < 0) & (at <= size)) | ((gradient[n] > 0) & (at >= 1 - size)) | (at <= 0) | (at >= 1)
            free = np.where(stuck, 0, np.abs(gradient[n]))
            chosen = (free >= np.sort(free, axis=None)[-k]) & (free > 0)
            l1[n] = l1_projection(d[n] + size * np.sign(gradient[n]) * chosen)
            step = d[n] + 0.2 * gradient[n] / np.linalg.norm(gradient[n])
            l2[n] = step * min(1, 0.3 / np.linalg.norm(step))
        linf = np.clip(d + 0.02 * np.sign(gradient), -0.03, 0.03)
        candidates = [np.clip(images + c, 0, 1) - images for c in (l1, l2, linf)]
        values = np.stack([losses(images + c) for c in candidates])
        winner = values.argmax(0)
        d = np.stack(candidates)[winner, np.arange(4)]
        better = values.max(0) > best_losses
        best, best_losses = np.where(better[:, None, None, None], d, best), np.maximum(values.max(0), best_losses)

    params = {"linear": {"kernel": jnp.float32(weights), "bias": jnp.zeros(3)}}
    batch = methods.Batch(jnp.float32(images), jnp.asarray(labels), jnp.arange(4))
    crafted = methods.create("msd", **options).craft(keys, methods.Network(Linear(3), params, {}), batch, (), 0.0)
    np.testing.assert_allclose(crafted.images - batch.images, best, atol=2e-5)


# ---- What they share ---------------------------------------------------------------------------

UPDATES = {  # of the running averages in a step, with attacks of two steps where they update them
    "lagrangian": 2 + 1,
    "pgd_linf": 2 + 1,
    "pgd_l2": 2 + 1,
    "trades": 3,  # evaluation mode in the attack; clean, adversarial, clean outside
    "mart": 2,
    "msd": 2 * 4 + 1,
    "mma": 1 + (1 + 2) + 1,  # clean, the bisection's first and two more, the outer one
    "iaat": 1 + 2 + 1,  # in the warm-up
    "threshold_linf": 1 + 2 + 1,
    "threshold_l2": 1 + 2 + 1,
}
STATELESS = ("standard", "ddn", "pat", "jpeg", "carlini_wagner")  # evaluation mode in the attack, one pass outside
assert {*UPDATES, *STATELESS} == set(methods.names())


def _updates(name, epoch, **parameters):
    """Counts the updates of the running averages in a step: each keeps 0.9 of the old average, whose share is left."""
    network = Linear(norm=True)
    method = methods.create(name, steps=2, **({"search_steps": 2} if name == "mma" else {}), **parameters)

    @jax.jit
    def step(keys, params, batch_stats, batch, rows, epoch):
        batch = methods.Batch(*batch)
        crafted = method.craft(keys, methods.Network(network, params, batch_stats), batch, rows, epoch)
        return method.loss(bind(network, params, "train"), crafted.batch_stats, batch, crafted)

    marked = {"norm": {"mean": jnp.full(3, 1e6), "var": jnp.ones(3)}}
    params = SITUATION.params | {"norm": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
    outcome = step(KEYS, params, marked, SITUATION.batch[:3], method.memory(8), epoch)
    assert outcome.losses.shape == (8,)
    assert jnp.isfinite(outcome.losses).all()
    return round(np.log(float(outcome.batch_stats["norm"]["mean"][0]) / 1e6) / np.log(0.9))


@pytest.mark.parametrize("name", UPDATES)
def test_batch_statistics_are_updated_as_often_as_the_original_does(name):
    assert _updates(name, 0.0) == UPDATES[name]


@pytest.mark.parametrize("statistics", ["batch", "eval"])
def test_mma_sees_the_clean_images_in_any_mode_of_its_search(statistics):
    assert _updates("mma", 0.0, search_statistics=statistics) == 2  # clean and crafted


def test_iaat_after_its_warm_up_updates_for_three_attacks_and_two_judgements():
    assert _updates("iaat", 99.0) == 1 + 2 * 2 + 2 + 2 + 1


@pytest.mark.parametrize("name", STATELESS)
def test_attacks_in_evaluation_mode_hand_the_statistics_on(name):
    method = methods.create(name, **({"distance": "l2"} if name == "pat" else {}))

    def craft(keys, params, batch_stats, batch):
        network = methods.Network(Linear(norm=True), params, batch_stats)
        crafted = method.craft(keys, network, methods.Batch(*batch), (), 0.0)
        assert crafted.batch_stats is batch_stats
        return crafted.images

    params = SITUATION.params | {"norm": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
    statistics = {"norm": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    assert jax.eval_shape(craft, KEYS, params, statistics, SITUATION.batch[:3]).shape == SITUATION.images.shape


def test_unknown_names_and_values():
    with pytest.raises(ValueError, match="unknown method 'tradse'; did you mean 'trades'"):
        methods.create("tradse")
    with pytest.raises(ValueError, match="unknown parameter of method 'trades': 'bta'; did you mean 'beta'"):
        methods.create("trades", bta=1.0)
    with pytest.raises(ValueError, match=r"unknown distance 'lpips'"):
        methods.create("pat", distance="lpips")
    with pytest.raises(ValueError, match="method 'ddn': statistics must be 'eval' or 'batch'; got 'train'"):
        methods.create("ddn", statistics="train")
    with pytest.raises(ValueError, match=r"method 'mma': search_statistics must be 'train' or .*; got 'evl'"):
        methods.create("mma", search_statistics="evl")
    with pytest.raises(ValueError, match=r"method 'pgd_l2': bound must be a number, 0 or larger; got -1\.0"):
        methods.create("pgd_l2", bound=-1.0)
    with pytest.raises(ValueError, match="method 'trades': bound must be a number from 0 to 1, as 8/255; got 8"):
        methods.create("trades", bound=8)
    with pytest.raises(ValueError, match="method 'pgd_l2': step_size must be a positive number; got None"):
        methods.create("pgd_l2", step_size=None)  # has no default of the attack to fall back on
    methods.create("jpeg", step_size=None)  # has one


BAD = {  # what a parameter of that name does not take, besides what is no number
    "levels": (1, 2.5, True),
    "kappa": (),
    **dict.fromkeys(("steps", "search_steps"), (0, -3, 2.5, None)),
    **dict.fromkeys(("gamma", "init_norm", "initial_const", "decay", "largest", "smallest"), (0.0, -1.0, None)),
    **dict.fromkeys(("gamma", "clean_weight", "rate"), (-0.1, 1.1)),
    "multiplier_spread": (0.5, -2.0, None),
    "max_norm": (0.0, -1.0),
}
NUMERIC = [
    (method, parameter)
    for method in (*methods.names(), "segmentation")
    for parameter in methods.parameters(method)
    if parameter not in ("statistics", "search_statistics", "distance", "weights", "random_start", "scaled")
]


@pytest.mark.parametrize(("method", "parameter"), NUMERIC)
def test_every_number_is_checked(method, parameter):
    size = (0.0, -0.1) if parameter.startswith("step_size") else (-0.1,)
    for value in ("x", float("nan"), *BAD.get(parameter, size)):
        with pytest.raises(ValueError, match=f"^method '{method}': {parameter} must be .*; got {value!r}$"):
            methods.create(method, **{parameter: value})


@pytest.mark.parametrize("name", methods.names())
def test_every_default_passes(name):
    values = methods.parameters(name)
    methods.create(name, **values)
    for parameter, value in values.items():
        if isinstance(value, bool | str):
            with pytest.raises(ValueError, match=rf"{parameter}.* 7"):
                methods.create(name, **{parameter: 7})
