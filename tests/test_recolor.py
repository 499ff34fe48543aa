"""ReColorAdv: colour conversions, the grid, the bound, and the recorded values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.attacks import recolor as module

RESOLUTION = (16, 32, 32)
SMALL = (4, 5, 6)
project_grid = jax.jit(module.project_grid)


@pytest.fixture(scope="module")
def recorded(original):
    return np.load(original / "components" / "recoloradv.npz")


def planes(stacked):
    return tuple(jnp.moveaxis(jnp.asarray(stacked), -1, 0))


def stack(channels):
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def channels_first(grid):
    return jnp.moveaxis(jnp.asarray(grid, jnp.float32), -1, 1)


def red_network(images):
    """Class 0 while red is, on average, the strongest channel."""
    red, green, blue = jnp.moveaxis(10 * images.mean(axis=(1, 2)), -1, 0)
    return jnp.stack([red, green, blue], axis=-1)


@pytest.mark.parametrize(
    ("rgb", "luv"),
    [
        ((1, 1, 1), (1, 0.50028, 0.50020)),
        ((1, 0, 0), (0.5323, 1.3754, 0.6889)),
        ((0, 1, 0), (0.8774, 0.0848, 1.0372)),
        ((0, 0, 1), (0.3230, 0.4531, -0.1517)),
        ((0, 0, 0), (0, 0.5, 0.5)),
    ],
)
def test_reference_colours(rgb, luv):
    np.testing.assert_allclose(stack(module.rgb_to_luv(planes(np.float32(rgb)))), luv, atol=1e-4)


def test_conversions_are_inverse_up_to_the_digits_of_the_matrices():
    rgb = np.random.default_rng(0).random((1000, 3), np.float32)
    there_and_back = jax.jit(lambda colors: module.luv_to_rgb(module.rgb_to_luv(colors)))
    np.testing.assert_allclose(stack(there_and_back(planes(rgb))), rgb, atol=2e-3)


@pytest.mark.parametrize("color", [(0, 0, 0), (1, 1, 1), (1, 0, 0), (0.001, 0, 0), (0.5, 0.5, 0.5)])
def test_conversions_have_finite_gradients(color):
    def total(convert, x):
        return sum(jnp.sum(channel) for channel in convert(planes(x)))

    @jax.jit
    def gradients(rgb):
        luv = jnp.stack(module.rgb_to_luv(planes(rgb)))
        towards_luv, towards_rgb = (
            jax.grad(functools.partial(total, c)) for c in (module.rgb_to_luv, module.luv_to_rgb)
        )
        return towards_luv(rgb), towards_rgb(luv)

    for gradient in gradients(jnp.asarray(color, jnp.float32)):
        assert np.isfinite(gradient).all()


def test_the_gamut_clip_without_gamma_is_the_one_with_it():
    identity = module.identity_grid(RESOLUTION)[None]
    grid = identity + 0.05 * jax.random.normal(jax.random.key(0), identity.shape)
    round_trip = jax.jit(lambda colors: module.rgb_to_luv(module.luv_to_rgb(colors)))(
        tuple(np.moveaxis(np.clip(grid, 0, 1), 1, 0))
    )
    expected = np.clip(np.stack(round_trip, 1), identity - 0.06, identity + 0.06)
    np.testing.assert_allclose(project_grid(grid, identity, 0.06), expected, atol=5e-6)


def test_the_lookup_interpolates_and_saturates():
    identity = module.identity_grid(SMALL)[None]
    colors = np.array([[[[0.1, 0.55, 0.99], [1.4, -0.3, 0.5]]]], np.float32)
    found = stack(module.trilinear_lookup(planes(colors), SMALL)(identity))
    np.testing.assert_allclose(found[0, 0, 0], colors[0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[0, 0, 1], [1, 0, 0.5], atol=1e-6)  # outside: the nearest border


def test_the_lookup_gradient_is_the_weights():
    colors = np.full((1, 1, 1, 3), 0.3, np.float32)
    lookup = module.trilinear_lookup(planes(colors), SMALL)
    gradient = jax.grad(lambda grid: jnp.sum(lookup(grid)[1]))(jnp.zeros((1, 3, *SMALL)))
    assert float(gradient[:, 1].sum()) == pytest.approx(1)
    assert int((gradient != 0).sum()) == 8


def test_roughness_of_one_node():
    offset = jnp.zeros((1, 3, *SMALL)).at[0, :, 2, 2, 2].set(jnp.array([2.0, 3.0, 6.0]))
    assert float(module.grid_roughness(offset)[0]) == pytest.approx(2 * 6 * 7.0, abs=1e-2)


def test_the_grid_stays_within_the_bound():
    identity = module.identity_grid(SMALL)[None]
    grid = identity + jax.random.normal(jax.random.key(0), (2, *identity.shape[1:]))
    for bound in (0.0, 0.06, 0.2):
        assert float(jnp.abs(project_grid(grid, identity, bound) - identity).max()) <= bound + 1e-6


def test_a_bound_of_zero_returns_colours_within_the_grid(key):
    images = jax.random.uniform(key, (1, 8, 8, 3), minval=0.35, maxval=0.65)
    attack = lj.attacks.create("recolor", bound=0.0, steps=2, resolution=SMALL)
    adversarial = attack(key, red_network, images, np.array([0]))
    np.testing.assert_allclose(adversarial, images, atol=3e-3)


def test_a_colour_moves_to_the_corner_of_its_bound(key):
    """Along the signs of the gradient in CIELUV, with all that are equal to it."""
    colour, bound = (0.6, 0.4, 0.35), 0.03

    def loss(luv):
        return module.luv_to_rgb(luv)[1] - module.luv_to_rgb(luv)[0]  # green is the nearest other class

    luv = module.rgb_to_luv(colour)
    corner = tuple(value + bound * jnp.sign(slope) for value, slope in zip(luv, jax.grad(loss)(luv), strict=True))
    options = dict(bound=bound, steps=20, step_size=0.01, smoothness=0.0, resolution=RESOLUTION)
    images = np.tile(np.array(colour, np.float32), (1, 4, 4, 1))
    adversarial = lj.attacks.create("recolor", **options)(key, red_network, images, np.array([0]))
    expected = np.broadcast_to(stack(module.luv_to_rgb(corner)), images.shape)
    np.testing.assert_allclose(adversarial, expected, atol=1e-5)


def test_best_is_never_weaker_than_last(key):
    images = jax.random.uniform(key, (3, 4, 4, 3))
    labels = np.asarray(jnp.argmax(red_network(images), -1))
    parameters = dict(bound=0.1, steps=7, step_size=0.08, resolution=SMALL)
    margins = [
        lj.losses.margin(
            red_network(lj.attacks.create("recolor", keep=keep, **parameters)(key, red_network, images, labels)), labels
        )
        for keep in ("best", "last")
    ]
    assert np.all(np.asarray(margins[0]) >= np.asarray(margins[1]) - 1e-6)


def test_grey_images_are_refused(key):
    with pytest.raises(ValueError, match="3 channels"):
        lj.attacks.create("recolor")(key, lambda x: x.mean((1, 2)) @ jnp.ones((1, 2)), jnp.zeros((1, 4, 4, 1)), [0])


def test_conversions_match_the_original(recorded):
    rgb, luv, weights = (jnp.asarray(recorded[name]) for name in ("rgb_colors", "luv_colors", "weights"))
    np.testing.assert_allclose(stack(module.rgb_to_luv(planes(rgb))), recorded["luv_colors"], atol=1e-5)
    np.testing.assert_allclose(stack(module.luv_to_rgb(planes(luv))), recorded["luv_back_to_rgb"], atol=1e-5)
    random = stack(module.luv_to_rgb(planes(recorded["random_luv"])))
    np.testing.assert_allclose(random, recorded["random_luv_to_rgb"], atol=1e-5)

    def weighted(convert):
        return lambda x: jnp.sum(jnp.stack(convert(planes(x)), -1) * weights)

    gradient = jax.grad(weighted(module.rgb_to_luv))(rgb)
    np.testing.assert_allclose(gradient, recorded["grad_weighted_from_rgb_wrt_rgb"], atol=1e-4)
    gradient = jax.grad(weighted(module.luv_to_rgb))(luv)
    np.testing.assert_allclose(gradient, recorded["grad_weighted_to_rgb_wrt_luv"], atol=1e-4)


def test_the_grid_matches_the_original(recorded):
    identity = module.identity_grid(RESOLUTION)[None]
    grid = project_grid(identity + channels_first(recorded["grid_noise"]), identity, 0.06)
    np.testing.assert_allclose(grid - identity, channels_first(recorded["grid_offset_after_projection"]), atol=1e-5)

    # The recorded image was made by a forward pass on that grid, which projects again.
    grid = project_grid(grid, identity, 0.06)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(grid):
        lookup = module.trilinear_lookup(module.rgb_to_luv(planes(recorded["images"][:2])), RESOLUTION)
        recolored, roughness = jnp.stack(module.luv_to_rgb(lookup(grid)), -1), module.grid_roughness(grid - identity)
        return jnp.sum(recolored * recorded["loss_weights"]) + 0.05 * jnp.sum(roughness), (recolored, roughness)

    (_, (recolored, roughness)), gradient = total(grid)
    np.testing.assert_allclose(recolored, recorded["recolored"], atol=2e-5)
    np.testing.assert_allclose(roughness, recorded["smoothness"], rtol=1e-5)
    gradient = np.moveaxis(np.asarray(gradient), 1, -1)
    expected = np.float32(recorded["grad_grid_of_weighted_sum_plus_0p05_smoothness"])  # recorded in float16
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=5e-3)
    norms = np.sqrt(np.square(gradient).sum((1, 2, 3, 4)))
    np.testing.assert_allclose(norms, recorded["grad_grid_norm_float32"], rtol=1e-5)
    np.testing.assert_allclose(gradient.sum((1, 2, 3)), recorded["grad_grid_sum_float32"], atol=1e-4)


@pytest.mark.slow
def test_whole_attacks_match_the_original(recorded, network_a, key):
    """Loosely: at the start the forces on most nodes are rounding errors, of which Adam takes the sign."""
    images, labels = recorded["images"], recorded["labels"]
    for steps in (1, 5, 20):
        adversarial = lj.attacks.create("recolor", steps=steps)(key, network_a, images, labels)
        expected = recorded[f"lagrangian_unseen_attack_adv_after_{steps}_iterations"]
        assert np.abs(adversarial - expected).mean() <= 0.25 * np.abs(expected - images).mean()
        norms, norms_there = (np.sqrt(np.square(x - images).sum((1, 2, 3))) for x in (adversarial, expected))
        np.testing.assert_allclose(norms, norms_there, rtol=0.1)


@pytest.mark.slow
def test_robust_accuracy_is_that_of_the_original(golden, network_a, cifar10_test, key):
    recorded = np.load(golden / "model_a_test0-127" / "recolor_official.npz")
    images, labels = cifar10_test(64)
    adversarial = np.asarray(lj.attacks.create("recolor", bound=0.06, steps=100)(key, network_a, images, labels))
    robust = np.argmax(network_a(adversarial), -1) == labels
    assert abs(robust.mean() - (1 - recorded["success"][:64].mean())) <= 0.02
    norms = np.sqrt(((adversarial - images) ** 2).sum((1, 2, 3)))
    assert norms.mean() == pytest.approx(recorded["l2"][:64].mean(), rel=0.05)
