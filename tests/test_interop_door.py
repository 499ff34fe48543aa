"""The command line on networks and weights from elsewhere, and RobustBench's form of what it finds."""

import argparse
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax import config as configuration
from lagrangian_jax import evaluate, harness
from lagrangian_jax.build import build_network
from lagrangian_jax.signals import Interrupted
from lagrangian_jax.workdir import weights_file


def _parsed(*arguments):
    return configuration.parse(arguments, argparse.ArgumentParser())[1]


def test_another_network_brings_its_parameters():
    config = _parsed("--config=cifar10", "--config.network.normalisation=imagenet", "--config.network.name=resnet32")
    assert config.network.to_dict() == {
        **dict.fromkeys(("mean", "std")),
        **{"name": "resnet32", "width": 16, "stem": "cifar", "normalisation": "imagenet"},
    }
    assert build_network(config, 10) == lj.models.create("resnet32", normalisation="imagenet")
    config = _parsed("--config=cifar10", "--config.network.name=wide_resnet28_10", "--config.network.widen_factor=2")
    assert build_network(config, 10) == lj.models.create("wide_resnet28_10", widen_factor=2)


def test_another_network_keeps_what_the_configuration_changed():
    config = _parsed("--config=imagenet100", "--config.network.name=resnet50")
    assert build_network(config, 100) == lj.models.create("resnet50", stem="imagenet", num_classes=100)
    config = _parsed("--config=digits:lagrangian,smoke", "--config.network.name=preact_resnet18")
    assert config.network.width == 4
    config = _parsed("--config=digits:lagrangian,smoke", "--config.network.name=wide_resnet28_10")
    assert "width" not in config.network


def test_fields_of_the_network_are_its_parameters():
    config = _parsed(
        "--config=cifar10:lagrangian,slim", "--config.network.mean=0.5,0.4,0.3", "--config.network.std=1,1,1"
    )
    assert build_network(config, 10) == lj.models.create("resnet18", width=16, mean=(0.5, 0.4, 0.3), std=(1, 1, 1))
    with pytest.raises(configuration.UsageError, match=r"unknown network 'resnet33'; did you mean 'resnet34'\?"):
        _parsed("--config=cifar10", "--config.network.name=resnet33")
    with pytest.raises(configuration.UsageError, match=r"config\.network: 'stem'. Valid: .*widen_factor"):
        _parsed("--config=cifar10", "--config.network.name=wide_resnet28_10", "--config.network.stem=cifar")
    with pytest.raises(configuration.UsageError, match=r"network\.num_classes|'num_classes'"):
        _parsed("--config=cifar10", "--config.network.num_classes=3")  # the data set says how many


@pytest.fixture(scope="module")
def tiny():
    """resnet20 of width 2 and weights for it."""
    network = lj.models.create("resnet20", width=2)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    rng = np.random.default_rng(0)
    return network, jax.tree.map(lambda leaf: rng.uniform(0.2, 1.0, leaf.shape).astype(np.float32), shapes)


def test_weights_are_a_file_a_directory_or_a_run(tiny, tmp_path):
    network, variables = tiny
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no such file: .*run/weights\.safetensors; a training run writes it when"):
        weights_file(run, "--weights")
    lj.interop.save(run / "weights.safetensors", network, variables)
    lj.interop.save(tmp_path / "orbax", network, variables)
    for path in (run, run / "weights.safetensors", tmp_path / "orbax"):
        loaded = lj.interop.load(weights_file(path, "--weights"), network, (32, 32, 3))
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is not an orbax directory"):
        lj.interop.load(weights_file(tmp_path / "empty", "--weights"), network, (32, 32, 3))


def test_models_of_robustbench_have_the_architecture_that_their_names_tell():
    for model in lj.interop.robustbench.NETWORKS:
        network, sizes = lj.interop.robustbench.network(model), re.search(r"_(?:WRN-?_?)?(\d\d)[_-](\d\d)", model)
        if sizes:
            assert (network.depth, network.widen_factor) == tuple(map(int, sizes.groups())), model
        if re.search("_RN?18", model):
            assert tuple(network.stages) == (2, 2, 2, 2), model
    assert lj.interop.robustbench.network("Hendrycks2019Using").mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"unknown model of RobustBench 'Carmon2019'; did you mean 'Carmon2019Unlab"):
        lj.interop.robustbench.network("Carmon2019")


# The fields of RobustBench's model_info/cifar10/Linf/Wang2023Better_WRN-28-10.json, with their types.
FIELDS = {
    **{"link": str, "name": str, "authors": str, "additional_data": bool, "number_forward_passes": int},
    **{"dataset": str, "venue": str, "architecture": str, "eps": str, "clean_acc": str, "reported": str},
    **{"autoattack_acc": str, "footnote": str, "unreliable": bool},
}


def _results(norm="linf", bound=8 / 255, **given):
    parameters = {"norm": norm, "bound": bound}
    attack = {"name": f"autoattack_{norm}", "attack": "autoattack", "accuracy": 0.6731, "total": 10_000}
    return {
        "attacks": [{"name": "none", "attack": "none"}, attack | {"parameters": parameters}],
        "summary": {"clean": 0.9244},
        "data": {"name": "cifar10"},
        "network": {"name": "dm_wide_resnet28_10"},
        "failures": ["none: nothing to see", "autoattack_linf: outputs look like probabilities"],
        "training": {"epochs": 1},
        **given,
    }


def test_model_info_has_robustbenchs_fields():
    info = lj.interop.model_info(_results())
    assert {name: type(value) for name, value in info.items()} == FIELDS
    assert (info["eps"], info["clean_acc"], info["autoattack_acc"]) == ("8/255", "92.44", "67.31")
    assert (info["dataset"], info["architecture"]) == ("cifar10", "WideResNet-28-10")
    assert info["footnote"] == "On 10,000 images. autoattack_linf: outputs look like probabilities"
    assert lj.interop.model_info(_results(training=None))["additional_data"] is None
    assert lj.interop.model_info(_results("l2", 0.5))["eps"] == "0.5"
    assert lj.interop.model_info(_results("linf", 0.03))["eps"] == "0.03"
    assert lj.interop.model_info(_results(attacks=[{"name": "none", "attack": "none"}])) is None


@pytest.mark.slow
def test_autoattack_on_weights_from_pytorch_leaves_robustbenchs_entry(tiny, tmp_path, capfd):
    torch = pytest.importorskip("torch")
    from lagrangian_jax.interop.torch import to_state_dict

    state = {f"module.{name}": torch.tensor(value) for name, value in to_state_dict(tiny[1]).items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pth.tar")
    code = evaluate.main(
        [
            *("--config=digits:standard,smoke", "--config.network.name=resnet20", "--config.network.width=2"),
            *(f"--weights={tmp_path / 'weights.pth.tar'}", "--suite=autoattack_linf", "--config.evaluation.examples=8"),
            f"--workdir={tmp_path / 'run'}",
        ]
    )
    assert code == 0, capfd.readouterr().err
    results, info = (json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("results", "model_info"))
    assert info["dataset"] == "digits"
    assert info["architecture"] == "ResNet-20"
    accuracies = {attack["attack"]: attack["correct"] / 8 for attack in results["attacks"]}
    assert (info["clean_acc"], info["autoattack_acc"]) == tuple(
        f"{100 * accuracies[a]:.2f}" for a in ("none", "autoattack")
    )
    assert results["network"]["width"] == 2
    assert "mean" not in results["network"]


def test_an_evaluation_that_cannot_run_claims_no_work_directory(tmp_path, capfd):
    (tmp_path / "weights.pt").touch()
    arguments = ["--config=digits", f"--weights={tmp_path / 'weights.pt'}", f"--workdir={tmp_path / 'run'}"]
    # It needs no images for validation, so that it is not about them.
    assert evaluate.main([*arguments, "--config.evaluation.batch_size=0", "--config.data.validation=99999"]) == 2
    assert "evaluation.batch_size: expected 1 or more; got 0" in capfd.readouterr().err
    assert evaluate.main([*arguments, "--config.evaluation.lpips_alexnet=nowhere.npz"]) == 2
    assert "evaluation.lpips_alexnet: no such file: nowhere.npz" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_bar_of_an_interrupted_attack_ends_its_line(monkeypatch, tmp_path, capsys):
    """Else the message that says how to go on is written behind it."""

    def run(*_, progress, **__):
        progress("lpa", 0, 8)
        raise Interrupted("stopped at lpa")

    monkeypatch.setattr(lj.evaluation, "run", run)
    dataset = types.SimpleNamespace(classes=("no", "yes"))
    images = types.SimpleNamespace(images=None, labels=None, indices=None)
    with pytest.raises(Interrupted) as stopped:  # and kept, as where the message is written: it holds the bar
        harness.attack(_parsed("--config=digits:lagrangian,smoke"), tmp_path, dataset, {}, images, "clean")
    assert str(stopped.value) == "stopped at lpa"
    assert capsys.readouterr().err.endswith("\n")
