"""Networks and weights against PyTorch itself, both directions."""

import argparse
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.interop import fit, torch_file
from lagrangian_jax.interop.torch import read_state_dict
from lagrangian_jax.models.alexnet import AlexNet
from lagrangian_jax.models.preact_resnet import PreActResNet
from lagrangian_jax.models.resnet import Bottleneck, ResNet
from lagrangian_jax.models.segmentation import SegmentationNetwork
from lagrangian_jax.models.wide_resnet import WideResNet

torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install '.[torch]')")
theirs = runpy.run_path(str(pathlib.Path(__file__).with_name("torch_networks.py")))

CIFAR10 = dict(zip(("mean", "std"), lj.models.NORMALISATIONS["cifar10"], strict=True))
V2 = dict(preactivated_shortcut=True, final_norm=True)
DEEPMIND = dict(layout="deepmind", activation="swish", **CIFAR10)

# Ours, the same in PyTorch, and the size of the image: every kind of block and layout, slim and shallow.
NETWORKS = {
    "resnet": (ResNet((1, 2), width=4), lambda: theirs["ResNet"]([1, 2], 4), 16),
    "resnet_bottleneck": (
        ResNet((1, 1), width=2, block=Bottleneck),
        lambda: theirs["ResNet"]([1, 1], 2, bottleneck=True),
        16,
    ),
    "resnet_torchvision": (
        ResNet((1, 1), width=2, num_classes=7, stem="imagenet", block=Bottleneck),
        lambda: theirs["ResNet"]([1, 1], 2, 7, imagenet=True, bottleneck=True),
        48,
    ),
    "resnet_option_a": (
        ResNet((1, 2), width=4, shortcut="pad"),
        lambda: theirs["ResNet"]([1, 2], 4, option_a=True),
        16,
    ),
    "preact": (PreActResNet((1, 2), width=4), lambda: theirs["preact_resnet"]([1, 2], 4), 16),
    "preact_v2": (
        PreActResNet((1, 2), width=4, **V2),
        lambda: theirs["preact_resnet"]([1, 2], 4, shortcut_of="activated", final_norm=True),
        16,
    ),
    "dm_preact": (PreActResNet((1, 2), width=4, **DEEPMIND), lambda: theirs["dm_preact_resnet"]([1, 2], 4), 16),
    "wide": (WideResNet(16, 2), lambda: theirs["wide_resnet"](16, 2), 8),
    "dm_wide": (WideResNet(10, 2, **DEEPMIND), lambda: theirs["dm_wide_resnet"](10, 2), 16),
    "segmentation": (SegmentationNetwork((1, 2), width=4), lambda: theirs["Segmentation"]([1, 2], 4), 16),
    "alexnet_cifar": (AlexNet(width=4), lambda: theirs["AlexNet"](False, 4), 32),
    "alexnet": (AlexNet(width=4, stem="imagenet", num_classes=12), lambda: theirs["AlexNet"](True, 4, 12), 96),
}


def _random_weights(module):
    """Moves every weight and statistic away from its initial value."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith(("running_var", "weight")) and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3, generator=generator)
    return module.eval()


def _logits(module, images):
    with torch.no_grad():
        return module(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_agree_in_both_directions(name, tmp_path):
    """PyTorch's weights here, and ours there with ``strict=True``."""
    network, build, size = NETWORKS[name]
    images = np.random.default_rng(0).random((2, size, size, 3), np.float32)
    module = _random_weights(build())
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    variables = lj.interop.load(tmp_path / "weights.pt", network, (size, size, 3))
    apply = jax.jit(lambda variables: network.apply(variables, images, train=False))
    expected = _logits(module, images)
    np.testing.assert_allclose(apply(variables), expected, rtol=1e-4, atol=1e-4)

    from safetensors.torch import load_file

    variables = jax.tree.map(lambda x: x + 0.05 * jnp.cos(10 * x), variables)
    lj.interop.save(tmp_path / "weights.safetensors", network, variables)
    module.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    changed = _logits(module, images)
    assert np.abs(changed - expected).max() > 0.01
    np.testing.assert_allclose(apply(variables), changed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", lj.models.names())
def test_published_sizes_have_pytorchs_names_and_shapes(name):
    """The largest too: no array is made, here or there."""
    network = lj.models.create(name)
    with torch.device("meta"):
        state = theirs["PUBLISHED"][name]().state_dict()
    expected = {key: tuple(x.shape) for key, x in state.items() if not key.endswith("num_batches_tracked")}
    ours = {key: shape for key, (_, shape) in fit.leaves(network).items()}
    if hasattr(network, "torch_buffers"):
        ours |= {key: x.shape for key, x in network.torch_buffers().items()}
    assert ours == expected


def test_torchvision_sizes_have_its_names():
    """Its ResNets: the stem, the shortcuts and the head have other names than those for CIFAR."""
    for name, stages, bottleneck in [
        ("resnet18", [2] * 4, False),
        ("resnet34", [3, 4, 6, 3], False),
        ("resnet50", [3, 4, 6, 3], True),
    ]:
        with torch.device("meta"):
            state = theirs["ResNet"](stages, classes=1000, imagenet=True, bottleneck=bottleneck).state_dict()
        leaves = fit.leaves(lj.models.create(name, stem="imagenet", num_classes=1000))
        assert {key: shape for key, (_, shape) in leaves.items()} == {
            key: tuple(x.shape) for key, x in state.items() if not key.endswith("num_batches_tracked")
        }


# ---- Files --------------------------------------------------------------


@pytest.fixture(scope="module")
def state():
    return {key: x.clone() for key, x in _random_weights(theirs["ResNet"]([1], 2)).state_dict().items()}


NETWORK = ResNet((1,), width=2)


def _optimizer_of(state):
    parameters = [torch.nn.Parameter(x) for x in state.values() if x.is_floating_point()]
    optimizer = torch.optim.Adam(parameters)
    sum(x.sum() for x in parameters).backward()
    optimizer.step()
    return optimizer.state_dict()


def _circle(content):
    content["trainer"] = argparse.Namespace(checkpoint=content)
    return content


WRAPPED = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "best_prec1": torch.tensor(92.8), "epoch": 3},
    "net": lambda state: {"net": state, "acc": 93.5, "optimizer": _optimizer_of(state)},
    "model": lambda state: {"optimizer": _optimizer_of(state), "model": {f"module.{k}": v for k, v in state.items()}},
    "model_state_dict": lambda state: {"model_state_dict": state, "args": argparse.Namespace(lr=0.1)},
    "twice": lambda state: {"model": {"state_dict": {f"model.{k}": v for k, v in state.items()}}},
    "in_a_circle": lambda state: _circle({"last_state": state}),
    "unknown": lambda state: {"weights_at_the_end": state, "log": [1.0, np.float64(2.0)]},
    "sequential": lambda state: {
        "0.mean": torch.tensor([0.5, 0.5, 0.5]),
        "0.std": torch.tensor([0.5, 0.5, 0.5]),
        **{f"1.{k}": v for k, v in state.items()},
    },
    "without_counts": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    "double": lambda state: {k: v.double() if v.is_floating_point() else v for k, v in state.items()},
    "parameters": lambda state: {
        k: torch.nn.Parameter(v, requires_grad=v.is_floating_point()) for k, v in state.items()
    },
    "channels_last": lambda state: {
        k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in state.items()
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrappers_of_training_code_are_understood(wrapped, zipped, state, tmp_path):
    torch.save(WRAPPED[wrapped](state), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    network = NETWORK.clone(mean=(0.5,) * 3, std=(0.5,) * 3) if wrapped == "sequential" else NETWORK
    variables = lj.interop.load(tmp_path / "w.pt", network)
    tolerance = 1e-3 if wrapped == "half" else 0
    kernel = variables["params"]["layer1_0"]["conv2"]["kernel"]
    expected = state["layer1.0.conv2.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel, expected, rtol=tolerance, atol=tolerance)
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(variables["batch_stats"]["bn1"]["var"], state["bn1.running_var"], rtol=tolerance)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_module_in_a_file_is_read_as_its_state(zipped, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    torch.save(module, tmp_path / "module.pt", _use_new_zipfile_serialization=zipped)
    found, expected = read_state_dict(tmp_path / "module.pt"), module.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_one_of_several_states_is_chosen_by_its_key(state, tmp_path):
    doubled = {key: 2 * x for key, x in state.items()}
    torch.save({"last": state, "best": doubled}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="several: last, best; choose one with entry=NAME"):
        lj.interop.load(tmp_path / "w.pt", NETWORK)
    with pytest.raises(ValueError, match="no entry 'first'; there are last, best"):
        lj.interop.load(tmp_path / "w.pt", NETWORK, entry="first")
    best = lj.interop.load(tmp_path / "w.pt", NETWORK, entry="best")
    np.testing.assert_array_equal(best["params"]["linear"]["bias"], doubled["linear.bias"])


def test_a_file_without_tensors_says_so(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: expected a state dict, a dictionary of tensors; there is none"):
        lj.interop.load(tmp_path / "w.pt", NETWORK)


def test_pytorchs_safetensors_are_read(state, tmp_path):
    from safetensors.torch import save_file

    save_file(
        {key: x.bfloat16() if x.is_floating_point() else x for key, x in state.items()}, tmp_path / "w.safetensors"
    )
    variables = lj.interop.load(tmp_path / "w.safetensors", NETWORK)
    np.testing.assert_allclose(variables["params"]["bn1"]["scale"], state["bn1.weight"], rtol=1e-2)


@pytest.fixture(scope="module")
def checkpoints():
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "checkpoints" / "recoloradv"
    if not folder.is_dir():
        pytest.skip("the published checkpoints (../shared/data/checkpoints) are not here")
    return folder


@pytest.mark.parametrize("name", ["normal", "delta", "stadv"])
def test_published_checkpoints(name, checkpoints):
    """As PyTorch reads them, and to the same logits; `published_checkpoints` in ``results/`` has their accuracies."""
    path = checkpoints / f"{name}.resnet32.pt"
    saved, ours = torch.load(path, map_location="cpu", weights_only=True), torch_file.read(path)
    saved, ours = saved.get("state_dict", saved), ours.get("state_dict", ours)
    assert list(ours) == list(saved)
    for key, tensor in saved.items():
        np.testing.assert_array_equal(ours[key], tensor)
    module = theirs["PUBLISHED"]["resnet32"]().eval()
    counts = {key: x for key, x in module.state_dict().items() if key.endswith("num_batches_tracked")}
    module.load_state_dict(counts | {key.removeprefix("module."): x for key, x in saved.items()}, strict=True)
    mean, std = (np.array(x, np.float32) for x in lj.models.NORMALISATIONS["imagenet"])
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    network = lj.models.create("resnet32", normalisation="imagenet")
    logits = jax.jit(network.apply)(lj.interop.load(path, network), images)
    np.testing.assert_allclose(logits, _logits(module, (images - mean) / std), rtol=1e-4, atol=1e-4)
