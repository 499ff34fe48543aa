"""Perceptual attacks: a linear network under the l2 distance, edge cases, then the recorded runs of the originals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import perceptual
from lagrangian_jax.attacks.arrays import l2_norm

SHAPE = (4, 4, 3)
ATTACKS = {"lpa": dict(steps=20), "fast_lpa": dict(steps=20), "ppgd": dict(steps=10)}
ATTACK_FUNCTIONS = {"lpa": perceptual.lpa, "fast_lpa": perceptual.fast_lpa, "ppgd": perceptual.ppgd}


@pytest.fixture(scope="module")
def l2():
    return lj.distances.create("l2")


@pytest.fixture(scope="module")
def linear(linear_network):
    """A linear network, 12 images in mid-range, their predicted classes, and the l2 distances to other classes."""
    logits_fn, weights, _ = linear_network(SHAPE)
    images = np.random.default_rng(1).uniform(0.35, 0.65, size=(12, *SHAPE)).astype(np.float32)
    logits = np.asarray(logits_fn(images))
    labels = logits.argmax(-1)
    rows = np.arange(len(images))
    gaps = logits[rows, labels][:, None] - logits
    norms = np.linalg.norm(weights[:, labels].T[:, None] - weights.T[None], axis=-1)
    distances = np.min(np.where(norms > 0, gaps / np.where(norms > 0, norms, 1), np.inf), axis=1)
    return logits_fn, images, labels, distances


@pytest.fixture(scope="module")
def keys():
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(12))


def norms_of(adversarial, images):
    return np.sqrt(((np.asarray(adversarial) - images) ** 2).sum((1, 2, 3)))


def fooled(logits_fn, adversarial, labels):
    return np.asarray(logits_fn(adversarial)).argmax(-1) != labels


@pytest.mark.parametrize("name", ATTACKS)
def test_linear_network_falls_where_the_boundary_is_near(name, linear, l2, key):
    """A network so flat that the multiplier holds the Lagrangian attacks near the bound."""
    steep, images, labels, distances = linear
    logits_fn = lambda images: 0.1 * steep(images)  # noqa: E731
    bound = 0.95 * float(distances.max())
    near, far = distances < 0.8 * bound, distances > bound
    assert near.sum() > 3
    assert far.any()
    attack = lj.attacks.create(name, bound=bound, distance=l2, projection="newton", keep="best", **ATTACKS[name])
    adversarial = attack(key, logits_fn, images, labels)
    hit = fooled(logits_fn, adversarial, labels)
    assert hit[near].all()
    assert not hit[far].any()
    assert (norms_of(adversarial, images) <= bound * 1.0001).all()
    assert np.min(adversarial) >= 0
    assert np.max(adversarial) <= 1


@pytest.fixture(scope="module")
def compiled(linear, l2):
    """``compiled[name](keys, images, labels, bound)``, projected by Newton: one compile for all bounds."""
    logits_fn = linear[0]

    def build(name):
        options = dict(distance=l2, projection="newton", **ATTACKS[name])
        return jax.jit(
            lambda keys, *batch: ATTACK_FUNCTIONS[name](keys, logits_fn, *batch[:2], bound=batch[2], **options)
        )

    return {name: build(name) for name in ATTACKS}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_last_iterate_is_projected(name, compiled, linear, keys):
    """Even where the iterate before it was misclassified within the bound, at which LPA stops."""
    _, images, labels, distances = linear
    bound = 1.2 * float(distances.max())
    adversarial = compiled[name](keys, images, labels, bound)
    assert (norms_of(adversarial, images) <= bound * 1.0001).all()


def test_lpa_by_bisection_exceeds_the_bound_by_a_part_of_the_segment_at_most(linear, l2, key):
    logits_fn, images, labels, _ = linear
    attack = lj.attacks.create("lpa", bound=0.2, steps=10, rounds=2, distance=l2)
    unprojected = lj.attacks.create("lpa", bound=0.2, steps=10, rounds=2, distance=l2, projection="none")
    far = norms_of(unprojected(key, logits_fn, images, labels), images)
    assert (norms_of(attack(key, logits_fn, images, labels), images) <= 0.2 + far / 32 + 1e-6).all()


@pytest.mark.parametrize("options", [dict(group=1), dict(group=5), dict(distance=lambda a, b: l2_norm(a - b))])
def test_lpa_in_any_group_size_and_with_a_bare_function_as_its_distance(options, compiled, linear, l2, keys):
    logits_fn, images, labels, distances = linear
    bound = float(np.median(distances))
    attack = lj.attacks.create(
        "lpa", bound=bound, **{"distance": l2, "projection": "newton", **ATTACKS["lpa"], **options}
    )
    expected = compiled["lpa"](keys, images, labels, bound)
    np.testing.assert_allclose(attack(keys, logits_fn, images, labels), expected, atol=1e-5)


def test_the_best_iterate_is_misclassified_and_near():
    ascending = perceptual._Point(
        value=jnp.array([-3.0, -1.0, 2.0, 1.0, 0.5]),
        fooled=jnp.array([False, False, True, True, True]),
        distance=jnp.array([0.1, 0.9, 7.0, 0.7, 0.2]),
    )
    assert np.all(np.diff(perceptual._score(ascending)) > 0)


@pytest.mark.parametrize(("name", "rounds"), [("lpa", {"rounds": 1}), ("fast_lpa", {}), ("ppgd", {})])
def test_steps_cover_what_they_should_of_the_distance(name, rounds, linear_network, l2, key):
    """Far from the boundary and well within the bound, all steps go the same way."""
    logits_fn, weights, _ = linear_network(SHAPE, classes=2)
    images = np.full((1, *SHAPE), 0.5, np.float32)
    label = int(np.argmax(logits_fn(images)))
    options = dict(bound=9.0, steps=5, step_size=0.01, decay=0.2, init_std=0.0, projection="none", **rounds)
    moved = np.asarray(
        lj.attacks.create(name, distance=l2, **options)(key, logits_fn, images, np.array([label])) - images
    )
    expected = sum(0.01 * 0.2 ** (i / 5) for i in range(5))
    np.testing.assert_allclose(norms_of(moved, 0), expected, rtol=1e-3)
    upwards = weights[:, 1 - label] - weights[:, label]
    assert np.dot(moved.ravel(), upwards) == pytest.approx(expected * np.linalg.norm(upwards), rel=1e-3)


def test_lpa_stops_after_the_step_in_which_an_example_was_found():
    """The margin is 2 at the start: the first step is taken, along the gradient or not at all, and nothing after it."""
    image = jnp.full((1, *SHAPE), 0.5)
    logits_fn = lambda images: jnp.stack([jnp.zeros(1), 2 + 0 * images.sum((1, 2, 3))], -1)  # noqa: E731
    options = dict(bound=0.4, steps=7, rounds=3, distance=lj.distances.create("l2"), kappa=1.0, projection="none")
    adversarial = lj.attacks.create("lpa", **options)(jax.random.key(3), logits_fn, image, jnp.array([0]))
    start = perceptual._start(jax.random.key(3), image, 0.01, 0.4)  # above kappa there is no gradient
    np.testing.assert_allclose(adversarial, image + start, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_plain_images_flat_and_saturated_logits(name, linear_network, keys):
    """A black, a white and a grey image, under LPIPS of a small network; no gradient at all, or a saturated one."""
    shape = (16, 16, 3)
    logits_fn, _, _ = linear_network(shape, classes=5)
    network = lj.models.create("alexnet_cifar", width=2)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *shape)))
    distance = lj.distances.create(
        "self_lpips", features_fn=lambda images: network.apply(variables, images, method="feature_maps")
    )
    images = np.broadcast_to(np.array([0, 1, 0.5], np.float32)[:, None, None, None], (3, *shape)).copy()
    options = {**ATTACKS[name], "steps": 3, "bound": 0.3, "distance": distance}
    labels = jnp.array([0, 4, 2])  # the ends of their range

    @jax.jit
    def attack(scale):
        return ATTACK_FUNCTIONS[name](keys[:3], lambda x: scale * logits_fn(x), images, labels, **options)

    for scale in (0.0, 1e6):
        adversarial = np.asarray(attack(scale))
        assert np.isfinite(adversarial).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


def test_bisection_returns_the_last_point_tried(linear):
    _, images, _, _ = linear
    direction = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
    direction /= np.sqrt((direction**2).sum((1, 2, 3), keepdims=True))
    to_clean = lambda x: l2_norm(x - images)  # noqa: E731
    project = functools.partial(perceptual.project_bisection, to_clean, images)
    np.testing.assert_allclose(norms_of(project(images + direction, 0.3, 5), images), 0.28125, atol=1e-5)
    inside = 0.1 * (1 - 2.0**-4)
    np.testing.assert_allclose(norms_of(project(images + 0.1 * direction, 0.3, 4), images), inside, atol=1e-5)


def test_newton_projection_is_feasible_idempotent_and_leaves_the_feasible(linear):
    _, images, _, _ = linear
    noise = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
    far = np.clip(images + noise * np.linspace(0.001, 0.3, len(images))[:, None, None, None], 0, 1).astype(np.float32)
    to_clean = lambda x: l2_norm(x - images)  # noqa: E731
    projected = perceptual.project_newton(to_clean, images, far, 0.5)
    assert (norms_of(projected, images) <= 0.5).all()
    near = norms_of(far, images) <= 0.5
    assert 0 < near.sum() < len(near)
    np.testing.assert_array_equal(np.asarray(projected)[near], far[near])
    np.testing.assert_array_equal(perceptual.project_newton(to_clean, images, projected, 0.5), projected)


def test_newton_falls_back_on_bisection(linear):
    """A distance whose gradient points the wrong way never comes within the bound by Newton's steps."""
    _, images, _, _ = linear

    @jax.custom_vjp
    def to_clean(x):
        return l2_norm(x - images)

    to_clean.defvjp(lambda x: (to_clean(x), x), lambda x, g: (-g[:, None, None, None] * (x - images),))
    far = np.clip(images + 0.3, 0, 1)
    assert (norms_of(perceptual.project_newton(to_clean, images, far, 0.5, steps=3), images) <= 0.51).all()


def test_conjugate_gradients_solve_a_system():
    rng = np.random.default_rng(0)
    square = rng.normal(size=(2, 6, 6))
    matrices = np.einsum("bij,bkj->bik", square, square) + np.eye(6)
    target = rng.normal(size=(2, 1, 2, 3)).astype(np.float32)
    multiply = lambda v: jnp.einsum("bij,bj->bi", matrices, v.reshape(2, 6)).reshape(v.shape)  # noqa: E731
    solution = perceptual._conjugate_gradients(multiply, jnp.asarray(target), 6)
    expected = np.linalg.solve(matrices, target.reshape(2, 6, 1)).reshape(target.shape)
    np.testing.assert_allclose(solution, expected, atol=1e-3)
    zero = perceptual._conjugate_gradients(multiply, jnp.zeros_like(target), 6)
    np.testing.assert_array_equal(zero, 0)


def test_errors_before_anything_runs(linear, key):
    logits_fn, images, labels, _ = linear
    for name in ATTACKS:
        with pytest.raises(ValueError, match="distance must be a distance"):
            lj.attacks.create(name)
    l2 = lj.distances.create("l2")
    for parameter, value in (("projection", "newtons"), ("probe", "up"), ("rounds", 0), ("group", 0), ("bound", -1.0)):
        with pytest.raises(ValueError, match=f"{parameter} must be"):
            lj.attacks.create("lpa", distance=l2, **{parameter: value})
    with pytest.raises(ValueError, match="distance must have features"):
        lj.attacks.create("ppgd", distance=lj.distances.create("ssim"))(key, logits_fn, images, labels)


# The originals. The component runs were recorded with the network in train mode (statistics of the batch of four).


@pytest.fixture(scope="module")
def alexnet_lpips(golden):
    return lj.distances.create("lpips_alexnet_cifar", weights=golden / "alexnet_cifar_features.safetensors")


@pytest.fixture
def recorded(golden, monkeypatch):
    values = dict(np.load(golden / "components" / "perceptual_attacks.npz"))
    monkeypatch.setattr(perceptual, "_start", lambda *_: jnp.asarray(values["delta_init"]))
    return values


@pytest.fixture(scope="module")
def train_mode_network(original):
    network = lj.models.create("resnet18", num_classes=10, width=16)
    variables = lj.interop.load(original / "model_a.safetensors", network)
    return lambda images: network.apply(variables, images, train=True, mutable=["batch_stats"])[0]


def run(attack, logits_fn, recorded, **options):
    function = functools.partial(attack, bound=0.5, **options)
    compiled = jax.jit(lambda images: function(jax.random.key(0), logits_fn, images, recorded["labels"]))
    return np.asarray(compiled(recorded["images"]))


def test_recorded_projections(recorded, alexnet_lpips):
    images, far = recorded["images"], recorded["projection_input"]

    @jax.jit
    def project(images, far):
        to_clean = perceptual._to_clean(alexnet_lpips, alexnet_lpips.features(images))
        return (
            perceptual.project_bisection(to_clean, images, far, 0.5, 10),
            perceptual.project_bisection(to_clean, images, far, 0.5),
            perceptual.project_newton(to_clean, images, far, 0.5),
        )

    names = ("bisection10_bound0p5", "bisection5_official_bound0p5", "newton_bound0p5")
    for name, result in zip(names, project(images, far), strict=True):
        np.testing.assert_allclose(result, recorded[name], atol=1e-4, err_msg=name)


def test_recorded_fast_lpa(recorded, alexnet_lpips, train_mode_network):
    adversarial = run(perceptual.fast_lpa, train_mode_network, recorded, steps=10, distance=alexnet_lpips)
    np.testing.assert_allclose(adversarial, recorded["fast_lpa_adv"], atol=1e-4)


@pytest.mark.slow
def test_recorded_lpa(recorded, alexnet_lpips, train_mode_network):
    adversarial = run(perceptual.lpa, train_mode_network, recorded, steps=10, distance=alexnet_lpips)
    np.testing.assert_allclose(adversarial, recorded["lpa_official_lagrangian_unseen_10its_adv"], atol=1e-4)
    upstream = dict(steps=10, distance=alexnet_lpips, probe="forward", projection="newton")
    adversarial = run(perceptual.lpa, train_mode_network, recorded, **upstream)
    np.testing.assert_allclose(adversarial, recorded["lpa_perceptual_advex_10its_adv"], atol=1e-4)


@pytest.mark.slow
def test_recorded_ppgd(recorded, alexnet_lpips, train_mode_network):
    """Chaotic: 1e-7 added to the start moves pixels of the third iterate by 0.06 and, with other convolutions, a
    distance by 0.024; with plain ones the distances stay.
    """
    with jax.default_matmul_precision("highest"):
        adversarial = run(perceptual.ppgd, train_mode_network, recorded, steps=3, distance=alexnet_lpips)
    assert np.abs(adversarial - recorded["ppgd_3its_adv"]).mean() < 0.01
    distances = alexnet_lpips(recorded["images"], adversarial)
    np.testing.assert_allclose(distances, recorded["ppgd_3its_lpips"], atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "name", "options"),
    [
        ("fast_lpa", "fast_lpa", {}),
        ("ppgd_pa", "ppgd", {}),
        ("lpa_official", "lpa", {}),
        ("lpa_pa", "lpa", dict(steps=40, probe="forward", projection="newton")),
    ],
)
def test_end_to_end(record, name, options, golden, network_a, cifar10_test, alexnet_lpips, key):
    """As strong as the originals on 128 images, at the same distances."""
    images, labels = cifar10_test(128)
    original = np.load(golden / "model_a_test0-127" / f"{record}.npz")
    adversarial = lj.attacks.create(name, distance=alexnet_lpips, **options)(key, network_a, images, labels)
    success = fooled(network_a, adversarial, labels)
    assert success.mean() >= original["success"].mean() - 0.02
    distances = np.asarray(alexnet_lpips(images, adversarial))
    np.testing.assert_allclose(distances.mean(), original["lpips_alexnet_cifar"].mean(), rtol=0.05)
    np.testing.assert_allclose(norms_of(adversarial, images).mean(), original["l2"].mean(), rtol=0.05)
