"""The operation counter of the benchmarks against counts worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

import lagrangian_jax as lj
from lagrangian_jax import config as configuration
from lagrangian_jax.models.layers import convolution

operations = pytest.importorskip("benchmarks.operations")


def _arrays(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_a_convolution_cost_what_it_costs(stride):
    def forward(x, kernel):
        return convolution(x, kernel, stride, ((1, 1), (1, 1)))

    x, kernel = _arrays((2, 8, 8, 3), (3, 3, 3, 5))
    one = 2 * 2 * (8 // stride) ** 2 * 5 * 9 * 3
    assert operations.count(forward, x, kernel) == one
    assert operations.count(jax.grad(lambda x, k: forward(x, k).sum(), 0), x, kernel) == one
    assert operations.count(jax.grad(lambda x, k: forward(x, k).sum(), 1), x, kernel) == one


def test_resnet18_is_1_11_gflop_and_its_attack_has_no_weight_gradients():
    network = lj.models.create("resnet18")
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    (images,) = _arrays((1, 32, 32, 3))

    def forward(variables, images):
        return network.apply(variables, images).sum()

    def five_steps(variables, images):
        return jax.lax.fori_loop(0, 5, lambda i, x: x + jax.grad(forward, 1)(variables, x), images)

    one = operations.count(forward, variables, images)
    assert one / 1e9 == pytest.approx(1.111, abs=1e-3)
    assert operations.count(five_steps, variables, images) / one == pytest.approx(10, rel=1e-3)


def test_a_search_goes_round_as_often_as_is_said():
    def search(a, b):
        def step(carry):
            a, _ = carry
            unused = jax.grad(lambda b: jnp.sum(a @ b))(b)  # a weight gradient that nothing depends on
            return a @ b, 0 * jnp.sum(a) + jnp.zeros_like(unused)[0, 0]

        return jax.lax.while_loop(lambda carry: jnp.any(carry[0] > 0), step, (a, 0.0))[0]

    assert operations.count(search, *_arrays((2, 4), (4, 4)), rounds=7) == 7 * 2 * 2 * 4 * 4


# The gradients by the images and the other passes of each attack, with the parameters of the CIFAR-10 recipe.
EVALUATIONS = {
    "standard": (0, 0),
    "lagrangian": (5, 0),
    "pgd_linf": (10, 0),
    "pgd_l2": (10, 0),
    "trades": (10, 1),  # the clean prediction
    "mart": (10, 0),
    "msd": (50, 150),  # three candidates a step
    "ddn": (100, 0),
    "mma": (10, 12),  # clean, and a bisection of 11 points
    "iaat": (30, 3),  # two trial attacks and one to train on; clean, and a judgement of each trial
    "threshold_linf": (10, 1),  # the confidence
    "threshold_l2": (10, 1),
    "pat": (10, 1),  # what is classified correctly
    "jpeg": (10, 0),
    "carlini_wagner": (250, 1),  # at most; what is misclassified already
}


@pytest.mark.parametrize("name", lj.methods.names())
def test_evaluations_of_each_method(name):
    benchmark = pytest.importorskip("benchmarks.methods")
    config = configuration.load(f"cifar10:{name}")
    values = {k: v for k, v in config.method.items() if k != "name"} | ({"distance": "l2"} if name == "pat" else {})
    assert benchmark.evaluations(lj.methods.create(name, **values), values.get("steps", 1)) == EVALUATIONS[name]
