"""PGD0 and CornerSearch: pixels counted, answers known for linear networks, and the recorded values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import sparse
from lagrangian_jax.attacks.arrays import example_keys
from lagrangian_jax.attacks.attack import execute

project_l0 = jax.jit(sparse.project_l0, static_argnums=3)


def changed_pixels(adversarial, images):
    return np.any(np.asarray(adversarial) != np.asarray(images), axis=-1).sum((1, 2))


def sum_network(needed):
    """On grey images of 0.5: class 0 until the sum over all values falls by more than ``needed``."""

    def logits_fn(images):
        fall = jnp.sum(0.5 - images, axis=(1, 2, 3))
        return jnp.stack([needed - fall, fall - needed], axis=-1)

    return logits_fn


GREY = np.full((1, 4, 4, 3), 0.5, np.float32)


def test_projection_keeps_the_pixels_that_gain_most():
    images = jnp.full((1, 1, 4, 1), 0.5)
    perturbation = jnp.array([[0.2, -3.0, 0.45, 0.3]]).reshape(1, 1, 4, 1)
    # Clipped to [-0.5, 0.5]; the gains are 0.04, 9 - 6.25, 0.2025 and 0.09.
    for pixels, expected in ((1, [0, -0.5, 0, 0]), (2, [0, -0.5, 0.45, 0]), (4, [0.2, -0.5, 0.45, 0.3])):
        projected = project_l0(perturbation, images, pixels, 4)
        np.testing.assert_allclose(projected.ravel(), expected, atol=1e-7)


def test_projection_is_the_nearest_point():
    """Compared with all choices of pixels."""
    images = jax.random.uniform(jax.random.key(0), (1, 1, 5, 3))
    perturbation = jax.random.normal(jax.random.key(1), (1, 1, 5, 3))
    projected = project_l0(perturbation, images, 2, 2)
    clipped = jnp.clip(perturbation, -images, 1 - images)
    distances = []
    for first in range(5):
        for second in range(first):
            keep = np.zeros((1, 1, 5, 1))
            keep[..., [first, second], :] = 1
            distances.append(float(jnp.sum(jnp.square(perturbation - clipped * keep))))
    assert float(jnp.sum(jnp.square(perturbation - projected))) == pytest.approx(min(distances), rel=1e-6)


def test_projection_is_idempotent_and_breaks_ties():
    images = jax.random.uniform(jax.random.key(0), (3, 6, 6, 3))
    perturbation = jax.random.normal(jax.random.key(1), images.shape)
    once = project_l0(perturbation, images, jnp.int32(5), 9)
    assert np.all(np.any(np.asarray(once) != 0, axis=-1).sum((1, 2)) == 5)
    np.testing.assert_array_equal(project_l0(once, images, 5, 9), once)
    tied = jnp.full((1, 2, 2, 1), 0.1)
    assert int(jnp.sum(project_l0(tied, jnp.full((1, 2, 2, 1), 0.5), 1, 1) != 0)) == 1


def test_projection_matches_the_original(original):
    recorded = np.load(original / "components" / "pgd0_projection.npz")
    for pixels in (1, 5, 10):
        projected = project_l0(jnp.asarray(recorded["delta"]), jnp.asarray(recorded["images"]), pixels, 10)
        np.testing.assert_allclose(projected, recorded[f"delta_projected_k{pixels}"], atol=1e-6)


def test_pgd_l0_finds_the_fewest_pixels(key):
    """A pixel changes the sum by 1.5 at most, so a fall of 4 takes three."""
    adversarial = lj.attacks.create("pgd_l0", max_pixels=4, restarts=2)(key, sum_network(4.0), GREY, np.array([0]))
    assert changed_pixels(adversarial, GREY).tolist() == [3]
    assert float(sum_network(4.0)(adversarial)[0, 0]) < 0


def test_pgd_l0_counts_the_result_of_the_last_step(key):
    """A pixel has to go to black; a random start is not there, and the one step of this run is its last."""
    attack = lj.attacks.create("pgd_l0", pixels=1, restarts=1, steps=2)
    adversarial = attack(key, sum_network(1.49), GREY, np.array([0]))
    assert changed_pixels(adversarial, GREY).tolist() == [1]
    assert float(sum_network(1.49)(adversarial)[0, 0]) < 0


def test_pgd_l0_returns_the_clean_image_when_it_fails(key):
    attack = lj.attacks.create("pgd_l0", pixels=2, restarts=2)
    np.testing.assert_array_equal(attack(key, sum_network(4.0), GREY, np.array([0])), GREY)


def test_pgd_l0_runs_on_survivors_with_one_program(key):
    attack = lj.attacks.create("pgd_l0", max_pixels=3, restarts=2)
    assert len(attack.stages) == 6
    assert len({stage.function for stage in attack.stages}) == 1
    images = np.concatenate([GREY, np.zeros_like(GREY), GREY])
    logits_fn, labels = sum_network(4.0), np.array([0, 0, 1], np.int32)
    sizes = []

    def run(function, keys, images, labels, *arguments):
        adversarial = function(keys, logits_fn, images, labels, *arguments)
        return adversarial, jnp.argmax(logits_fn(adversarial), -1)

    def predict(images):
        sizes.append(len(images))
        return jnp.argmax(logits_fn(images), -1)

    result = execute(attack, jax.jit(run, static_argnums=0), predict, example_keys(key, 3), images, labels)
    # The black image and the last one are misclassified from the start; the first falls to three pixels.
    assert result.attacked == (1, 1, 1, 1, 1, 0)
    np.testing.assert_array_equal(result.adversarial[1:], images[1:])
    assert changed_pixels(result.adversarial, images).tolist() == [3, 0, 0]


def test_corner_search_takes_the_first_single_pixel(key):
    adversarial = lj.attacks.create("corner_search")(key, sum_network(1.4), GREY, np.array([0]))
    expected = GREY.copy()
    expected[0, 0, 0] = 0  # only the black corner falls by 1.5, and the first pixel is tried first
    np.testing.assert_array_equal(adversarial, expected)


def test_corner_search_combines_pixels_up_to_the_number_given(key):
    logits_fn, label = sum_network(2.9), np.array([0])
    parameters = dict(iterations=300, candidates=16)
    for pixels, expected in ((1, 0), (2, 2), (4, 2)):
        attack = lj.attacks.create("corner_search", pixels=pixels, **parameters)
        assert changed_pixels(attack(key, logits_fn, GREY, label), GREY).tolist() == [expected]


def test_corner_search_tries_every_size_by_every_criterion(key):
    """On a network that nothing fools, there are as many batches as the publication has rounds."""
    batches = []

    def logits_fn(images):
        jax.debug.callback(lambda: batches.append(1))
        return jnp.broadcast_to(jnp.array([3.0, 0.0, 0.0]), (len(images), 3))

    images = np.full((2, 2, 2, 3), 0.5, np.float32)
    attack = lj.attacks.create("corner_search", pixels=4, iterations=50, candidates=20, batch_size=16)
    jax.block_until_ready(jax.jit(attack, static_argnums=1)(key, logits_fn, images, np.array([0, 1])))
    jax.effects_barrier()
    single = -(-4 * 8 // 16)  # 4 pixels of 8 colours
    several = 3 * 3 * -(-50 // 16)  # 2, 3 and 4 pixels, by the margin and by each other class
    assert len(batches) == 1 + single + several  # and a look at the clean images, of which the second is wrong already


def test_corner_search_draws_from_the_ordering_of_every_class(key):
    """Only the last class's two best changes fool the network together; by the margin others come first."""

    def logits_fn(images):
        white = images.reshape(len(images), 9) > 0.9
        runner_up = 0.5 + 0.1 * white[:, :4].sum(-1)
        both = white[:, 7] & white[:, 8]
        return jnp.stack([jnp.ones(len(images)), runner_up, -3 + 0.5 * white[:, 7:].sum(-1) + 4 * both], axis=-1)

    attack = lj.attacks.create("corner_search", pixels=2, iterations=50, candidates=2, batch_size=10)
    adversarial = attack(key, logits_fn, np.full((1, 3, 3, 1), 0.5, np.float32), np.array([0]))
    np.testing.assert_array_equal(adversarial.ravel(), [0.5] * 7 + [1.0] * 2)


def test_corner_search_does_not_depend_on_its_batch_size(key):
    results = [
        lj.attacks.create("corner_search", pixels=3, iterations=100, candidates=40, batch_size=size)(
            key, sum_network(3.5), GREY, np.array([0])
        )
        for size in (7, 64)
    ]
    np.testing.assert_array_equal(*results)
    assert changed_pixels(results[0], GREY).tolist() == [3]


def test_corner_search_with_many_candidates(key):
    """More than the square root of the largest int32."""
    images, label = np.full((1, 7, 7, 10), 0.5, np.float32), np.array([0])  # 49 pixels of 1,024 colours
    attack = lj.attacks.create("corner_search", pixels=2, iterations=200, candidates=50_000, batch_size=4096)
    logits_fn = sum_network(5.5)  # one black pixel falls by 5
    assert changed_pixels(attack(key, logits_fn, images, label), images).tolist() == [2]


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="pixels must be an integer, 1 or larger; got 0"):
        lj.attacks.create("pgd_l0", pixels=0)
    with pytest.raises(ValueError, match="candidates must be"):
        lj.attacks.create("corner_search", candidates=2.5)


@pytest.mark.slow
def test_robust_accuracy_at_ten_pixels_is_that_of_the_original(golden, network_a, cifar10_test, key):
    recorded = np.load(golden / "model_a_test0-127" / "pgd0_k10.npz")
    images, labels = cifar10_test(128)
    adversarial = np.asarray(lj.attacks.create("pgd_l0", pixels=10)(key, network_a, images, labels))
    assert changed_pixels(adversarial, images).max() <= 10
    robust = np.argmax(network_a(adversarial), -1) == labels
    assert robust.mean() <= 1 - recorded["success"].mean() + 0.02  # two points, with random starts; stronger is fine


@pytest.mark.slow
def test_corner_search_on_a_network(network_a, cifar10_test, key):
    images, labels = cifar10_test(8)
    attack = lj.attacks.create("corner_search", pixels=3, iterations=256, candidates=100)
    adversarial = np.asarray(attack(key, network_a, images, labels))
    fooled = np.argmax(network_a(adversarial), -1) != labels
    changed = changed_pixels(adversarial, images)
    assert changed.max() <= 3
    assert fooled.sum() >= (np.argmax(network_a(images), -1) != labels).sum()
    assert np.all(changed[~fooled] == 0)
