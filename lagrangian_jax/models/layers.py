"""Convolution, linear layer, batch normalisation and initialisers with PyTorch's semantics, in NHWC."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lagrangian_jax.models import winograd
from lagrangian_jax.models.winograd import LAYOUT, Padding

# PyTorch's default for convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# torchvision's for its ResNets: kaiming_normal_(mode="fan_out", nonlinearity="relu").
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# The one of the CIFAR networks with option A: kaiming_normal_.
kaiming_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def torch_bias_uniform(fan_in: int):
    """PyTorch's default for a bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    limit = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def convolution(
    x: Array, kernel: Array, stride: int, padding: Padding, precision: lax.Precision | None = None
) -> Array:
    """`lax.conv_general_dilated`, NHWC x HWIO -> NHWC, written so that XLA's CPU compiler makes it fast.

    On a CPU, kernels of three rows need half of the products (`winograd`) where that pays, unless
    ``jax.default_matmul_precision`` asks for more than the default, and gradients are written out. On other devices all
    is JAX's own, and ``precision`` sets the precision of products of float32. There is no forward mode (`jax.jvp`) on
    any device. ``benchmarks/README.md`` has the measurements.
    """
    exact = jax.config.values["jax_default_matmul_precision"] not in (None, "default")
    return _convolution(x, kernel, stride, padding, precision, exact)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolution(x, kernel, stride, padding, precision, exact):
    direct = functools.partial(_direct, stride=stride, padding=padding, precision=precision)
    if exact or not _by_winograd(x, kernel, stride):
        return direct(x, kernel)

    def on_cpu(x, kernel):
        return winograd.convolution(x, kernel, padding)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=direct)


def _direct(x, kernel, stride, padding, precision):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, precision=precision)


def _by_winograd(x, kernel, stride):
    """Whether saving half of the products is worth the extra passes over the images and the kernel."""
    batch, height, width, features = x.shape
    return (
        kernel.shape[0] == 3
        and stride == 1
        and x.dtype == jnp.float32
        and min(features, kernel.shape[3]) >= 32
        and height >= 4
        and batch * height * width >= 512
    )


def _convolution_forward(x, kernel, stride, padding, precision, exact):
    return _convolution(x, kernel, stride, padding, precision, exact), (x, kernel)


def _convolution_backward(stride, padding, precision, exact, residuals, cotangent):
    def elsewhere(x, kernel, cotangent):
        direct = functools.partial(_direct, stride=stride, padding=padding, precision=precision)
        return jax.vjp(direct, x, kernel)[1](cotangent)

    def on_cpu(x, kernel, cotangent):
        by_x = _input_gradient(cotangent, kernel, x.shape, stride, padding, exact)
        return by_x, _kernel_gradient(x, cotangent, kernel.shape, stride, padding)

    return lax.platform_dependent(*residuals, cotangent, cpu=on_cpu, default=elsewhere)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _input_gradient(cotangent, kernel, shape, stride, padding, exact):
    # Inside a `while` loop the compiler turns the gradient as JAX writes it, with the kernel's features swapped by the
    # dimension numbers, into a plain loop nest, five times slower than its library. So swap the kernel itself.
    rows, columns, features, results = kernel.shape
    taps = jnp.flip(kernel, (0, 1)).reshape(rows * columns, features, results)
    swapped = _transposed(taps).reshape(rows, columns, results, features)
    sides = []
    for axis in (0, 1):
        size = kernel.shape[axis]
        low = size - 1 - padding[axis][0]
        high = shape[axis + 1] + size - 2 - (cotangent.shape[axis + 1] - 1) * stride - low
        sides.append((low, high))
    if not exact and _by_winograd(cotangent, swapped, stride):
        return winograd.convolution(cotangent, swapped, (sides[0], sides[1]))
    return lax.conv_general_dilated(
        cotangent, swapped, (1, 1), sides, lhs_dilation=(stride, stride), dimension_numbers=LAYOUT
    )


def _kernel_gradient(x, cotangent, shape, stride, padding):
    """A convolution of the images with the result's cotangent, in which examples and features change places."""
    batch, height, width, features = x.shape
    turned = _transposed(x.swapaxes(0, 1).reshape(height, batch, width * features))
    turned = turned.reshape(height, width, features, batch).transpose(2, 0, 1, 3)
    sides = []
    for axis in (0, 1):
        low = padding[axis][0]
        sides.append((low, shape[axis] + (cotangent.shape[axis + 1] - 1) * stride - x.shape[axis + 1] - low))
    gradient = lax.conv_general_dilated(
        turned,
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        sides,
        rhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    return gradient.transpose(1, 2, 0, 3)


def _transposed(matrices):
    """The matrices transposed, one after the other: in one operation, the compiler would fuse them with what comes
    before or after, and go through memory in the wrong order, ten times slower.
    """
    return lax.map(jnp.transpose, matrices)


class Conv(nn.Module):
    """A 2-D convolution with explicit padding, one number for all sides or a pair for each axis; computes in ``dtype``,
    keeps parameters in float32. ``factor`` (features,) scales the result, by scaling the kernel and the bias.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int | Padding = 0
    use_bias: bool = False
    kernel_init: Any = torch_uniform
    dtype: Any = jnp.float32
    precision: lax.Precision | None = None

    @nn.compact
    def __call__(self, x: Array, factor: Array | float = 1.0) -> Array:
        size = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features))
        kernel = jnp.broadcast_to(factor, kernel.shape) * kernel
        sides = self.padding if isinstance(self.padding, tuple) else ((self.padding, self.padding),) * 2
        x = convolution(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, sides, self.precision)
        if self.use_bias:
            bias = factor * self.param("bias", torch_bias_uniform(size * size * kernel.shape[2]), (self.features,))
            # Added in float32, so that the bias's gradient is summed in it.
            x = (x + jnp.broadcast_to(bias, x.shape)).astype(self.dtype)
        return x


# So few products that a GPU or TPU, too, may compute them in full float32, where the default is less precise.
Dense = functools.partial(nn.Dense, kernel_init=torch_uniform, precision=lax.Precision.HIGHEST)


class BatchNorm(nn.Module):
    """Batch normalisation as in PyTorch: the running variance averages unbiased batch variances (Flax: biased).

    Statistics and sums are float32 whatever the compute precision. With ``axis_name`` the statistics are those of the
    global batch. If a convolution ``of`` is given, its result on ``x`` is normalised; in evaluation mode its kernel
    absorbs the factor, and only an offset remains to be added.

    Attributes:
      momentum: share of the old running statistics that is kept; 0.9 is PyTorch's 0.1.
      axis_name: mesh axis over which the batch is split, or None for the statistics of the local batch.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool, of: Conv | None = None) -> Array:
        features = x.shape[-1] if of is None else of.features
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(features))
        running_var = self.variable("batch_stats", "var", lambda: jnp.ones(features))
        if train:
            x = x if of is None else of(x)
            mean, var = self._batch_statistics(x, running_mean, running_var)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        if of is not None and not train:
            # Added in the convolution's type, so that a GPU fuses the two; the offset's gradient is summed in float32.
            x = of(x, factor)
            return x + jnp.broadcast_to(offset, x.shape).astype(self.dtype)
        # In float32, so that the gradients of scale and bias, and through the statistics, are summed in it.
        factor, offset = (jnp.broadcast_to(values, x.shape) for values in (factor, offset))
        return (x.astype(jnp.float32) * factor + offset).astype(self.dtype)

    def _batch_statistics(self, x, running_mean, running_var):
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.float32)
        count = x.size // x.shape[-1]
        mean = jnp.mean(x, axes)
        # The derivative of the variance with respect to the mean is zero, since deviations sum to zero.
        var = jnp.mean(jnp.square(x - jnp.broadcast_to(lax.stop_gradient(mean), x.shape)), axes)
        parts = 1 if self.axis_name is None or self.is_initializing() else lax.axis_size(self.axis_name)
        if parts > 1:
            # In one collective, since the next layer waits for it: the variance of the whole batch is the mean of the
            # parts' variances plus the variance of their means, which are taken relative to the running mean, so that
            # little cancels.
            near = running_mean.value
            off = mean - near
            off, square, within = lax.pmean(jnp.stack([off, jnp.square(off), var]), self.axis_name)
            mean, var = near + off, within + (square - jnp.square(off))
            count *= parts
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var * (count / max(1, count - 1))
        return mean, var


@jax.custom_jvp
def relu(x: Array) -> Array:
    """max(x, 0), whose derivative is read off the result: nothing else is kept, and a compiler may fuse it into a
    convolution.
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals, tangents):
    y = relu(*primals)
    return y, jnp.where(y != 0, tangents[0], 0)  # XLA would turn "y > 0" into "x > 0", and keep x


def mean_over_positions(x: Array) -> Array:
    """Average pooling of a whole map, (B, H, W, C) -> (B, C) float32."""
    # XLA's CPU compiler fuses the preceding block into the sum, which gives NaN in bfloat16 (JAX 0.11).
    x = x if x.dtype == jnp.float32 else lax.optimization_barrier(x)
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def normalise(images: Array, mean: Sequence[float] | None, std: Sequence[float] | None) -> Array:
    """(images - mean) / std per channel; the identity if both are None."""
    if mean is not None:
        images = images - jnp.broadcast_to(jnp.asarray(mean, images.dtype), images.shape)
    return images if std is None else images / jnp.broadcast_to(jnp.asarray(std, images.dtype), images.shape)


def torch_buffers(mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, np.ndarray]:
    """The normalisation as DeepMind's PyTorch networks keep it among their weights: ``mean`` and ``std``, (C, 1, 1)."""
    given = {"mean": (0.0, 0.0, 0.0) if mean is None else mean, "std": (1.0, 1.0, 1.0) if std is None else std}
    return {name: np.asarray(values, np.float32).reshape(-1, 1, 1) for name, values in given.items()}


def same_padding(size: int, stride: int) -> Padding:
    """TensorFlow's SAME for lengths that the stride divides: uneven padding has the extra pixel at the end."""
    total = max(size - stride, 0)
    return ((total // 2, total - total // 2),) * 2


def activation(name: str, train: bool) -> Callable[[Array], Array]:
    """What follows a batch normalisation: "relu" or "swish" (x times its sigmoid, PyTorch's SiLU)."""
    if name not in ("relu", "swish"):
        raise ValueError(f"activation must be 'relu' or 'swish'; got {name!r}")
    if name == "swish":
        return nn.swish
    # In training the normalisation keeps its input anyway, from which the derivative is computed.
    return nn.relu if train else relu
