"""Packing a run: what goes on elsewhere is the run that was packed, and damage is told in one line."""

import json
import pathlib
import shutil
import signal

import jax
import ml_dtypes
import numpy as np
import pytest

from lagrangian_jax import config as configuration
from lagrangian_jax import data, pack
from lagrangian_jax.checkpoint import Checkpoints
from lagrangian_jax.monitor import Monitor
from lagrangian_jax.signals import Interrupted
from lagrangian_jax.train import train
from lagrangian_jax.workdir import open_workdir

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture(scope="module")
def config():
    config = configuration.load("digits:mma,smoke")  # has a memory
    fields = {
        "network.name": "tiny",
        "data.validation": 32,
        "train.epochs": 3,
        "train.clean_epochs": 0,
        "train.steps": 3,
        "train.batch_size": 16,
        "train.log_steps": 1,
        "train.average": 0.9,
        "method.steps": 1,
        "method.search_steps": 1,
        "validation.steps": 1,
        "evaluation.checkpoint": "best",
        "evaluation.batch_size": 32,
    }
    for field, value in fields.items():
        configuration.set_field(config, field, str(value))
    return config


@pytest.fixture(scope="module")
def dataset(config):
    return data.load(config.data)


def _train(config, workdir, dataset, stop_at=None):
    with open_workdir(workdir, config), pytest.MonkeyPatch.context() as patched:
        if stop_at is not None:

            def progress(self, step, before=Monitor.progress):
                before(self, step)
                if step == stop_at:
                    signal.raise_signal(signal.SIGTERM)

            patched.setattr(Monitor, "progress", progress)
        return train(config, workdir, dataset)


@pytest.fixture(scope="module")
def stopped(config, dataset, tmp_path_factory):
    """A run that was asked to stop after 7 of 9 steps, and is packed in small parts."""
    folder = tmp_path_factory.mktemp("pack")
    with pytest.raises(Interrupted, match="step 7 of 9"):
        _train(config, folder / "run", dataset, stop_at=7)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pack, "PART_BYTES", 3000)
        pack.pack(folder / "run", folder / "packed")
    return folder


def test_parts_are_small_and_hold_the_state(stopped):
    parts = sorted(stopped.glob("packed/*.safetensors"))
    assert len(parts) > 2  # some tensors are cut in two
    assert all(part.stat().st_size < 3000 + 4000 for part in parts)  # tensors and the file's header
    pack.unpack(stopped / "packed", stopped / "looked_at")
    for kind in ("last", "best"):
        folders = [stopped / name / "checkpoints" / kind for name in ("run", "looked_at")]
        before, after = (Checkpoints(folder, keep=2).read() for folder in folders)
        assert before[0] == after[0]
        assert before[2] == after[2]
        if kind == "last":
            momentum = before[1].pop("opt_state")
            rounded = [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in jax.tree.leaves(momentum)]
            assert len(rounded) > 0
            jax.tree.map(np.testing.assert_array_equal, rounded, jax.tree.leaves(after[1].pop("opt_state")))
            jax.tree.map(np.testing.assert_array_equal, before[1], after[1])
        else:
            jax.tree.map(np.testing.assert_array_equal, before[1]["average"], after[1]["average"])
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(after[1]["opt_state"]))
    for name in pack.TEXTS:
        assert (stopped / "run" / name).read_bytes() == (stopped / "looked_at" / name).read_bytes()


def test_goes_on_elsewhere_as_in_place(stopped, config, dataset):
    shutil.copytree(stopped / "run", stopped / "in_place")
    pack.unpack(stopped / "packed", stopped / "elsewhere")
    here, there = (_train(config, stopped / name, dataset) for name in ("in_place", "elsewhere"))
    assert here.summary["selected"]["step"] == there.summary["selected"]["step"]
    # Two more steps with a momentum that was rounded to 8 significant bits; in place it was not.
    weights = [jax.tree.leaves(found.variables["params"]) for found in (here, there)]
    assert max(np.abs(a - b).max() for a, b in zip(*weights, strict=True)) < 2**-8 * max(map(np.max, weights[0]))
    lines = (stopped / "elsewhere" / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert steps == list(range(1, 10))  # the metrics so far, and those since


def test_into_the_empty_folder_that_one_is_in(stopped, tmp_path, monkeypatch, capsys):
    for name in ("packed", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "packed")
    assert pack.main([str(stopped / "run"), "."]) == 0, capsys.readouterr().err
    assert pathlib.Path(pack.MANIFEST).is_file()  # by its relative name: the folder is filled, not another in its place
    monkeypatch.chdir(tmp_path / "run")
    assert pack.main(["../packed", ".", "--unpack"]) == 0, capsys.readouterr().err
    assert pathlib.Path("config.json").read_bytes() == (stopped / "run" / "config.json").read_bytes()
    assert Checkpoints(tmp_path / "run" / "checkpoints" / "last", keep=2).read()[0] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "run"]  # nothing half made is left


def test_damage_is_one_line(stopped, tmp_path, capsys):
    parts = sorted(stopped.glob("packed/*.safetensors"))

    def refused(change, *named):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(stopped / "packed", tmp_path / "copy")
        change(tmp_path / "copy")
        assert pack.main([str(tmp_path / "copy"), str(tmp_path / "out"), "--unpack"]) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert all(word in message for word in named)
        assert not (tmp_path / "out").exists()

    def flip(folder):
        content = bytearray((folder / parts[1].name).read_bytes())
        content[-1] ^= 1
        (folder / parts[1].name).write_bytes(content)

    def cut(folder):
        (folder / pack.MANIFEST).write_text((folder / pack.MANIFEST).read_text()[:-30])

    def alter(folder):
        text = (folder / pack.MANIFEST).read_text()
        (folder / pack.MANIFEST).write_text(text.replace('"step": 7', '"step": 8'))

    refused(flip, parts[1].name, "damaged")
    refused(lambda folder: (folder / parts[0].name).unlink(), parts[0].name, "missing")
    refused(cut, pack.MANIFEST, "damaged")
    refused(alter, pack.MANIFEST, "damaged")
    refused(lambda folder: (folder / pack.MANIFEST).unlink(), "no packed run")


def test_a_folder_that_cannot_be_made_is_named(stopped, capsys, tmp_path):
    (tmp_path / "file").touch()
    for arguments in ([str(stopped / "run")], [str(stopped / "packed"), "--unpack"]):
        assert pack.main([*arguments, str(tmp_path / "file" / "out")]) == 1
        assert capsys.readouterr().err == f"error: cannot write {tmp_path}/file/out: Not a directory\n"


def test_nothing_is_overwritten(stopped, capsys, tmp_path):
    assert pack.main([str(stopped / "run"), str(stopped / "packed")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert pack.main([str(stopped / "packed"), str(stopped / "run"), "--unpack"]) == 1
    assert "not empty" in capsys.readouterr().err
    assert pack.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text((stopped / "run" / "config.json").read_text())
    assert pack.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "holds no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()
