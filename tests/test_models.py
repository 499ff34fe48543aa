"""The registered networks: sizes of the publications, parts with a known answer, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lagrangian_jax as lj
from lagrangian_jax.interop import fit
from lagrangian_jax.models.layers import activation, same_padding
from lagrangian_jax.models.preact_resnet import PreActResNet
from lagrangian_jax.models.resnet import Bottleneck, ResNet, pad_shortcut
from lagrangian_jax.models.wide_resnet import WideResNet

IMAGENET = {"stem": "imagenet", "num_classes": 1000}

# Parameters as the publications and PyTorch's documentation count them.
PARAMETERS = [
    ("resnet18", {}, 11_173_962),
    ("resnet34", {}, 21_282_122),
    ("resnet50", {}, 23_520_842),
    ("resnet18", IMAGENET, 11_689_512),
    ("resnet34", IMAGENET, 21_797_672),
    ("resnet50", IMAGENET, 25_557_032),
    ("resnet20", {}, 269_722),
    ("resnet32", {}, 464_154),
    ("resnet44", {}, 658_586),
    ("resnet56", {}, 853_018),
    ("preact_resnet18", {}, 11_171_146),
    ("wide_resnet28_10", {}, 36_479_194),
    ("wide_resnet34_10", {}, 46_160_474),
    ("wide_resnet70_16", {}, 266_796_506),
    ("alexnet", {}, 61_100_840),
]


@pytest.mark.parametrize(("name", "options", "count"), PARAMETERS)
def test_parameters_of_the_publications(name, options, count):
    leaves = fit.leaves(lj.models.create(name, **options))
    assert sum(int(np.prod(shape)) for leaf, shape in leaves.values() if leaf[0] == "params") == count


FAMILIES = {
    "resnet": ResNet((1, 1), width=4),
    "bottleneck": ResNet((1, 1), width=4, block=Bottleneck),
    "option_a": ResNet((1, 1), width=4, shortcut="pad"),
    "preact": PreActResNet((1, 1), width=4, final_norm=True),
    "wide": WideResNet(10, 1),
}


def _variables(network):
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_training_asks_of_a_network(family):
    """Feature maps, statistics that move, logits in float32 also under bfloat16."""
    network, images = FAMILIES[family], np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    variables = _variables(network)
    apply = jax.jit(lambda v: network.apply(v, images, train=True, features=True, mutable=["batch_stats"]))
    (logits, maps), updated = apply(variables)
    assert logits.shape == (4, 10)
    assert [m.shape[:3] for m in maps] == [(4, 8 // 2**i, 8 // 2**i) for i in range(len(maps))]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), variables["batch_stats"], updated["batch_stats"])
    assert jax.tree.all(moved)
    assert jax.eval_shape(network.clone(dtype=jnp.bfloat16).apply, variables, images).dtype == jnp.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_under_bfloat16_are_those_of_float32(family):
    """With JAX 0.11 the compiled networks gave NaN on a CPU."""
    network, images = FAMILIES[family], np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    variables = network.init(jax.random.key(0), images)
    expected, found = (jax.jit(network.clone(dtype=d).apply)(variables, images) for d in (jnp.float32, jnp.bfloat16))
    np.testing.assert_allclose(found, expected, atol=0.03 * float(jnp.std(expected)))


def test_normalisation_sits_inside():
    mean, std = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.3, 0.4], np.float32)
    network, images = FAMILIES["option_a"], np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    variables = jax.tree.map(np.abs, _variables(network))
    inside = network.clone(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    plain = jax.jit(network.apply)(variables, images)
    np.testing.assert_allclose(jax.jit(inside.apply)(variables, images * std + mean), plain, rtol=1e-4, atol=1e-5)


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = np.arange(2 * 4 * 4 * 2, dtype=np.float32).reshape(2, 4, 4, 2)
    out = np.asarray(pad_shortcut(x, 2, 6))
    assert out.shape == (2, 2, 2, 6)
    np.testing.assert_array_equal(out[..., 2:4], x[:, ::2, ::2])
    assert not out[..., :2].any()
    assert not out[..., 4:].any()


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 2), (7, 2)])
def test_same_padding_is_tensorflows(size, stride):
    expected = lax.padtype_to_pads((8, 8), (size, size), (stride, stride), "SAME")
    assert [tuple(side) for side in same_padding(size, stride)] == [tuple(map(int, side)) for side in expected]


def test_normalisation_by_name_is_that_by_values():
    by_name = lj.models.create("resnet32", normalisation="imagenet")
    assert by_name == lj.models.create("resnet32", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert lj.models.create("alexnet", normalisation="half").std == (0.5, 0.5, 0.5)
    assert lj.models.create("dm_wide_resnet28_10").mean == lj.models.NORMALISATIONS["cifar10"][0]


def test_errors_name_what_is_valid():
    with pytest.raises(ValueError, match=r"unknown network 'resnet33'; did you mean 'resnet34'\?"):
        lj.models.create("resnet33")
    with pytest.raises(ValueError, match=r"network 'wide_resnet28_10': 'widen_facto'; did you mean 'widen_factor'\?"):
        lj.models.create("wide_resnet28_10", widen_facto=2)
    with pytest.raises(ValueError, match=r"unknown parameter of network 'resnet18': 'stages'"):
        lj.models.create("resnet18", stages=(1,))
    with pytest.raises(ValueError, match=r"unknown normalisation 'cifar'; did you mean 'cifar10' or 'cifar100'\?"):
        lj.models.create("resnet18", normalisation="cifar")
    with pytest.raises(ValueError, match="normalisation='half' or mean and std, not both"):
        lj.models.create("resnet18", normalisation="half", mean=(0.5,) * 3)
    with pytest.raises(ValueError, match="activation must be 'relu' or 'swish'; got 'gelu'"):
        activation("gelu", train=False)
    image = jnp.zeros((1, 8, 8, 3))
    for network, message in (
        (WideResNet(29, 1), "expected 6 n [+] 4, such as 28, 34 or 70; got 29"),
        (ResNet((1,), width=2, stem="cifer"), "stem must be 'cifar' or 'imagenet'; got 'cifer'"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(network.init, jax.random.key(0), image)
