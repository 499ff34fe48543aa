"""Trainings that begin from weights: a run's, a file's, those for other classes; and what is told of wrong ones."""

import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax import config as configuration
from lagrangian_jax import data, main
from lagrangian_jax.train import train
from lagrangian_jax.workdir import open_workdir

pytestmark = pytest.mark.usefixtures("tiny_network")


FIELDS = ["network.name=tiny", "train.epochs=1", "train.clean_epochs=0", "train.steps=2", "train.batch_size=16"]
FIELDS += ["data.validation=0", "evaluation.suite=clean", "evaluation.examples=8"]
FROZEN = ["optimizer.learning_rate=0", "train.average=0.5"]  # what training begins from is what it ends with


def _arguments(workdir, *fields):
    return [
        "--config=digits:standard,smoke",
        *(f"--config.{field}" for field in [*FIELDS, *fields]),
        f"--workdir={workdir}",
    ]


def _weights(workdir):
    return lj.interop.load(workdir / "weights.safetensors", lj.models.create("tiny", num_classes=10))["params"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's work directory."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    assert main.main(_arguments(workdir, "seed=1")) == 0
    return workdir


def _assert_same(one, other):
    """The same, except for the rounding of an average of equal numbers."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=3e-7), one, other)


@pytest.mark.parametrize("of", ["run", pytest.param("file", marks=pytest.mark.slow)])
def test_a_training_begins_from_the_weights_of_another(trained, tmp_path, of):
    source = trained if of == "run" else trained / "weights.safetensors"
    assert main.main(_arguments(tmp_path / "run", f"init_from={source}", *FROZEN)) == 0
    _assert_same(_weights(tmp_path / "run"), _weights(trained))
    assert main.main(_arguments(tmp_path / "random", *FROZEN)) == 0  # and without it from others
    assert np.abs(_weights(tmp_path / "random")["conv1"]["kernel"] - _weights(trained)["conv1"]["kernel"]).max() > 0.01
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["configuration"]["init_from"] == str(source)


def test_the_last_layer_begins_anew_for_other_classes(trained, tmp_path, capfd):
    of_trained = lj.interop.load(trained / "weights.safetensors", lj.models.create("tiny", num_classes=10))
    network = lj.models.create("tiny", num_classes=3)
    given = lj.interop.load(trained / "weights.safetensors", network, other_classes=True)
    assert "linear" not in given["params"]
    _assert_same(given["params"], {k: v for k, v in of_trained["params"].items() if k != "linear"})
    _assert_same(given["batch_stats"], of_trained["batch_stats"])
    with pytest.raises(ValueError, match=r"linear\.weight \(10, 4\), expected \(3, 4\)"):
        lj.interop.load(trained / "weights.safetensors", network)
    with pytest.raises(ValueError, match=r"of another shape: .*bn1\.running_mean"):
        lj.interop.load(trained / "weights.safetensors", lj.models.create("tiny", width=8), other_classes=True)

    # A training on the digits below 3.
    config = configuration.load("digits:standard,smoke").unlock()
    for field in [*FIELDS, *FROZEN, f"init_from={trained}"]:
        configuration.set_field(config, *field.split("=", 1))
    digits = data.load(config.data)
    splits = {name: getattr(digits, name) for name in ("train", "validation", "test")}
    few = {name: split.take(np.flatnonzero(split.labels < 3)) for name, split in splits.items()}
    ended = train(config, tmp_path, data.Dataset("digits", digits.classes[:3], **few, remark=""))
    assert f"training begins from {trained}, with a new last layer" in capfd.readouterr().err
    params = ended.variables["params"]
    assert params["linear"]["kernel"].shape == (4, 3)
    _assert_same({**params, "linear": None}, {**of_trained["params"], "linear": None})


def test_a_run_that_goes_on_needs_its_source_no_more(trained, tmp_path):
    source = tmp_path / "source.safetensors"
    shutil.copy(trained / "weights.safetensors", source)
    arguments = _arguments(tmp_path / "run", f"init_from={source}")
    assert main.main(arguments) == 0
    source.unlink()
    ended = _weights(tmp_path / "run")
    assert main.main(arguments) == 0
    _assert_same(_weights(tmp_path / "run"), ended)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["init_from={folder}/none.safetensors"], "init_from: no such file: .*none.safetensors"),
        (["init_from={trained}", "network.normalisation=half"], "was trained with another network: normalisation"),
        (["init_from={trained}/weights.safetensors", "network.width=8"], "of another shape: .*What fits"),
    ],
)
def test_wrong_weights_are_told_and_claim_no_work_directory(trained, tmp_path, capfd, fields, message):
    fields = [field.format(folder=tmp_path, trained=trained) for field in fields]
    assert main.main(_arguments(tmp_path / "run", *fields)) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_the_field_goes_on(tmp_path):
    config = configuration.load("digits")
    before = configuration.plain(config)
    del before["init_from"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    (tmp_path / "data.json").write_text("{}")
    with open_workdir(tmp_path, config):
        pass
