"""Trainings: to the end, interrupted, resumed, damaged, diverged."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagrangian_jax import config as configuration
from lagrangian_jax import data, main, parallel
from lagrangian_jax import train as train_module
from lagrangian_jax.build import build_schedule, check
from lagrangian_jax.checkpoint import Checkpoints
from lagrangian_jax.config import NotFinite
from lagrangian_jax.data.flowers import FolderSource
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.monitor import Monitor
from lagrangian_jax.signals import Interrupted
from lagrangian_jax.step import Metrics
from lagrangian_jax.train import Window, train
from lagrangian_jax.workdir import open_workdir, same_data

TIMES = ("seconds", "images_per_second")
SLOW = pytest.mark.slow


pytestmark = pytest.mark.usefixtures("tiny_network")


def _config(**fields):
    config = configuration.load("digits:lagrangian,smoke")
    quick = {
        "network.name": "tiny",
        "train.epochs": "3",
        "train.steps": "4",
        "train.batch_size": "16",
        "train.log_steps": "3",
        "data.validation": "32",
        "validation.steps": "2",
        "method.steps": "2",
        "optimizer.schedule": "linear",
        **fields,
    }
    for field, value in quick.items():
        configuration.set_field(config, field, value)
    return config


@pytest.fixture(scope="module")
def dataset():
    return data.load(_config().data)


def _lines(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    return train(_config(), workdir, dataset), workdir


def _assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def test_metrics_have_no_gaps(whole):
    lines = _lines(whole[1])
    assert [line["step"] for line in lines if line["kind"] == "train"] == [3, 4, 7, 8, 11, 12]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [4, 8, 12]
    assert not lines[2]["best"]  # a clean epoch is no candidate
    assert {"loss", "clean_accuracy", "adversarial_accuracy", "perturbation_l2", "saturated"} <= set(lines[0])


def test_the_kind_of_keys_that_the_environment_sets_changes_nothing(whole, dataset, tmp_path):
    with jax.default_prng_impl("rbg"):
        _assert_same(train(_config(), tmp_path, dataset), whole[0])


def test_the_learning_rate_of_a_line_is_that_of_its_last_step(whole):
    schedule = build_schedule(_config(), 4)
    lines = [line for line in _lines(whole[1]) if line["kind"] == "train"]
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [float(schedule(line["step"] - 1)) for line in lines]
    )
    assert len({line["learning_rate"] for line in lines}) == len(lines)


def test_the_counter_counts_what_is_classified_correctly():
    rng = np.random.default_rng(0)
    network, images = ResNet(stages=(1,), width=4), rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
    variables = network.init(jax.random.key(0), images[:1] / np.float32(255))
    logits = network.apply(variables, images / np.float32(255), train=False)
    labels = np.asarray(logits).argmax(-1)
    labels[:5] = (labels[:5] + 1) % 10
    count = train_module.build_counter(network, parallel.mesh())
    assert count(variables["params"], variables["batch_stats"], images, labels) == 7


def test_validation_counts_no_image_whose_logits_are_no_numbers():
    """`argmax` would give them class 0."""
    config = _config()
    network, images = ResNet(stages=(1,), width=4), np.zeros((4, 8, 8, 3), np.uint8)
    variables = jax.tree.map(lambda x: x * np.nan, network.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32)))
    split = data.Split(images, np.zeros(4, np.int32), np.arange(4, dtype=np.int32))
    state = types.SimpleNamespace(variables=lambda: variables)
    accuracies = train_module.build_validation(config, network, parallel.mesh())(state, split)
    assert accuracies == {"clean_accuracy": 0.0, "robust_accuracy": 0.0}


def _stop_at(monkeypatch, step):
    progress = Monitor.progress

    def and_stop(self, at):
        progress(self, at)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Monitor, "progress", and_stop)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="where a program of other steps may round otherwise")
@pytest.mark.slow
def test_a_run_that_goes_on_with_other_lines_of_metrics_ends_the_same(whole, dataset, tmp_path, monkeypatch):
    config = _config()
    _stop_at(monkeypatch, 6)
    with open_workdir(tmp_path, config), pytest.raises(Interrupted):
        train(config, tmp_path, dataset)
    monkeypatch.undo()
    config = _config(**{"train.log_steps": "2"})
    with open_workdir(tmp_path, config):
        config.train.steps_per_call = 4  # as where programs are of many steps
        again = train(config, tmp_path, dataset)
    _assert_same(again, whole[0])
    assert [line["step"] for line in _lines(tmp_path) if line["kind"] == "train"] == [3, 4, 8, 10, 12]


@pytest.mark.parametrize("step", [pytest.param(2, marks=SLOW), 6, pytest.param(8, marks=SLOW)])
def test_interrupted_run_ends_the_same(whole, dataset, tmp_path, monkeypatch, step):
    _stop_at(monkeypatch, step)
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 12"):
        train(_config(), tmp_path, dataset)
    monkeypatch.undo()
    again = train(_config(), tmp_path, dataset)
    _assert_same(again, whole[0])
    assert _lines(tmp_path) == _lines(whole[1])


@pytest.mark.parametrize(("owner", "name"), [pytest.param(Monitor, "validation", marks=SLOW), (Checkpoints, "save")])
def test_a_signal_after_the_last_step_is_not_lost(whole, dataset, tmp_path, monkeypatch, owner, name):
    """What comes next is an evaluation of hours."""
    function = getattr(owner, name)

    def and_stop(self, at, *arguments):
        function(self, at, *arguments)
        if getattr(at, "step", at) == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(owner, name, and_stop)
    with pytest.raises(Interrupted, match="stopped at step 12 of 12"):
        train(_config(), tmp_path, dataset)
    monkeypatch.undo()
    _assert_same(train(_config(), tmp_path, dataset), whole[0])
    assert _lines(tmp_path) == _lines(whole[1])


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(whole, dataset, tmp_path, monkeypatch):
    """Ten years ahead in the middle of every checkpoint; then the run goes on in what seems to be the past."""
    import orbax.checkpoint as ocp

    now, save, jumps = time.time, ocp.CheckpointManager.save, []

    def save_and_jump(self, *arguments, **options):
        found = save(self, *arguments, **options)
        if len(jumps) % 2 == 0:  # not when it is tried again
            ahead = (10 + len(jumps)) * 365 * 86400
            monkeypatch.setattr(time, "time", lambda: now() + ahead)
        jumps.append(self)
        return found

    monkeypatch.setattr(ocp.CheckpointManager, "save", save_and_jump)
    _stop_at(monkeypatch, 6)
    with pytest.raises(Interrupted):
        train(_config(), tmp_path, dataset)
    assert jumps
    monkeypatch.undo()
    again = train(_config(), tmp_path, dataset)
    _assert_same(again, whole[0])
    assert _lines(tmp_path) == _lines(whole[1])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["seconds"] < 600 for line in lines if line["kind"] == "train")
    assert 0 < again.summary["seconds"] < 600


def test_other_images_than_the_run_began_with(whole, dataset, tmp_path):
    """One has vanished: orders, memory and rows would silently belong to other images."""
    workdir = tmp_path / "copy"
    shutil.copytree(whole[1], workdir)
    before = (workdir / "metrics.jsonl").read_text()
    less = dataset._replace(train=dataset.train.take(np.arange(1, len(dataset.train.labels))))
    count = len(dataset.train.labels)
    with pytest.raises(ValueError, match=f"train.images: {count} there, {count - 1} here") as raised:
        train(_config(), workdir, less)
    assert "the images of digits are not those that" in str(raised.value)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_checkpoint_that_cannot_be_written(dataset, tmp_path, monkeypatch):
    """The message says where and why; those before it are kept, and the run goes on from them."""
    sync, calls = os.fsync, []

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("last/.8.sha256.writing"):
            calls.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write a checkpoint to .*last \(No space left on device\)"):
        train(_config(), tmp_path, dataset)
    assert len(calls) == 1
    monkeypatch.undo()
    trained = train(_config(), tmp_path, dataset)
    assert trained.summary["steps"] == 12
    assert (tmp_path / "checkpoints" / "last" / "8.sha256").stat().st_size


def test_images_a_second_leave_out_checkpoints_and_interruptions(monkeypatch):
    """A checkpoint within a line of metrics takes its own time away, not that of the steps before it."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    ten_images = Metrics(*map(np.float32, (1, 1, 1, 1, 1, 10)))
    window = Window(None)
    window.add(0, ten_images)
    now = 5.0
    window.check()
    window.stop_clock()
    kept = window.state()
    now = 100.0
    window.start_clock()
    window.add(1, ten_images)
    now = 105.0
    line = window.flush()
    assert (line["seconds"], line["images_per_second"]) == (10, 2)
    now = 200.0
    again = Window(kept)
    again.add(1, ten_images)
    now = 205.0
    assert again.flush() == line


def test_finished_run_does_not_train_again(whole, dataset, tmp_path):
    shutil.copytree(whole[1], tmp_path / "copy")
    again = train(_config(), tmp_path / "copy", dataset)
    _assert_same(again, whole[0])
    assert _lines(tmp_path / "copy") == _lines(whole[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[..., :1], y), r"expected uint8 \(N, 32, 32, 3\).*; got uint8 \(\d+, 32, 32, 1\)"),
        (lambda x, y: (x[:, :28, :28], y), r"expected uint8 \(N, 32, 32, 3\).*; got uint8 \(\d+, 28, 28, 3\)"),
        (lambda x, y: (x / np.float32(255), y), r"expected uint8 .*; got float32"),
        (lambda x, y: (x, y + 1), "train labels of digits: expected 0 to 9, one per class; got 1 to 10"),
        (lambda x, y: (x, y - 1), "train labels of digits: expected 0 to 9, one per class; got -1 to 8"),
    ],
)
def test_images_and_labels_of_ones_own_that_cannot_be_trained_on(dataset, change, message):
    images, labels = change(dataset.train.images, dataset.train.labels)
    changed = dataset._replace(train=dataset.train._replace(images=images, labels=labels))
    with pytest.raises(ValueError, match=message):
        check(_config(), changed)


def _damage(folder: pathlib.Path, how: str) -> None:
    largest = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 16
    largest.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damaged_checkpoint_falls_back(whole, dataset, tmp_path, capfd, how):
    workdir = tmp_path / "copy"
    shutil.copytree(whole[1], workdir)
    _damage(workdir / "checkpoints" / "last" / "12", how)
    again = train(_config(), workdir, dataset)
    assert "checkpoint last/12 is damaged" in capfd.readouterr().err
    _assert_same(again, whole[0])
    assert _lines(workdir) == _lines(whole[1])
    train(_config(), workdir, dataset)  # what was written in its place is whole
    assert "damaged" not in capfd.readouterr().err


def test_checkpoint_below_a_damaged_one_is_saved(whole, dataset, tmp_path, monkeypatch, capfd):
    """orbax saves nothing below its newest step; an interruption there must not be lost."""
    workdir = tmp_path / "copy"
    shutil.copytree(whole[1], workdir)
    _damage(workdir / "checkpoints" / "last" / "12", "truncated")
    (workdir / "checkpoints" / "last" / "12.sha256").write_text("")  # nor does a torn manifest pass
    _stop_at(monkeypatch, 10)
    with pytest.raises(Interrupted, match="stopped at step 10"):
        train(_config(), workdir, dataset)
    assert "last/12 is damaged (its manifest is unreadable)" in capfd.readouterr().err
    assert sorted(path.name for path in (workdir / "checkpoints" / "last").iterdir()) == [
        "10",
        "10.sha256",
        "8",
        "8.sha256",
    ]
    monkeypatch.undo()
    _assert_same(train(_config(), workdir, dataset), whole[0])
    assert _lines(workdir) == _lines(whole[1])


def test_all_checkpoints_damaged_is_an_error(whole, dataset, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(whole[1], workdir)
    for step in (8, 12):
        _damage(workdir / "checkpoints" / "last" / str(step), "truncated")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        train(_config(), workdir, dataset)


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_put_into_the_work_directory_of_another_method(whole, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(whole[1] / "checkpoints", workdir / "checkpoints")
    before = _contents(workdir / "checkpoints")
    fields = ["network.name=tiny", "train.epochs=3", "train.steps=4", "train.batch_size=16", "data.validation=32"]
    fields = [f"--config.{field}" for field in fields]
    code = main.main(["--config=digits:standard,smoke", *fields, f"--workdir={workdir}"])
    error = capfd.readouterr().err
    assert code == 1
    path = workdir / "checkpoints" / "last" / "12"
    assert error == (
        f"error: {path} is a checkpoint of the method 'lagrangian', not of 'standard'. "
        "Remove it, or give another --workdir.\n"
    )
    assert _contents(workdir / "checkpoints") == before
    assert not (workdir / "metrics.jsonl").exists()


def test_best_is_selected_by_validation(dataset, tmp_path):
    config = _config(**{"evaluation.checkpoint": "best"})
    trained = train(config, tmp_path, dataset)
    candidates = [line for line in _lines(tmp_path) if line["kind"] == "validation"][1:]
    best = max(line["robust_accuracy"] for line in candidates)
    first = next(line["step"] for line in candidates if line["robust_accuracy"] == best)
    assert trained.summary["selected"]["checkpoint"] == "best"
    assert trained.summary["selected"]["robust_accuracy"] == best
    assert trained.summary["selected"]["step"] == first


@pytest.mark.parametrize("how", ["truncated", pytest.param("missing", marks=SLOW)])
def test_a_damaged_best_checkpoint_falls_back(dataset, tmp_path, monkeypatch, capfd, how):
    """A finished run is not lost with it: the best one before it is whole."""
    better = iter(range(100))

    def validate(state, split):
        return {"clean_accuracy": 1.0, "robust_accuracy": float(next(better))}

    monkeypatch.setattr(train_module, "build_validation", lambda *_: validate)
    config = _config(**{"evaluation.checkpoint": "best"})
    assert train(config, tmp_path, dataset).summary["selected"]["step"] == 12
    if how == "missing":
        shutil.rmtree(tmp_path / "checkpoints" / "best" / "12")
    else:
        _damage(tmp_path / "checkpoints" / "best" / "12", how)
    capfd.readouterr()
    again = train(config, tmp_path, dataset)
    assert re.search(r"checkpoint best/12 is damaged \(.*\); going back to the one before", capfd.readouterr().err)
    expected = {"checkpoint": "best", "step": 8, "epoch": 2.0, "clean_accuracy": 1.0, "robust_accuracy": 1.0}
    assert again.summary["selected"] == expected
    _damage(tmp_path / "checkpoints" / "best" / "8", "truncated")
    with pytest.raises(ValueError, match=r"every checkpoint in .*best is damaged: .*/8 is damaged") as raised:
        train(config, tmp_path, dataset)
    assert "going back" not in str(raised.value)


def test_loss_that_is_not_finite_stops_the_run(tmp_path, capfd):
    """One line that names the step; the checkpoints from before are kept, and the report says so."""
    fields = ["optimizer.learning_rate=1e30", "optimizer.warmup=0.0", "network.name=tiny", "train.checkpoint_steps=1"]
    arguments = ["--config=digits:standard,smoke", *(f"--config.{field}" for field in fields)]
    assert main.main([*arguments, f"--workdir={tmp_path}"]) == 1
    error = capfd.readouterr().err
    message = error.strip().splitlines()[-1]
    assert re.fullmatch(r"error: (loss|gradient_l2) is (nan|inf) at step \d", message)
    # One may still be written, under another name.
    saved = [int(path.name) for path in (tmp_path / "checkpoints" / "last").iterdir() if path.name.isdigit()]
    assert max(saved, default=0) < int(message.split()[-1])
    assert f"Training stopped: {message.removeprefix('error: ')}" in (tmp_path / "report.html").read_text()
    assert "Training stopped" in (tmp_path / "report.md").read_text()


def test_state_that_is_not_finite_is_not_saved(dataset, tmp_path, monkeypatch):
    """The loss of a step is that of the parameters before it: what it leaves is looked at, too."""
    monkeypatch.setattr(train_module, "all_finite", lambda state: int(state.step) < 8)
    with pytest.raises(NotFinite, match="not finite after step 8"):
        train(_config(), tmp_path, dataset)
    assert [path.name for path in (tmp_path / "checkpoints" / "last").iterdir() if path.name.isdigit()] == ["4"]


def test_all_finite():
    numbers = {"a": jnp.ones(3), "n": jnp.int32(4), "key": jax.random.key(0)}
    assert train_module.all_finite(numbers)
    assert not train_module.all_finite(numbers | {"b": jnp.array([1.0, jnp.nan])})
    assert not train_module.all_finite(numbers | {"b": jnp.array([1.0, -jnp.inf])})


def test_torn_notes_of_the_images(dataset, tmp_path):
    (tmp_path / "data.json").write_text('{"train": ')
    with pytest.raises(ValueError, match=r"data\.json is damaged \(.*\): restore it, or give another --workdir"):
        same_data(tmp_path, dataset)


def test_images_of_a_folder_are_known_by_their_names(dataset, tmp_path):
    """Their numbers are the same in any folder with as many images a class."""

    def folder(name, count=4):
        files = tuple(pathlib.Path(f"/images/{name}/{i}.png") for i in range(count))
        source = FolderSource(files, np.zeros(count, np.int32), np.arange(count, dtype=np.int32))
        return data.Dataset("flowers", ("a", "b"), source, source, source, "")

    same_data(tmp_path, folder("cats"))
    same_data(tmp_path, folder("cats"))
    with pytest.raises(ValueError, match=r"the images of flowers are not those .*: test\.files: "):
        same_data(tmp_path, folder("cars"))
    written = json.loads((tmp_path / "data.json").read_text())
    older = {name: {key: value for key, value in split.items() if key != "files"} for name, split in written.items()}
    (tmp_path / "data.json").write_text(json.dumps(older))
    same_data(tmp_path, folder("cars"))  # a run of an older version did not note them
