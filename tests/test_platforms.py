"""Programs for a GPU and a TPU, as they are lowered on any machine.

There, a float32 product is by default computed from fewer digits: 11 bits on a GPU, 8 on a TPU. Only the convolutions
of a network may be computed so; all other products must ask for all digits.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import lagrangian_jax as lj
from benchmarks.floors import device
from lagrangian_jax import methods
from lagrangian_jax.attacks.attack import Attack
from lagrangian_jax.models.alexnet import adaptive_average_pool
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.models.segmentation import resize_corners
from lagrangian_jax.parallel import AXIS
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, training_step
from tests.test_every_attack import CASES

BATCH, SIZE, CLASSES = 4, 16, 5
IMAGES = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)
LABELS = jax.ShapeDtypeStruct((BATCH,), jnp.int32)


def lowered(function, *arguments):
    """The program for both, after checking that nothing in it needs the host, or 64-bit numbers."""
    with jax.default_matmul_precision("default"):  # on a GPU the tests themselves ask for more (CONTRIBUTING.md)
        text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda", "tpu")).as_text()
    assert "custom_call" not in text
    assert "f64" not in text
    return text


def products(text):
    """For each convolution and matrix product: whether it asks for all digits, and its type."""
    lines = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.*", text)
    return [(line.count("HIGHEST") == 2, re.search(r"x([a-z]\w*)>$", line)[1]) for line in lines]


def logits_of(images):
    """The logits of a network without convolutions or matrix products."""
    return jnp.stack([(i + 1) * jnp.mean(images[..., i % 3], (1, 2)) for i in range(CLASSES)], -1)


@pytest.mark.parametrize("case", CASES)
def test_an_attack_s_products_have_all_digits(case):
    bounds, others = CASES[case]
    attack = lj.attacks.create(case.split()[0], **bounds, **others)
    assert isinstance(attack, Attack)
    text = lowered(lambda key, *batch: attack(key, logits_of, *batch), jax.random.key(0), IMAGES, LABELS)
    assert all(exact for exact, _ in products(text))


@pytest.fixture(scope="module")
def tpu():
    """A TPU v5e that need not be at hand: its compiler is in the package libtpu (``pip install -e '.[tpu,test]'``)."""
    pytest.importorskip("libtpu")
    return NamedSharding(Mesh(np.array([device("v5e:2x2")]), (AXIS,)), P())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_attack_is_compiled_for_a_tpu(case, tpu):
    bounds, others = CASES[case]
    attack = lj.attacks.create(case.split()[0], **bounds, **others)
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=tpu), (jax.random.key(0), IMAGES, LABELS)
    )
    program = jax.jit(lambda key, *batch: attack(key, logits_of, *batch)).lower(*given).compile()
    assert program.memory_analysis().generated_code_size_in_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_gpu_computes_a_network_in_passes_of_convolutions(name, dtype):
    """In evaluation mode, as attacks see it: cuDNN ends them with the normalisation, the shortcut and the ReLU."""
    pytest.importorskip("jax_cuda12_plugin", reason="the compiler for a GPU (pip install -e '.[cuda,test]')")
    network = lj.models.create(name, num_classes=CLASSES, dtype=dtype)
    gpu = SingleDeviceSharding(device("h100"))
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=gpu), (variables, images))
    gradient = jax.grad(lambda variables, images: jnp.sum(network.apply(variables, images)), argnums=1)
    with jax.default_matmul_precision("default"):
        text = jax.jit(gradient).lower(*given).compile().as_text()
    forwards = len(jax.tree.leaves(variables["batch_stats"])) // 2  # one normalisation a convolution
    assert text.count('custom_call_target="__cudnn$convBiasActivationForward"') >= forwards
    assert "maximum(" not in text


@pytest.mark.parametrize("name", ["l2", "lpips_alexnet_cifar", "ssim"])
def test_a_distance_s_products_have_all_digits(name):
    """PPGD takes differences of features of images that differ in the fifth digit."""
    distance = lj.distances.create(name)
    found = products(lowered(jax.grad(lambda a, b: jnp.sum(distance(a, b))), IMAGES, IMAGES))
    assert len(found) >= {"l2": 0, "lpips_alexnet_cifar": 15, "ssim": 10}[name]
    assert all(exact for exact, _ in found)


@pytest.mark.parametrize("function", [adaptive_average_pool, lambda x, size: resize_corners(x, (size, size))])
def test_resizing_has_all_digits(function):
    found = products(lowered(functools.partial(function, size=6), IMAGES))
    assert set(found) == {(True, "f32")}


@pytest.mark.parametrize("name", ["resnet18", "resnet8", "preact_resnet18", "wide_resnet28_10"])
def test_logits_have_all_digits_and_convolutions_are_fast(name):
    narrow = {"widen_factor": 1} if "wide" in name else {"width": 2}
    network = lj.models.create(name, num_classes=CLASSES, dtype=jnp.bfloat16, **narrow)
    variables = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    found = products(lowered(network.apply, variables, IMAGES))
    assert set(found) == {(False, "bf16"), (True, "f32")}


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_a_training_step(name):
    network = ResNet(stages=(1,), num_classes=CLASSES, width=2, dtype=jnp.bfloat16)
    method, optimizer = methods.create(name), optax.sgd(0.1, 0.9)
    step = training_step(network, method, optimizer, dict(padding=1, mode="reflect", flip=True), 9, 0.9)
    run = resident_steps(step, Mesh(np.array(jax.devices()[:1]), (AXIS,)))

    def new_state():
        return initial_state(jax.random.key(0), network, (SIZE, SIZE, 3), optimizer, method.memory(BATCH), True)

    images, index = jax.ShapeDtypeStruct(IMAGES.shape, jnp.uint8), jax.ShapeDtypeStruct((2, BATCH), jnp.int32)
    text = lowered(run, jax.eval_shape(new_state), images, LABELS, index)
    assert all(exact or kind == "bf16" for exact, kind in products(text))
