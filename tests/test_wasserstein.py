"""The Wasserstein attack: the projection against a linear program, mass, cost, and edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import wasserstein
from lagrangian_jax.losses import cross_entropy

compiled = jax.jit(wasserstein.project_wasserstein, static_argnames=["power"])


def project_wasserstein(center, point, bound, power=2.0, regularisation=3000.0, steps=400, tolerance=1e-4):
    """Compiled once per shape: all numbers are arguments of the program."""
    return compiled(center, point, bound, power=power, regularisation=regularisation, steps=steps, tolerance=tolerance)


def unit_images(key, shape=(2, 6, 6, 2)):
    images = jax.random.uniform(key, shape)
    return images / images.sum((1, 2, 3), keepdims=True)


def local_moves(height, width, kernel_size=5, power=2.0):
    """Sources, targets and costs of all moves within the window, in flat indices."""
    rows, columns = (x.ravel() for x in np.mgrid[:height, :width])
    down, right = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
    source, target = np.nonzero(np.maximum(down, right) <= kernel_size // 2)
    return source, target, (down**2 + right**2)[source, target] ** (power / 2)


def transport_cost(source, target, **window):
    """The least cost of moving one channel onto another, by linear programming."""
    optimise = pytest.importorskip("scipy.optimize")
    start, end, costs = local_moves(*source.shape, **window)
    count, moves = source.size, np.arange(len(start))
    constraints = np.zeros((2 * count, len(moves)))
    constraints[start, moves] = constraints[count + end, moves] = 1
    target = target * source.sum() / target.sum()  # rounding of float32
    totals = np.concatenate([source.ravel(), target.ravel()])
    solved = optimise.linprog(costs, A_eq=constraints, b_eq=totals)
    assert solved.status == 0, solved.message
    return solved.fun


def reach_of_the_ball(center, direction, bound):
    """max <direction, V> over the ball around one channel, by linear programming."""
    optimise = pytest.importorskip("scipy.optimize")
    start, end, costs = local_moves(*center.shape)
    constraints = np.zeros((center.size, len(start)))
    constraints[start, np.arange(len(start))] = 1
    solved = optimise.linprog(
        -direction.ravel()[end], A_eq=constraints, b_eq=center.ravel(), A_ub=costs[None], b_ub=[bound]
    )
    return -solved.fun


def first_row_network(images):
    """Class 0 while the first row is brighter than the last."""
    gap = 10 * (images[:, 0].mean((1, 2)) - images[:, -1].mean((1, 2))) + 0.2
    return jnp.stack([gap, -gap], axis=-1)


@pytest.mark.parametrize("t", [-50.0, -3.0, 0.0, 1.0, 2.5, 1000.0])
def test_omega(t):
    w = wasserstein._omega(jnp.float32(t))
    assert float(w + jnp.log(w)) == pytest.approx(t, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 400])
def test_the_projection_is_feasible_whatever_the_number_of_steps(key, steps):
    center = unit_images(key)
    point = center + 0.05 * jax.random.normal(jax.random.key(1), center.shape)
    bound = jnp.array([0.1, 0.01])
    projected = np.float64(project_wasserstein(center, point, bound, regularisation=200.0, steps=steps))
    assert projected.min() >= -1e-9
    np.testing.assert_allclose(projected.sum((1, 2)), center.sum((1, 2)), atol=2e-6)
    for example in range(2):
        cost = sum(transport_cost(np.float64(center[example, ..., c]), projected[example, ..., c]) for c in range(2))
        assert cost <= bound[example] + 1e-5


def test_a_bound_of_zero_returns_the_center(key):
    center = unit_images(key)
    point = center + 0.05 * jax.random.normal(jax.random.key(1), center.shape)
    np.testing.assert_allclose(project_wasserstein(center, point, 0.0), center, atol=1e-7)


@pytest.mark.parametrize(
    ("power", "regularisation", "expected"),
    # Mass m moves by two pixels and n by one to either side. Least (1 - m - 2 n)^2 + 2 n^2 + (1 - m)^2 where all of the
    # bound is used, 2 n + 2^p m = 0.8: at n = 0, m = 0.4 for p = 1, at n = 8/45, m = 1/9 for p = 2.
    [(1.0, 1000.0, (0.0, 0.4)), (2.0, 30.0, (8 / 45, 1 / 9))],
)
def test_mass_on_one_pixel_asked_for_two_pixels_on(power, regularisation, expected):
    center = jnp.zeros((1, 1, 5, 1)).at[0, 0, 1].set(1.0)
    point = jnp.zeros((1, 1, 5, 1)).at[0, 0, 3].set(1.0)
    parameters = dict(power=power, regularisation=regularisation, steps=2000, tolerance=0.0)
    projected = np.asarray(project_wasserstein(center, point, 0.8, **parameters)).ravel()
    assert projected[0] == pytest.approx(projected[2], abs=1e-5)
    np.testing.assert_allclose(projected[[2, 3]], expected, atol=0.01)


def test_the_projection_is_the_nearest_point_of_the_ball(key):
    """No point V of the ball lies further along Y - Z than Z itself; the best V is a linear program."""
    center = unit_images(key, (1, 4, 4, 1))
    point = center + 0.02 * jax.random.normal(jax.random.key(1), center.shape)
    bound = 0.05
    projected = project_wasserstein(center, point, bound, steps=4000, tolerance=0.0)
    rest = np.float64(point - projected).ravel()
    furthest = reach_of_the_ball(np.float64(center[0, ..., 0]), rest.reshape(4, 4), bound)
    gap = furthest - rest @ np.float64(projected).ravel()
    scale = np.linalg.norm(rest) * float(jnp.linalg.norm(projected - center))
    assert -1e-4 * scale <= gap <= 0.05 * scale


def test_points_within_the_ball_are_fixed_as_the_entropy_vanishes(key):
    center = unit_images(key)
    near = project_wasserstein(center, center + 0.05 * jax.random.normal(jax.random.key(1), center.shape), 0.05)
    errors = []
    for regularisation in (1e3, 1e4):
        parameters = dict(regularisation=regularisation, steps=1000, tolerance=0.0)
        errors.append(float(jnp.abs(project_wasserstein(center, near, 0.2, **parameters) - near).max()))
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 2e-4


def test_the_attack_moves_mass_and_keeps_it(key):
    images = jnp.full((1, 6, 6, 1), 0.5)
    attack = lj.attacks.create("wasserstein", bound=0.3, step_size=0.05, regularisation=1000.0)
    adversarial = attack(key, first_row_network, images, np.array([0]))
    assert int(jnp.argmax(first_row_network(adversarial))) == 1
    assert float(adversarial.sum()) == pytest.approx(18.0, rel=1e-4)
    assert transport_cost(np.float64(images[0, ..., 0]) / 18, np.float64(adversarial[0, ..., 0]) / 18) <= 0.3 + 1e-5


def test_dark_images_do_not_overflow(key):
    """One bright pixel: in units of its mass, steps are large. And a black image, without mass to move."""
    images = jnp.zeros((2, 6, 6, 3)).at[0, 0, 2].set(0.02)
    network = lambda images: 1000 * first_row_network(images)  # noqa: E731
    adversarial = lj.attacks.create("wasserstein", steps=3)(key, network, images, np.array([0, 0]))
    assert np.isfinite(adversarial).all()
    np.testing.assert_array_equal(adversarial[1], images[1])


def test_an_even_window_is_refused(key):
    with pytest.raises(ValueError, match=r"kernel_size must be an odd integer.* got 4"):
        lj.attacks.create("wasserstein", kernel_size=4)(key, first_row_network, jnp.zeros((1, 6, 6, 3)), np.array([0]))


@pytest.mark.slow
def test_the_attack_on_a_network(network_a, cifar10_test, key):
    """A network trained against linf attacks loses a tenth of its accuracy at the publication's bound, or more."""
    images, labels = cifar10_test(32)

    def seen(images):
        logits = network_a(images)
        return cross_entropy(logits, labels).mean(), np.mean(np.argmax(logits, -1) == labels)

    losses, accuracies = [], []
    for bound in (0.0, 0.01, 0.1):
        adversarial = lj.attacks.create("wasserstein", bound=bound, steps=20)(key, network_a, images, labels)
        loss, accuracy = seen(adversarial)
        losses.append(loss)
        accuracies.append(accuracy)
    assert (losses[0], accuracies[0]) == seen(images)
    assert losses[0] < losses[1] < losses[2] - 0.03
    assert accuracies[2] <= 0.9 * accuracies[0]
