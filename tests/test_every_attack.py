"""What holds of every attack: bounds, odd images and logits, batch-mates, one example. One program an attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import elastic, jpeg, snow
from lagrangian_jax.attacks.arrays import example_keys

CLASSES = 4
DISTANCE = lj.distances.create("l2")

# name: (what bounds it, its other parameters). Few steps, and bounds that fool some of the images below and not all.
CASES = {
    "none": ({}, {}),
    "lagrangian": ({}, {}),
    "fgsm": ({"bound": 0.01}, {}),
    "mi_fgsm": ({"bound": 0.01}, {"steps": 3}),
    "pgd_linf": ({"bound": 0.01}, {"steps": 3, "random_start": True}),
    "pgd_l2": ({"bound": 0.15}, {"steps": 3, "random_start": True}),
    "mpgd": ({"bound": 0.03}, {"steps": 3}),
    "msd": ({"bound_linf": 0.01, "bound_l2": 0.15, "bound_l1": 1.0}, {"steps": 10}),
    "apgd_ce": ({"bound": 0.01}, {"steps": 10}),
    "apgd_ce l2": ({"bound": 0.15}, {"steps": 10, "norm": "l2"}),
    "apgd_dlr": ({"bound": 0.15}, {"steps": 10, "norm": "l2"}),
    "apgd_t": ({"bound": 0.01}, {"steps": 10, "targets": 3}),
    "fab_t": ({"bound": 0.01}, {"steps": 10, "targets": 3}),
    "fab_t l2": ({"bound": 0.15}, {"steps": 10, "targets": 3, "norm": "l2"}),
    "square": ({"bound": 0.03}, {"queries": 20}),
    "square l2": ({"bound": 0.5}, {"queries": 20, "norm": "l2"}),
    "autoattack": ({"bound": 0.15}, {"steps": 5, "targets": 2, "queries": 10, "norm": "l2"}),
    "carlini_wagner": ({}, {"steps": 50, "search_steps": 3}),
    "ddn": ({}, {"steps": 20}),
    "deepfool": ({}, {}),
    "augmented_lagrangian": ({}, {"steps": 50}),
    "lpa": ({"bound": 0.3}, {"steps": 5, "rounds": 2, "distance": DISTANCE, "projection": "newton"}),
    "fast_lpa": ({"bound": 0.3}, {"steps": 5, "distance": DISTANCE, "projection": "newton"}),
    "ppgd": ({"bound": 0.3}, {"steps": 5, "distance": DISTANCE}),
    "stadv": ({"bound": 0.2}, {"steps": 10, "step_size": 0.03}),
    "recolor": ({"bound": 0.06}, {"steps": 10, "step_size": 0.01, "resolution": (4, 5, 6)}),
    "elastic": ({"bound": 0.5}, {"steps": 5, "kernel_size": 5, "sigma": 1.0}),
    "jpeg": ({"bound": 0.125}, {"steps": 5}),
    "fog": ({"bound": 256.0}, {"steps": 5}),
    "gabor": ({"bound": 12.5}, {"steps": 5}),
    "snow": ({"bound": 0.5}, {"steps": 5}),
    "pgd_l0": ({}, {"max_pixels": 2, "restarts": 2, "steps": 5}),
    "corner_search": ({}, {"pixels": 2, "iterations": 20}),
    "wasserstein": ({"bound": 0.02}, {"steps": 5, "sinkhorn_steps": 50}),
    "gaussian_noise": ({"variance": 0.05}, {"clip": True}),
    "gaussian_blur": ({}, {"kernel_size": 3}),
}


def test_no_attack_is_forgotten():
    assert {case.split()[0] for case in CASES} == set(lj.attacks.names())


class Problem:
    """An attack as one compiled program, a linear network, and images that include all the odd cases.

    The first three images are black, white and grey; the others are random, and the last of these is misclassified. The
    labels reach both ends of their range.
    """

    def __init__(self, case):
        self.case, self.name = case, case.split()[0]
        self.bounds, self.parameters = CASES[case]
        side = 16 if case == "jpeg" else 8
        rng = np.random.default_rng(3)
        self.weights = rng.normal(size=(side * side * 3, CLASSES)).astype(np.float32)
        plain = np.broadcast_to(np.array([0, 1, 0.5], np.float32)[:, None, None, None], (3, side, side, 3))
        self.images = np.concatenate([plain, rng.uniform(0.2, 0.8, (9, side, side, 3)).astype(np.float32)])
        self.predictions = np.argmax(self.logits(self.images), -1).astype(np.int32)
        self.labels = self.predictions.copy()
        self.labels[-1] = (self.labels[-1] + 1) % CLASSES
        assert {0, CLASSES - 1} <= set(self.labels[:-1])
        self.keys = example_keys(jax.random.key(0), len(self.images))

        @jax.jit
        def attack(labels, scale, factor):
            values = self.parameters | {name: factor * value for name, value in self.bounds.items()}
            logits_fn = functools.partial(self.logits, scale=scale)
            return lj.attacks.create(self.name, **values)(self.keys, logits_fn, self.images, labels)

        self._attack = attack

    def logits(self, images, scale=1.0):
        biases = np.array([[0, 0.1, -0.1, 0.2]], np.float32)
        return scale * ((images.reshape(len(images), -1) - 0.5) @ self.weights) + biases

    def attack(self, labels=None, scale=1.0, factor=1.0):
        """The attacked images; ``factor`` multiplies the bounds."""
        return np.asarray(self._attack(self.labels if labels is None else labels, scale, factor))

    def fooled(self, adversarial, labels):
        return np.argmax(self.logits(adversarial), -1) != labels


@pytest.fixture(scope="module", params=CASES)
def problem(request):
    return Problem(request.param)


@pytest.mark.parametrize("scale", [1.0, 1e6, 0.0])
def test_finite_and_in_the_box(problem, scale):
    """On black, white and grey images too, with saturated logits, and without any gradient."""
    adversarial = problem.attack(scale=scale)
    assert np.isfinite(adversarial).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def l2(change):
    return np.sqrt(np.square(change).sum((1, 2, 3)))


def linf(change):
    return np.abs(change).max((1, 2, 3))


SIZES = {  # what the bound limits; flows, colours, fog and flakes are in the tests of these attacks
    **dict.fromkeys(["fgsm", "mi_fgsm", "pgd_linf", "mpgd", "apgd_ce", "apgd_t", "fab_t", "square"], linf),
    **dict.fromkeys(["pgd_l2", "apgd_ce l2", "apgd_dlr", "fab_t l2", "square l2", "autoattack"], l2),
    **dict.fromkeys(["lpa", "fast_lpa", "ppgd"], l2),
    "msd": lambda change: np.min([linf(change) / 0.01, l2(change) / 0.15, np.abs(change).sum((1, 2, 3))], axis=0),
    "gabor": lambda change: 255 * linf(change),
    **dict.fromkeys(["pgd_l0", "corner_search"], lambda change: np.any(change != 0, axis=-1).sum((1, 2)) / 2),
}


@pytest.mark.parametrize("problem", SIZES, indirect=True)
def test_the_bound_holds_and_is_used(problem):
    sizes = SIZES[problem.case](problem.attack() - problem.images)
    bound = problem.bounds.get("bound", 1.0)
    assert sizes.max() <= bound * (1 + 1e-5) + 1e-6
    assert sizes.max() >= bound / 2


LEFT = {  # what a bound of zero leaves of the images, where that is not just the images
    "elastic": lambda images: elastic.displace(images, jnp.zeros((*images.shape[:3], 2)), False),
    "jpeg": lambda images: np.clip(jpeg.subsample_chroma(255 * images) / 255, 0, 1),
    "fog": lambda images: images / np.maximum(images.max((1, 2), keepdims=True), 1e-9),
    "snow": lambda images: np.clip(snow.fade(images), 0, 1),
}
ROUNDING = {**dict.fromkeys([*LEFT, "stadv", "gabor", "wasserstein"], 2e-6), "recolor": 0.05}


@pytest.mark.parametrize("problem", [case for case, (bounds, _) in CASES.items() if bounds], indirect=True)
def test_larger_bounds_are_not_weaker_and_none_leaves_what_the_original_leaves(problem):
    left, half, whole = (problem.attack(factor=factor) for factor in (0.0, 0.5, 1.0))
    expected = LEFT.get(problem.name, lambda images: images)(problem.images)
    np.testing.assert_allclose(left, expected, rtol=0, atol=ROUNDING.get(problem.name, 0))
    fooled = [problem.fooled(images, problem.labels).sum() for images in (left, half, whole)]
    assert fooled == sorted(fooled)
    assert fooled[0] < fooled[2]


RETURNS = {  # what is misclassified already comes back, up to rounding
    **dict.fromkeys(["none", "apgd_t", "fab_t", "fab_t l2", "autoattack", "pgd_l0", "corner_search", "wasserstein"], 0),
    **dict.fromkeys(["carlini_wagner", "ddn", "deepfool", "augmented_lagrangian"], 1e-7),
}


def test_all_misclassified_already(problem):
    wrong = (problem.predictions + 1) % CLASSES
    adversarial = problem.attack(labels=wrong)
    if problem.case in RETURNS:
        np.testing.assert_allclose(adversarial, problem.images, rtol=0, atol=RETURNS[problem.case])
    if problem.name not in ("gaussian_noise", "snow"):  # noise, and a faded image, may be classified rightly
        assert problem.fooled(adversarial, wrong).all()


KEEPS = [case for case in CASES if case.split()[0] in (*RETURNS, "apgd_ce", "apgd_dlr", "square")]


@pytest.mark.parametrize("scale", [0.0, 1e-4])
@pytest.mark.parametrize("problem", [case for case in KEEPS if case != "wasserstein"], indirect=True)
def test_what_cannot_be_fooled_comes_back(problem, scale):
    """The biases decide."""
    labels = np.full_like(problem.labels, CLASSES - 1)
    np.testing.assert_array_equal(problem.attack(labels, scale), problem.images)


def test_one_example_alone_as_in_a_batch(problem):
    """And the same outside `jax.jit` as inside."""
    attack, row = lj.attacks.create(problem.name, **problem.bounds, **problem.parameters), slice(7, 8)
    alone = attack(problem.keys[row], problem.logits, problem.images[row], problem.labels[row])
    tolerance = 1e-3 if problem.name == "recolor" else 2e-6  # its first steps are the signs of rounding errors
    np.testing.assert_allclose(alone, problem.attack()[row], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_float32_where_jax_has_float64(case):
    """A program that enables float64 for itself gets the same types; the attack is only traced, not compiled."""
    name, (bounds, parameters) = case.split()[0], CASES[case]
    best = {"keep": "best"} if "keep" in lj.attacks.create(name, **bounds, **parameters).parameters else {}
    attack = lj.attacks.create(name, **bounds, **parameters, **best)

    def logits_fn(images):
        return 10.0 * images.reshape(len(images), -1)[:, :CLASSES].astype(float)

    def call(images, labels):
        return attack(jax.random.key(0), logits_fn, images, labels)

    with jax.enable_x64(True):
        images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
        assert jax.eval_shape(logits_fn, images).dtype == jnp.float64
        assert jax.eval_shape(call, images, jax.ShapeDtypeStruct((2,), jnp.int64)).dtype == jnp.float32
