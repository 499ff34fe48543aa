"""Files of weights: what is read, what is written, what is refused."""

import json
import os
import pathlib
import pickle
import resource
import signal
import sys
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax import config as configuration
from lagrangian_jax.interop import fit, torch_file
from lagrangian_jax.interop.torch import read_state_dict, to_state_dict
from lagrangian_jax.models.resnet import ResNet

DATA = pathlib.Path(__file__).with_name("data")
NETWORK = ResNet(stages=(1, 1), width=4)


@pytest.fixture(scope="module")
def variables():
    """Variables of `NETWORK`, in which no two values are equal."""
    shapes = jax.eval_shape(lambda: NETWORK.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes)


def _equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def _write(path, variables, change=lambda tensors: tensors):
    from safetensors.numpy import save_file

    save_file({k: np.ascontiguousarray(v) for k, v in change(to_state_dict(variables)).items()}, path)
    return path


@pytest.mark.parametrize("inner", ["dictionary", "module"])
def test_objects_that_contain_each_other_are_no_state_dict(tmp_path, monkeypatch, inner):
    circle = {"x": np.zeros(1)} if inner == "dictionary" else {"_parameters": {}, "_buffers": {}, "_modules": {}}
    if inner == "dictionary":
        circle["net"] = {"y": np.zeros(1), "model": circle}
    else:
        circle["_modules"]["m"] = circle
    monkeypatch.setattr(torch_file, "read", {str(tmp_path / "a.pt"): circle}.get)
    with pytest.raises(ValueError, match="holds no state dict, but objects that contain each other"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.msgpack", "weights"])
def test_what_is_saved_is_loaded(name, variables, tmp_path):
    for _ in range(2):  # the second time over the first
        lj.interop.save(tmp_path / name, NETWORK, variables)
    _equal(lj.interop.load(tmp_path / name, NETWORK), variables)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_a_file_is_up_to_the_umask(mask, variables, tmp_path):
    before = os.umask(mask)
    try:
        for _ in range(2):  # anew, and in place of one that is there
            for name in ("weights.safetensors", "weights.msgpack"):
                lj.interop.save(tmp_path / name, NETWORK, variables)
                assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


def test_flax_reads_the_msgpack_file(variables, tmp_path):
    from flax import serialization

    lj.interop.save(tmp_path / "weights.msgpack", NETWORK, variables)
    _equal(serialization.from_bytes(variables, (tmp_path / "weights.msgpack").read_bytes()), variables)


def test_a_suffix_that_means_nothing_is_refused(variables, tmp_path):
    with pytest.raises(
        ValueError, match=r"weights\.h5: expected \.safetensors, \.msgpack, \.stablehlo, \.onnx or a dir"
    ):
        lj.interop.save(tmp_path / "weights.h5", NETWORK, variables)


def test_a_directory_of_other_things_is_not_replaced(variables, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="results is there already, and is not an orbax directory"):
        lj.interop.save(tmp_path / "results", NETWORK, variables)
    assert (tmp_path / "results" / "results.json").exists()


def test_an_onnx_file_runs_elsewhere(variables, tmp_path):
    pytest.importorskip("jax2onnx", reason="pip install 'lagrangian_jax[onnx]'")
    onnxruntime = pytest.importorskip("onnxruntime")
    lj.interop.save(tmp_path / "network.onnx", NETWORK, variables, (8, 8, 3))
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    for count in (3, 2):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images[:count]})
        np.testing.assert_allclose(logits, NETWORK.apply(variables, images[:count]), rtol=1e-4)


def test_layouts_are_pytorchs(variables):
    tensors = to_state_dict(variables)
    assert tensors["conv1.weight"].shape == (4, 3, 3, 3)
    assert tensors["conv1.weight"][3, 2, 0, 1] == variables["params"]["conv1"]["kernel"][0, 1, 2, 3]
    assert tensors["linear.weight"][7, 2] == variables["params"]["linear"]["kernel"][2, 7]
    assert tensors["layer2.0.shortcut.1.running_var"][1] == variables["batch_stats"]["layer2_0"]["shortcut_1"]["var"][1]


def test_without_the_extra_an_export_says_what_to_install(variables, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    (tmp_path / "there.stablehlo").touch()
    for call in (
        lambda: lj.interop.save(tmp_path / "network.stablehlo", NETWORK, variables, (8, 8, 3)),
        lambda: lj.interop.load_function(tmp_path / "there.stablehlo"),
    ):
        with pytest.raises(ImportError, match=r"need the package flatbuffers: pip install 'lagrangian_jax\[export\]'"):
            call()
    assert not (tmp_path / "network.stablehlo").exists()


def test_an_exported_network_is_attacked_like_the_network(variables, tmp_path):
    """StableHLO holds weights, normalisation and gradient, for batches of any size."""
    pytest.importorskip("flatbuffers", reason="jax.export writes files with it")
    network = NETWORK.clone(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    lj.interop.save(tmp_path / "network.stablehlo", network, variables, (8, 8, 3))
    exported = lj.interop.load_function(tmp_path / "network.stablehlo")
    logits_fn = jax.jit(lambda x: network.apply(variables, x, train=False))
    images = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    np.testing.assert_allclose(exported(images), logits_fn(images), rtol=1e-5)
    np.testing.assert_allclose(exported(images[:2]), logits_fn(images)[:2], rtol=1e-5)
    attack, labels = lj.attacks.create("pgd_linf", bound=8 / 255, steps=1), np.zeros(3, np.int32)
    ours, theirs = (attack(jax.random.key(0), function, images, labels) for function in (logits_fn, exported))
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


# ---- What does not fit --------------------------------------------------------------


def test_one_error_lists_everything_that_does_not_fit(variables, tmp_path):
    def change(tensors):
        tensors["rotation.weight"] = tensors.pop("bn1.weight")
        return tensors | {"linear.bias": np.zeros(9, np.float32)}

    path = _write(tmp_path / "other.safetensors", variables, change)
    with pytest.raises(ValueError, match="does not fit this network") as caught:
        lj.interop.load(path, NETWORK)
    message = str(caught.value)
    assert "missing: bn1.weight;" in message
    assert "surplus: rotation.weight;" in message
    assert "of another shape: linear.bias (9,), expected (10,)" in message


def test_few_of_many_tensors_are_named_and_what_fits_with_its_classes(variables, tmp_path):
    path = _write(tmp_path / "other.safetensors", variables, dict)
    with pytest.raises(ValueError, match=r"and \d+ more.*\. What fits best") as caught:
        lj.interop.load(path, lj.models.create("resnet32", num_classes=3))
    message = str(caught.value)
    assert "num_classes=10" in message  # though it is the default: 3 were tried
    assert message.count("layer") < 12


def test_the_network_of_a_run(tmp_path):
    """Of other classes, width, precision and normalisation than the defaults; nothing but the folder is given."""
    network = lj.models.create("resnet20", num_classes=7, width=4, mean=(0.5,) * 3, std=(0.5,) * 3, dtype=jnp.bfloat16)
    expected = network.init(jax.random.key(3), np.zeros((1, 8, 8, 3), np.float32))
    config = configuration.load("digits:smoke").to_dict()
    config |= {
        "network": {"name": "resnet20", "width": 4, "mean": [0.5] * 3, "std": [0.5] * 3},
        "precision": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"no such file: .*a training run writes it when it is complete"):
        lj.runs.load(tmp_path)
    lj.interop.save(tmp_path / "weights.safetensors", network, expected)
    found, variables = lj.runs.load(str(tmp_path))
    assert found == network
    assert hash(found) == hash(network)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    jax.tree.map(np.testing.assert_array_equal, lj.interop.load(tmp_path, network), expected)
    with pytest.raises(ValueError, match="no work directory of a training run"):
        lj.runs.load(tmp_path / "nowhere")


SUGGESTED = [
    ("resnet32", {}, 'create("resnet32")'),
    ("resnet18", {"num_classes": 100, "width": 2}, 'create("resnet18", num_classes=100, width=2)'),
    ("resnet50", {"stem": "imagenet", "width": 2}, "create(\"resnet50\", stem='imagenet', width=2)"),
    ("wide_resnet34_20", {"widen_factor": 20}, 'create("wide_resnet34_20")'),
    ("dm_wide_resnet28_10", {"widen_factor": 1}, 'create("dm_wide_resnet28_10", widen_factor=1)'),
    ("preact_resnet18", {"final_norm": True, "width": 2}, 'create("preact_resnet18", final_norm=True, width=2)'),
]


@pytest.mark.parametrize(("name", "parameters", "suggested"), SUGGESTED)
def test_the_network_that_fits_is_named(name, parameters, suggested):
    leaves = fit.leaves(lj.models.create(name, **parameters))
    shapes = {f"module.{leaf}": shape for leaf, (_, shape) in leaves.items()} | {"module.mu": (1, 3, 1, 1)}
    fields = " ".join(f"--config.network.{k}={v}" for k, v in parameters.items() if k != "num_classes")
    told = fit.suggestion(shapes, NETWORK)
    assert told.startswith(f" What fits it is lagrangian_jax.models.{suggested}, --config.network.name={name}")
    assert told.endswith(f"{fields}.") if name[-2:] != "20" else "widen_factor" not in told


def test_no_network_is_named_where_none_fits_better(variables):
    shapes = {name: x.shape for name, x in to_state_dict(variables).items() if name != "bn1.weight"}
    assert fit.suggestion(shapes, NETWORK) == ""


@pytest.mark.parametrize(
    ("surplus", "loads"),
    [
        ("bn1.num_batches_tracked", True),
        ("sub_block1.layer.0.conv1.weight", True),  # made and never run by TRADES' WideResNet
        ("attacker.net.linear.bias", True),  # the network's own, a second time
        ("attacker.net.linear.weight", False),  # of another value
        ("projector.bias", False),
        ("conv1.weight", False),  # beside net.conv1.weight
    ],
)
def test_surplus_tensors(surplus, loads, variables, tmp_path):
    def change(tensors):
        value = tensors["linear.bias"] if surplus.endswith("net.linear.bias") else np.ones(3, np.float32)
        return {f"net.{name}": x for name, x in tensors.items()} | {surplus: value}

    path = _write(tmp_path / "weights.safetensors", variables, change)
    if loads:
        _equal(lj.interop.load(path, NETWORK), variables)
    else:
        with pytest.raises(ValueError, match=f"surplus: {surplus}"):
            lj.interop.load(path, NETWORK)


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "1.", "encoder.0."])
def test_a_prefix_is_understood(prefix, variables, tmp_path):
    path = _write(tmp_path / "w.safetensors", variables, lambda tensors: {prefix + k: v for k, v in tensors.items()})
    _equal(lj.interop.load(path, NETWORK), variables)


@pytest.mark.parametrize(("mean", "std"), [("0.mean", "0.std"), ("mu", "sigma"), ("normalizer.new_mean", "n.new_std")])
def test_a_normalisation_among_the_weights_must_be_the_networks(mean, std, variables, tmp_path):
    """It is never dropped in silence: the accuracy would be another one."""
    values = {
        mean: np.array([0.4, 0.5, 0.6], np.float32).reshape(1, 3, 1, 1),
        std: np.full((3, 1, 1), 0.25, np.float32),
    }
    path = _write(
        tmp_path / "w.safetensors", variables, lambda tensors: {f"net.{k}": v for k, v in tensors.items()} | values
    )
    _equal(lj.interop.load(path, NETWORK.clone(mean=(0.4, 0.5, 0.6), std=(0.25,) * 3)), variables)
    with pytest.raises(ValueError, match=rf"{mean} = \(0\.4, 0\.5, 0\.6\), where this network has mean = None"):
        lj.interop.load(path, NETWORK)
    with pytest.raises(ValueError, match=rf"{std} = \(0\.25, 0\.25, 0\.25\), where this network has std = \(1, 1, 1\)"):
        lj.interop.load(path, NETWORK.clone(mean=(0.4, 0.5, 0.6), std=(1, 1, 1)))


def test_the_size_of_the_image_is_the_networks(tmp_path):
    """Weights of the first linear layer depend on it, and torchvision's AlexNet does not run on 32 pixels."""
    leaves = fit.leaves(lj.models.create("alexnet"))
    assert leaves["classifier.1.weight"][1] == (4096, 256 * 6 * 6)
    assert fit.leaves(lj.models.create("alexnet_cifar"), (64, 64, 3))["classifier.1.weight"][1] == (4096, 256 * 4 * 4)


# ---- PyTorch's files without PyTorch --------------------------------------------------------------

# tests/data/torch_*.pt: written by PyTorch 2.13.0's torch.save, in the format of today and in that of before 1.6.
RECORDED = ["torch_zip.pt", "torch_legacy.pt"]


@pytest.mark.parametrize("name", RECORDED)
def test_pytorch_files_are_read_without_pytorch(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    content = torch_file.read(DATA / name)
    assert content["epoch"] == 3
    assert content["args"] == {"lr": 0.1}  # an argparse.Namespace, as its fields
    assert content["optimizer"]["param_groups"][0]["lr"] == 0.1
    tensors = read_state_dict(DATA / name)
    assert list(tensors) == ["module.weight", "module.half", "module.brain", "module.count", "module.part"]
    np.testing.assert_array_equal(tensors["module.weight"], [[0, 3], [1, 4], [2, 5]])  # transposed in the file
    np.testing.assert_array_equal(tensors["module.half"], np.array([0.5, -2], np.float16))
    np.testing.assert_array_equal(tensors["module.brain"].astype(np.float32), [1, 3])
    np.testing.assert_array_equal(tensors["module.part"], [3, 4, 5])  # a view into a larger storage
    assert tensors["module.count"] == 7
    assert {x.dtype for x in tensors.values()} == {
        np.dtype(t) for t in (np.float32, np.float16, jnp.bfloat16, np.int64)
    }


class _Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_nothing_in_a_file_is_executed(tmp_path):
    target = tmp_path / "executed"
    hostile = pickle.dumps({"state_dict": {"weight": 1}, "other": _Hostile(str(target))}, protocol=2)
    with zipfile.ZipFile(tmp_path / "hostile.pt", "w") as archive:
        archive.writestr("hostile/data.pkl", hostile)
    content = torch_file.read(tmp_path / "hostile.pt")
    assert content["other"] == {}
    assert content["state_dict"] == {"weight": 1}
    assert not target.exists()
    pickle.loads(hostile)
    assert target.exists()  # it would have


def test_a_tensor_stays_inside_its_storage():
    storage = ("0", np.dtype(np.float32))
    np.testing.assert_array_equal(
        torch_file.Tensor(storage, 1, (2,), (1,)).read(lambda key: np.arange(4.0, dtype="f4")), [1, 2]
    )
    for offset, shape, strides in [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (0, (2,), (4,)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
    ]:
        with pytest.raises(ValueError, match=r"strides|buffer|offset"):
            torch_file.Tensor(storage, offset, shape, strides).read(lambda key: bytes(16))


@pytest.mark.parametrize("name", RECORDED)
def test_a_damaged_file_is_one_clear_error(name, tmp_path):
    whole = (DATA / name).read_bytes()
    for length in (0, 3, 200, len(whole) // 2):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pt is not a PyTorch file that can be read"):
            read_state_dict(tmp_path / "cut.pt")


def test_other_files_are_one_clear_error(tmp_path):
    np.savez(tmp_path / "arrays.pt.npz", x=np.zeros(3))
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "bad.safetensors").write_text("not weights")
    for name in ("arrays.pt.npz", "text.pth"):
        with pytest.raises(ValueError, match=r"is not a PyTorch file that can be read"):
            read_state_dict(tmp_path / name)
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a safetensors file"):
        read_state_dict(tmp_path / "bad.safetensors")
    for content in (b"", b"not weights"):
        (tmp_path / "bad.msgpack").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.msgpack is not a Flax msgpack file that can be read"):
            read_state_dict(tmp_path / "bad.msgpack")
    for name in ("none.pt", "none.msgpack", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            read_state_dict(tmp_path / name)


def test_what_cannot_be_written_is_an_oserror(variables, tmp_path):
    """Which the doors tell in one line."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file grows beyond, as on a full disk
    try:
        for name in ("weights.safetensors", "weights.msgpack"):
            with pytest.raises(OSError, match="File too large"):
                lj.interop.save(tmp_path / name, NETWORK, variables)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("name", ["state.msgpack", "state"])
def test_flax_trees_that_are_no_variables_are_one_clear_error(name, variables, tmp_path):
    """A training state, say, or parameters alone."""
    state = {"step": np.zeros(()), **variables}
    for tree, there in ((state, "batch_stats, params, step"), (variables["params"], "bn1, conv1")):
        lj.interop.save(tmp_path / name, NETWORK, tree)
        with pytest.raises(ValueError, match=rf"{name} holds no variables of Flax, .* but {there}"):
            read_state_dict(tmp_path / name)


def test_flax_trees_of_other_networks_are_read_too(tmp_path):
    """The names of Flax's own layers map as well as ours."""
    network = nn.Dense(3)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 2)))
    lj.interop.save(tmp_path / "dense.msgpack", network, variables)
    assert {k: v.shape for k, v in read_state_dict(tmp_path / "dense.msgpack").items()} == {
        "weight": (3, 2),
        "bias": (3,),
    }
