"""Convolution and batch normalisation against JAX's own gradients and PyTorch's definitions."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lagrangian_jax.config import YNN
from lagrangian_jax.models.layers import BatchNorm, Conv, convolution, relu

CASES = [
    (3, 1, 1, 8),
    (3, 1, 1, 16),
    (3, 2, 1, 16),
    (1, 2, 0, 16),
    (7, 2, 3, 19),
    (3, 2, 1, 9),
    (5, 1, 2, 17),
    (11, 4, 2, 23),
]


@pytest.mark.parametrize(("size", "stride", "padding", "pixels"), CASES)
def test_gradients_are_those_of_the_convolution(size, stride, padding, pixels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, pixels, pixels + 1, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 3, 4)).astype(np.float32)
    sides = ((padding, padding), (padding, padding))

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    expected, pullback = jax.vjp(plain, x, kernel)
    cotangent = rng.normal(size=expected.shape).astype(np.float32)
    out, ours = jax.vjp(lambda x, kernel: convolution(x, kernel, stride, sides), x, kernel)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(ours(cotangent), pullback(cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-4)


def exact_convolution(x, kernel, padding):
    """The convolution in float64, with one product for each position of the kernel."""
    x = lax.pad(x, np.float32(0), [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
    x = np.asarray(x, np.float64)
    rows, columns = (x.shape[axis + 1] - kernel.shape[axis] + 1 for axis in (0, 1))
    places = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    return sum(x[:, i : i + rows, j : j + columns] @ kernel[i, j].astype(np.float64) for i, j in places)


def convolutions(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text().count("stablehlo.convolution")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere convolutions are JAX's own")
class TestWinograd:
    """Convolutions with three rows, on a CPU."""

    @pytest.mark.parametrize(
        ("height", "columns", "padding"),
        [
            (16, 3, ((1, 1), (1, 1))),
            (4, 3, ((1, 1), (1, 1))),  # one tile
            (13, 3, ((0, 0), (0, 0))),
            (14, 5, ((1, 0), (2, 1))),
            (15, 1, ((2, 3), (0, 0))),
        ],
    )
    def test_values_and_gradients(self, height, columns, padding):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(10, height, 15, 32)).astype(np.float32)
        kernel = rng.normal(size=(3, columns, 32, 36)).astype(np.float32) / 10
        expected = exact_convolution(x, kernel, padding)
        out, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, 1, padding), x, kernel)
        np.testing.assert_allclose(out, expected, atol=2e-6 * np.abs(expected).max())
        cotangent = rng.normal(size=out.shape).astype(np.float32)
        by_x, by_kernel = pullback(cotangent)
        turned = np.flip(kernel, (0, 1)).swapaxes(2, 3)
        size = kernel.shape[:2]
        opposite = [(size[axis] - 1 - padding[axis][0], size[axis] - 1 - padding[axis][1]) for axis in (0, 1)]
        expected = exact_convolution(cotangent, turned, opposite)
        np.testing.assert_allclose(by_x, expected, atol=2e-6 * np.abs(expected).max())
        expected = exact_convolution(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), padding)
        np.testing.assert_allclose(by_kernel, expected.transpose(1, 2, 0, 3), atol=2e-6 * np.abs(expected).max())

    @pytest.mark.parametrize(("size", "channels"), [(16, 64), (4, 256)])
    def test_rounding_is_at_most_three_times_that_of_a_plain_convolution(self, size, channels):
        rng = np.random.default_rng(0)
        x = np.maximum(rng.normal(size=(32, size, size, channels)), 0).astype(np.float32)
        kernel = (rng.normal(size=(3, 3, channels, channels)) / np.sqrt(9 * channels)).astype(np.float32)
        padding = ((1, 1), (1, 1))
        exact = exact_convolution(x, kernel, padding)

        def rounding(out):
            return np.sqrt(np.mean((out - exact) ** 2) / np.mean(exact**2))

        ours = rounding(jax.jit(lambda x, kernel: convolution(x, kernel, 1, padding))(x, kernel))
        with jax.default_matmul_precision("highest"):
            plain = rounding(jax.jit(lambda x, kernel: convolution(x, kernel, 1, padding))(x, kernel))
        assert ours < 3 * plain
        assert ours < 1e-6

    def test_where_it_is_used(self):
        """Six convolutions in place of one: from 512 pixels and 32 channels on, in float32, unless told otherwise."""

        def count(batch, size, features, results, stride=1, dtype=jnp.float32, rows=3):
            x, kernel = jnp.zeros((batch, size, size, features), dtype), jnp.zeros((rows, 3, features, results), dtype)
            padding = ((rows // 2, rows // 2), (1, 1))
            return convolutions(lambda x, kernel: convolution(x, kernel, stride, padding), x, kernel)

        assert count(8, 8, 32, 48) == 6
        assert count(7, 8, 32, 48) == 1
        assert count(8, 8, 31, 48) == 1
        assert count(8, 8, 48, 31) == 1
        assert count(200, 3, 48, 48) == 1
        assert count(8, 8, 48, 48, stride=2) == 1
        assert count(8, 8, 48, 48, rows=5) == 1
        assert count(8, 8, 48, 48, dtype=jnp.bfloat16) == 1
        with jax.default_matmul_precision("highest"):
            assert count(8, 8, 32, 48) == 1


def test_batch_norm_statistics_are_pytorchs():
    """Batch mean and biased variance normalise; the running variance takes the unbiased one, momentum 0.1 of it."""
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 2, 2, 5)).astype(np.float32)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)
    out, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * variance * 8 / 7, rtol=1e-5)
    evaluated = layer.apply({**variables, "batch_stats": updated["batch_stats"]}, x, train=False)
    stats = jax.device_get(updated["batch_stats"])
    np.testing.assert_allclose(evaluated, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5), atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_batch_norm_over_an_axis_is_that_of_the_whole_batch(offset):
    """Parts whose means differ by more than they spread: values, statistics and gradients, and one collective each."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 4, 3, 5, 5, 2)).astype(np.float32)
    x += offset + 4 * np.arange(4, dtype=np.float32)[:, None, None, None, None]
    whole, parts = BatchNorm(), BatchNorm(axis_name="data")
    variables = whole.init(jax.random.key(0), x[0], train=False)

    def run(layer, x):
        return jax.vjp(lambda x: layer.apply(variables, x, train=True, mutable=["batch_stats"]), x)

    (wanted, stats), pullback = run(whole, x.reshape(12, 5, 5, 2))
    zeros = jax.tree.map(jnp.zeros_like, stats)
    (by_x,) = pullback((cotangent.reshape(12, 5, 5, 2), zeros))

    def part(x, cotangent):
        (out, stats), pullback = run(parts, x)
        return out, stats, pullback((cotangent, zeros))[0]

    out, shared, got = jax.vmap(part, axis_name="data")(x, cotangent)
    np.testing.assert_allclose(out.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.reshape(by_x.shape), by_x, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, jnp.stack([b] * 4), rtol=1e-5), shared, stats)
    program = str(jax.make_jaxpr(part, axis_env=[("data", 4)])(x[0], cotangent[0]))
    assert program.count("psum") == 2  # forwards and backwards, one


def test_batch_norm_keeps_statistics_in_float32_under_bfloat16():
    x = (1000 + np.random.default_rng(0).normal(size=(4, 8, 8, 2))).astype(np.float32)
    layer = BatchNorm(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=False)
    _, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert updated["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)


def test_batch_norm_gradients_are_summed_in_float32_under_bfloat16():
    """In bfloat16 a sum over 16,384 positions stops growing: that of the bias ended at an eighth of itself."""
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(1.0, 2.0, size=(16, 32, 32, 3)), jnp.bfloat16) for _ in range(2))
    layer = BatchNorm(dtype=jnp.bfloat16)
    stats = {"mean": jnp.ones(3), "var": jnp.full(3, 4.0)}

    @jax.jit
    def gradients(params, x, cotangent):
        return jax.vjp(lambda p: layer.apply({"params": p, "batch_stats": stats}, x, train=False), params)[1](cotangent)

    (got,) = gradients({"scale": jnp.ones(3), "bias": jnp.ones(3)}, x, cotangent)
    x, cotangent = (np.asarray(array, np.float64) for array in (x, cotangent))
    np.testing.assert_allclose(got["bias"], cotangent.sum((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(got["scale"], (cotangent * (x - 1) / 2).sum((0, 1, 2)), rtol=1e-4, atol=0.5)


def test_biases_of_convolutions_have_gradients_summed_in_float32_under_bfloat16():
    layer = Conv(3, 1, use_bias=True, dtype=jnp.bfloat16)
    x = jnp.ones((16, 32, 32, 1))
    variables = layer.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x).astype(jnp.float32))))(variables)
    np.testing.assert_allclose(gradient["params"]["bias"], x.size, rtol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_gradients_are_those_of_its_formula(train):
    """Against the same formula in float64, differentiated by hand."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(1.0, 2.0, size=(2, 4, 3, 3, 5))
    scale, bias, mean, var = rng.uniform(0.5, 2.0, size=(4, 5))
    layer = BatchNorm()
    stats = {"mean": mean.astype(np.float32), "var": var.astype(np.float32)}

    def apply(x, params):
        out = layer.apply({"params": params, "batch_stats": stats}, x, train=train, mutable=["batch_stats"])
        return out[0]

    params = {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
    _, pullback = jax.vjp(apply, x.astype(np.float32), params)
    got_x, got_params = pullback(cotangent.astype(np.float32))

    axes = (0, 1, 2)
    mean, var = (x.mean(axes), x.var(axes)) if train else (mean, var)
    unit = (x - mean) / np.sqrt(var + 1e-5)
    wanted = cotangent
    if train:
        wanted = cotangent - cotangent.mean(axes) - unit * (cotangent * unit).mean(axes)
    np.testing.assert_allclose(got_x, wanted * scale / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got_params["scale"], (cotangent * unit).sum(axes), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got_params["bias"], cotangent.sum(axes), rtol=1e-4, atol=1e-4)


class Normalised(nn.Module):
    """A convolution and its normalisation, folded into one or one after the other."""

    folded: bool
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        conv = Conv(5, 3, 2, 1, use_bias=self.use_bias, dtype=self.dtype, name="conv")
        norm = BatchNorm(dtype=self.dtype, name="norm")
        return norm(x, train, of=conv) if self.folded else norm(conv(x), train)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_the_norm_of_a_convolution_is_that_of_its_result(train, use_bias):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(1.0, 2.0, size=(4, 8, 8, 3)), rng.normal(size=(4, 4, 4, 5))
    x, cotangent = x.astype(np.float32), cotangent.astype(np.float32)
    variables = Normalised(False, use_bias).init(jax.random.key(0), x, train=False)
    variables = jax.tree.map(lambda leaf: leaf + rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), variables)

    def results(network):
        apply = functools.partial(network.apply, train=train, mutable=["batch_stats"])
        out, pullback, updated = jax.vjp(apply, variables, x, has_aux=True)
        return out, updated, pullback(cotangent)

    expected = results(Normalised(False, use_bias))
    for got, wanted in zip(*map(jax.tree.leaves, (results(Normalised(True, use_bias)), expected)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_offsets_of_convolutions_have_gradients_summed_in_float32_under_bfloat16():
    x, layer = jnp.ones((16, 64, 64, 3)), Normalised(True, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=False)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x, train=False).astype(jnp.float32))))(variables)
    np.testing.assert_allclose(gradient["params"]["norm"]["bias"], 16 * 32 * 32, rtol=1e-6)


def test_relu_and_its_derivative_forwards_and_backwards():
    x = np.array([-np.inf, -2, -1e-30, -0.0, 0.0, 1e-30, 3, np.inf], np.float32)
    out, tangent = jax.jvp(relu, (x,), (np.full_like(x, 5),))
    np.testing.assert_array_equal(out, np.maximum(x, 0))
    np.testing.assert_array_equal(tangent, 5 * (x > 0))
    np.testing.assert_array_equal(jax.vjp(relu, x)[1](np.full_like(x, 5))[0], 5 * (x > 0))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a setting of XLA's CPU compiler")
def test_sums_round_little_and_convolutions_are_not_left_to_ynn():
    """What `config.prepare_jax` sets is understood, and does both."""
    x = jnp.asarray(0.5 + np.random.default_rng(0).normal(size=(50, 32, 32, 8)), jnp.float32)

    def compiled(function, *arguments):
        options = {"xla_cpu_experimental_ynn_fusion_type": YNN}
        return jax.jit(function, compiler_options=options).lower(*arguments).compile()

    expected = np.sum(np.asarray(x), (0, 1, 2), np.float64)
    sums = compiled(lambda x: jnp.sum(x, (0, 1, 2)), x)
    np.testing.assert_allclose(sums(x), expected, rtol=5e-7)  # in order, it would be 3e-6
    images, kernel = jnp.zeros((8, 16, 16, 64)), jnp.zeros((3, 3, 64, 64))
    program = compiled(lambda x, kernel: convolution(x, kernel, 1, ((1, 1), (1, 1))), images, kernel)
    assert "__ynn_fusion" in sums.as_text()
    assert "__ynn_fusion" not in program.as_text()
