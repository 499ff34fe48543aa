"""The operation counter of the benchmarks against counts worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

import lagrangian_jax as lj
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
