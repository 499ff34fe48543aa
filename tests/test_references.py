"""Attacks that search with a state of their own, step by step against loops in float64 on a linear network.

There, gradients are differences of the weights' columns. The originals' recorded values cover the other attacks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax import methods
from lagrangian_jax.attacks.gradient import l2_start

SHAPE, CLASSES = (2, 2, 3), 4


class Linear:
    """A linear network, images, and the network's labels for them; float64 inside, float32 for the attacks."""

    def __init__(self, seed=3, count=6):
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(12, CLASSES)).astype(np.float32).astype(float)
        self.images = rng.uniform(0.35, 0.65, (count, 12)).astype(np.float32).astype(float)
        self.labels = (self.images @ self.weights).argmax(-1)

    def logits_fn(self, images):
        return jnp.dot(images.reshape(len(images), -1), jnp.float32(self.weights), precision="highest")

    def attacked(self, name, **parameters):
        attack = lj.attacks.create(name, **parameters)
        images = jnp.float32(self.images).reshape(-1, *SHAPE)
        return np.asarray(attack(jax.random.key(0), self.logits_fn, images, jnp.asarray(self.labels))).reshape(-1, 12)

    def lead(self, x, y):
        """The label's logit minus the largest other one, and the gradient of this difference."""
        z = x @ self.weights
        other = max((k for k in range(CLASSES) if k != y), key=lambda k: z[k])
        return z[y] - z[other], self.weights[:, y] - self.weights[:, other]

    def others(self, x, y):
        """The log of the sum of the other classes' exponentials minus the label's logit, and its gradient."""
        z = x @ self.weights
        rest = [k for k in range(CLASSES) if k != y]
        e = np.exp(z[rest] - z[rest].max())
        value = np.log(e.sum()) + z[rest].max() - z[y]
        return value, self.weights[:, rest] @ (e / e.sum()) - self.weights[:, y]


@pytest.fixture(scope="module")
def linear():
    return Linear()


# ---- The augmented Lagrangian (ALMA) -----------------------------------------------------------


def slope(h, rho, mu):
    return mu + 2 * mu * rho * h + (rho * h) ** 2 / 2 if h >= 0 else mu / (1 - rho * h) ** 2


def alma(linear, x, y, *, steps, init_distance, smoothing, rate_decay, penalty_growth, improvement, check_every):
    """Rony et al. 2020, algorithm 1. Returns the closest image, the step of the first, and how often rho grew."""
    adversarial, best, shortest, first = x, x, np.inf, None
    mu, rho, grown, rate = 1.0, 1.0, 0, None
    squares, momentum = np.ones_like(x), np.zeros_like(x)
    for i in range(steps):
        z = adversarial @ linear.weights
        order = np.argsort(-z)
        lead, towards = linear.lead(adversarial, y)
        spread, widens = z[order[0]] - z[order[2]] + 1e-8, linear.weights[:, order[0]] - linear.weights[:, order[2]]
        h = (1e-4 + lead) / spread
        gradient_of_h = (towards - h * widens) / spread
        if i == 0:
            checked = h
        elif (i + 1) % check_every == 0:
            if first is None and h >= improvement * checked:
                rho, grown = penalty_growth * rho, grown + 1
            checked = h
        if i > 0:
            mu = np.clip(smoothing * mu + (1 - smoothing) * slope(h, rho, mu), 1e-6, 1e12)
        length = np.linalg.norm(adversarial - x)
        if h < 0:
            first = i if first is None else first
            if length < shortest:
                best, shortest = adversarial, length
        gradient = slope(h, rho, mu) * gradient_of_h + (0 if i == 0 else (adversarial - x) / length)
        rate = init_distance / np.linalg.norm(gradient) if i == 0 else rate
        squares = smoothing * squares + (1 - smoothing) * gradient**2
        momentum = smoothing * momentum + gradient / (np.sqrt(squares) + 1e-8)
        progress = 0.0 if first is None else (i - first) / (steps - first)
        adversarial = np.clip(adversarial - rate * rate_decay**progress * momentum, 0, 1)
    return best, first, grown


def test_augmented_lagrangian(linear):
    options = dict(steps=150, init_distance=0.01, smoothing=0.6, rate_decay=0.1)
    options |= dict(penalty_growth=1.5, improvement=0.8, check_every=4)
    found = [alma(linear, x, y, **options) for x, y in zip(linear.images, linear.labels, strict=True)]
    assert min(grown for *_, grown in found) >= 1
    assert len({first for _, first, _ in found} - {None}) > 3
    expected = np.stack([best for best, *_ in found])
    np.testing.assert_allclose(linear.attacked("augmented_lagrangian", **options), expected, atol=4e-4)


# ---- Carlini and Wagner ------------------------------------------------------------------------


def carlini_wagner(linear, x, y, *, steps, search_steps, step_size, initial_const):
    """Carlini and Wagner 2017, l2: Adam on the shift behind tanh, and the search for c. Returns image and each c."""
    origin = np.arctanh((2 * x - 1) * (1 - 1e-6))
    constant, lower, upper, constants = initial_const, 0.0, 1e10, []
    best, shortest = x, np.inf
    for _ in range(search_steps):
        constants.append(constant)
        shift, first, second, succeeded = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x), False
        for i in range(steps):
            t = np.tanh(origin + shift)
            adversarial = (t + 1) / 2
            lead, towards = linear.lead(adversarial, y)
            length = np.linalg.norm(adversarial - x)
            if lead < 0:
                succeeded = True
                if length < shortest:
                    best, shortest = adversarial, length
            gradient = (2 * (adversarial - x) + constant * (lead >= 0) * towards) * (1 - t**2) / 2
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            corrected = second / (1 - 0.999 ** (i + 1))
            shift = shift - step_size * first / (1 - 0.9 ** (i + 1)) / (np.sqrt(corrected) + 1e-8)
        lower, upper = (lower, min(upper, constant)) if succeeded else (max(lower, constant), upper)
        constant = (lower + upper) / 2 if upper < 1e9 else 10 * constant
    return best, constants


def test_carlini_wagner(linear):
    options = dict(steps=40, search_steps=6, step_size=0.02, initial_const=0.02)
    found = [carlini_wagner(linear, x, y, **options) for x, y in zip(linear.images, linear.labels, strict=True)]
    signs = {tuple(np.sign(np.diff(constants))) for _, constants in found}
    assert any({-1, 1} <= set(steps[1:]) for steps in signs)  # both bounds of the search have moved
    attacked = linear.attacked("carlini_wagner", abort_early=False, **options)
    np.testing.assert_allclose(attacked, np.stack([best for best, _ in found]), atol=2e-4)
    assert (attacked != np.float32(linear.images)).any(-1).all()


# ---- LPA and PPGD ------------------------------------------------------------------------------

L2 = lj.distances.create("l2")


def test_lpa_s_steps_shrink_within_a_round_and_begin_anew_in_the_next(linear):
    """Far from the boundary and within the bound every step goes the same way, and covers its share of the distance."""
    options = dict(steps=4, step_size=0.02, bound=10.0, init_std=0.0, projection="none", distance=L2)
    towards = -np.stack([linear.lead(x, y)[1] for x, y in zip(linear.images, linear.labels, strict=True)])
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    for rounds in (1, 2):
        length = rounds * sum(0.02 * 0.1 ** (i / 4) for i in range(4))
        moved = linear.attacked("lpa", rounds=rounds, **options) - linear.images
        np.testing.assert_allclose(moved, length * towards, atol=2e-6)


def test_lpa_projects_what_it_found_unless_the_best_is_kept(linear):
    """Bisection takes a thirty-second even of what is within the bound."""
    options = dict(steps=4, rounds=1, step_size=1.5, bound=10.0, kappa=0.0, init_std=0.0, distance=L2)
    found = linear.attacked("lpa", projection="none", **options) - linear.images
    projected = linear.attacked("lpa", projection="bisection", **options) - linear.images
    np.testing.assert_allclose(projected, (1 - 2**-5) * found, atol=2e-6)
    best = [linear.attacked("lpa", projection=name, keep="best", **options) for name in ("none", "bisection")]
    np.testing.assert_array_equal(*best)


def test_ppgd_s_steps_add_up_to_twice_the_bound(linear):
    given, default = (linear.attacked("ppgd", bound=0.5, steps=5, distance=L2, step_size=s) for s in (0.2, None))
    np.testing.assert_array_equal(given, default)


# ---- MMA ---------------------------------------------------------------------------------------


def mma(linear, x, y, start, radius, *, steps, search_steps, largest):
    """Ding et al. 2020: PGD on the soft margin within the radius gives a direction, bisection the distance along it."""
    perturbation = start
    for _ in range(steps):
        gradient = linear.others(x + perturbation, y)[1]
        perturbation = perturbation + 2.5 * radius / steps * gradient / np.linalg.norm(gradient)
        perturbation = np.clip(x + perturbation, 0, 1) - x
        perturbation = perturbation * min(1, radius / np.linalg.norm(perturbation))
    direction = perturbation / radius
    low, high, distance = 0.0, 1.05 * largest, radius
    for _ in range(search_steps):
        inside = linear.others(np.clip(x + distance * direction, 0, 1), y)[0] < 0
        low, high = (max(distance, low), high) if inside else (low, min(distance, high))
        distance = (low + high) / 2
    return distance, x + distance * direction


@pytest.mark.parametrize("steps", [2, 5])
def test_mma_crafts_as_a_float64_reference(linear, steps):
    options = dict(steps=steps, search_steps=6, largest=0.8)
    count = len(linear.images)
    images, keys = jnp.float32(linear.images).reshape(-1, *SHAPE), jax.random.split(jax.random.key(1), count)
    memory = jnp.linspace(0.2, 0.6, count)  # the first radii are raised to the smallest
    radius = np.maximum(np.asarray(memory, float), 0.3)
    starts = np.asarray(l2_start(keys, images, radius.astype(np.float32)[:, None, None, None]), float).reshape(
        count, 12
    )
    given = zip(linear.images, linear.labels, starts, radius, strict=True)
    expected = [mma(linear, x, y, start, r, **options) for x, y, start, r in given]

    class Network:
        def bind(self, statistics):
            return lambda images, state: (linear.logits_fn(images), state)

        batch_stats = ()

    batch = methods.Batch(images, jnp.asarray(linear.labels), jnp.arange(count))
    crafted = methods.create("mma", smallest=0.3, **options).craft(keys, Network(), batch, memory, 0.0)
    np.testing.assert_allclose(crafted.memory, [distance for distance, _ in expected], atol=1e-5)
    np.testing.assert_allclose(crafted.images.reshape(count, 12), [image for _, image in expected], atol=1e-5)
