"""Runs: to the end, interrupted, resumed, damaged, diverged; and what wrong input ends in."""

import errno
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagrangian_jax import config as configuration
from lagrangian_jax import data, evaluate, main, models, parallel
from lagrangian_jax import train as train_module
from lagrangian_jax.build import check
from lagrangian_jax.checkpoint import Checkpoints
from lagrangian_jax.config import NotFinite
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.monitor import Monitor
from lagrangian_jax.signals import Interrupted
from lagrangian_jax.state import TrainState
from lagrangian_jax.step import Metrics
from lagrangian_jax.train import Window, train
from lagrangian_jax.workdir import same_data

TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """A network that compiles fast, under a name of its own."""
    models.MODELS["tiny"] = functools.partial(ResNet, stages=(1,), width=4)
    yield
    del models.MODELS["tiny"]


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


def _stop_at(monkeypatch, step):
    progress = Monitor.progress

    def and_stop(self, at):
        progress(self, at)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Monitor, "progress", and_stop)


@pytest.mark.parametrize("step", [2, 6, 8])
def test_interrupted_run_ends_the_same(whole, dataset, tmp_path, monkeypatch, step):
    _stop_at(monkeypatch, step)
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 12"):
        train(_config(), tmp_path, dataset)
    monkeypatch.undo()
    again = train(_config(), tmp_path, dataset)
    _assert_same(again, whole[0])
    assert _lines(tmp_path) == _lines(whole[1])


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
    """One has vanished: orders, memory and rows would silently be of others."""
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
    older = Window(kept[:6])  # as they were saved at first: without the seconds
    now = 206.0
    assert older.flush()["images_per_second"] == 10


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
        (lambda x, y: (x, y + 1), "train labels of digits: expected 0 to 9, one a class; got 1 to 10"),
        (lambda x, y: (x, y - 1), "train labels of digits: expected 0 to 9, one a class; got -1 to 8"),
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


def _saved(folder, memory, method=None):
    """A checkpoint of a small state with a memory."""
    checkpoints = Checkpoints(folder, 2, method)
    checkpoints.save(_state(memory), {"seconds": 1.0})
    checkpoints.close()
    return _contents(folder)


def _state(memory):
    return TrainState(jnp.int32(3), jax.random.key(0), {"kernel": jnp.ones((2, 3))}, {}, (), (), memory)


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (jnp.zeros(20), r"memory: 'float32\[24\]' there, 'float32\[20\]' here\."),
        (jnp.zeros(30), r"memory: 'float32\[24\]' there, 'float32\[30\]' here\."),
        (jnp.zeros(24, jnp.int32), r"memory: 'float32\[24\]' there, 'int32\[24\]' here\."),
        ((), r"memory: 'float32\[24\]' there, None here\."),
        ({"lower": jnp.zeros(24)}, r"memory: .* there, None here; memory.lower: None there, 'float32\[24\]' here\."),
        ([jnp.zeros(24)] * 5, r"memory.1: None there, 'float32\[24\]' here; and 3 more\."),
    ],
)
def test_a_checkpoint_of_another_state_is_refused(tmp_path, memory, message):
    """A memory of another length, say, would lose rows or take those of others."""
    before = _saved(tmp_path, jnp.arange(24.0))
    checkpoints = Checkpoints(tmp_path, 2)
    with pytest.raises(ValueError, match=rf"/3 is a checkpoint of another state: .*{message} Take it away") as raised:
        checkpoints.restore(_state(memory), parallel.mesh())
    assert "\n" not in str(raised.value)
    checkpoints.close()
    assert _contents(tmp_path) == before


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    """IAAT's budgets have the shape of MMA's distances."""
    before = _saved(tmp_path, jnp.arange(24.0), "iaat")
    checkpoints = Checkpoints(tmp_path, 2, "mma")
    with pytest.raises(ValueError, match=r"/3 is a checkpoint of the method 'iaat', not of 'mma'\. Take it away"):
        checkpoints.restore(_state(jnp.zeros(24)), parallel.mesh())
    checkpoints.close()
    assert _contents(tmp_path) == before


def test_a_checkpoint_that_does_not_tell_its_method_is_restored(tmp_path):
    """As they were written at first; what is saved after it tells."""
    _saved(tmp_path, jnp.arange(24.0))
    checkpoints = Checkpoints(tmp_path, 2, "mma")
    state, position, _ = checkpoints.restore(_state(jnp.zeros(24)), parallel.mesh())
    assert position == {"seconds": 1.0}
    np.testing.assert_array_equal(state.memory, np.arange(24))
    checkpoints.save(state.replace(step=jnp.int32(4)), position)
    assert checkpoints.read()[2] == {"seconds": 1.0, "method": "mma"}
    checkpoints.close()


def test_checkpoints_put_into_the_work_directory_of_another_method(whole, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(whole[1] / "checkpoints", workdir / "checkpoints")
    before = _contents(workdir / "checkpoints")
    fields = ["network.name=tiny", "train.epochs=3", "train.steps=4", "train.batch_size=16", "data.validation=32"]
    code, error = _main(
        capfd, "--config=digits:standard,smoke", *(f"--config.{field}" for field in fields), f"--workdir={workdir}"
    )
    assert code == 1
    path = workdir / "checkpoints" / "last" / "12"
    assert error == (
        f"error: {path} is a checkpoint of the method 'lagrangian', not of 'standard'. "
        "Take it away, or give another --workdir.\n"
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


def test_loss_that_is_not_finite_stops_the_run(tmp_path, capfd):
    """One line that names the step; the checkpoints from before are kept, and the report says so."""
    fields = ["optimizer.learning_rate=1e30", "optimizer.warmup=0.0", "network.name=tiny", "train.checkpoint_steps=1"]
    arguments = ["--config=digits:standard,smoke", *(f"--config.{field}" for field in fields)]
    code, error = _main(capfd, *arguments, f"--workdir={tmp_path}")
    assert code == 1
    message = error.strip().splitlines()[-1]
    assert re.fullmatch(r"error: (loss|gradient_l2) is (nan|inf) at step \d", message)
    saved = [int(path.name) for path in (tmp_path / "checkpoints" / "last").iterdir() if path.is_dir()]
    assert max(saved) < int(message.split()[-1])
    assert f"Training stopped: {message.removeprefix('error: ')}" in (tmp_path / "report.html").read_text()
    assert "Training stopped" in (tmp_path / "report.md").read_text()


def test_state_that_is_not_finite_is_not_saved(dataset, tmp_path, monkeypatch):
    """The loss of a step is that of the parameters before it: what it leaves is looked at, too."""
    monkeypatch.setattr(train_module, "all_finite", lambda state: int(state.step) < 8)
    with pytest.raises(NotFinite, match="not finite after step 8"):
        train(_config(), tmp_path, dataset)
    assert [path.name for path in (tmp_path / "checkpoints" / "last").iterdir() if path.is_dir()] == ["4"]


def test_all_finite():
    numbers = {"a": jnp.ones(3), "n": jnp.int32(4), "key": jax.random.key(0)}
    assert train_module.all_finite(numbers)
    assert not train_module.all_finite(numbers | {"b": jnp.array([1.0, jnp.nan])})
    assert not train_module.all_finite(numbers | {"b": jnp.array([1.0, -jnp.inf])})


def _main(capfd, *arguments):
    code = main.main(list(arguments))
    return code, capfd.readouterr().err


def test_whole_program(tmp_path, capfd):
    """Training, evaluation and report; then the same command again, and another configuration in its place."""
    fields = ["--config.network.name=tiny", "--config.train.steps=2", "--config.evaluation.examples=8"]
    arguments = ["--config=digits:standard,smoke", *fields, f"--workdir={tmp_path / 'run'}"]
    assert main.main(arguments) == 0
    table = capfd.readouterr().out
    assert "none" in table.lower() or "clean" in table.lower()
    files = ["config.json", "results.json", "report.html", "report.md", "metrics.jsonl", "weights.safetensors"]
    for name in (*files, "evaluation", "checkpoints", "figures", "tensorboard"):
        assert (tmp_path / "run" / name).exists(), name
    rows = np.load(tmp_path / "run" / "evaluation" / "none.npz")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    clean = next(attack for attack in results["attacks"] if attack["name"] == "none")
    assert clean["correct"] == rows["correct"].sum()
    assert clean["total"] == 8
    # What was spent on it, and how, can be told from the results alone; where the data lay is left out.
    made_with = json.loads((tmp_path / "run" / "config.json").read_text())
    for section in ("method", "train", "optimizer", "augmentation", "regularisation", "validation"):
        assert results["configuration"][section] == made_with[section]
    assert results["configuration"]["method"] == {"name": "standard"}
    assert results["configuration"]["train"]["batch_size"] * results["training"]["steps"] == 128 * 2 * 2
    assert made_with["data"].keys() - results["configuration"]["data"].keys() == {"dir", "workers"}

    # The other door, on the weights that the run left: the same rows.
    again = [*arguments[:-1], f"--weights={tmp_path / 'run'}", f"--workdir={tmp_path / 'again'}"]
    assert evaluate.main(again) == 0
    capfd.readouterr()
    for row in (tmp_path / "run" / "evaluation").glob("*.npz"):
        one, other = np.load(row), np.load(tmp_path / "again" / "evaluation" / row.name)
        for column in ("index", "label", "prediction", "correct", "l2", "linf"):
            np.testing.assert_array_equal(one[column], other[column])
    assert json.loads((tmp_path / "again" / "results.json").read_text())["configuration"] is None
    assert evaluate.main([*again, "--suite=quik"]) == 2
    assert "did you mean 'quick'?" in capfd.readouterr().err
    assert evaluate.main([*arguments[:-1], f"--weights={tmp_path / 'none'}", f"--workdir={tmp_path / 'third'}"]) == 1
    assert "no such file" in capfd.readouterr().err

    arguments = [*arguments[:-1], f"--workdir={tmp_path / 'run'}"]
    before = (tmp_path / "run" / "config.json").read_text()
    code, error = _main(capfd, *arguments, "--config.seed=5")
    assert code == 1
    assert "belongs to another configuration: seed: 0 there, 5 here" in error
    assert "Traceback" not in error
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=digits", "--config.trian.epochs=1"], "unknown field in config: 'trian'; did you mean 'train'?"),
        (
            ["--config=digits", "--config.train.epoch=1"],
            "unknown field in config.train: 'epoch'; did you mean 'epochs'?",
        ),
        (["--config=digits", "--config.train.epochs=many"], "config.train.epochs: expected int, like 8; got 'many'"),
        (["--config=digits", "--config.train=1"], "config.train is a group"),
        (["--config=digits:lagrangain"], "unknown method or preset 'lagrangain'; did you mean 'lagrangian'?"),
        (["--config=digit"], "unknown configuration 'digit'; did you mean 'digits'?"),
        (["--config=configs/digit.py"], "unknown configuration 'configs/digit.py'; did you mean 'digits'?"),
        (["--config=nowhere/config.py"], "unknown configuration 'nowhere/config.py'"),
        (["--confg=digits"], "unknown argument '--confg=digits'"),
        (["--config.method.step_size=1/0"], "config.method.step_size: expected float, like 0.15; got '1/0'"),
        ([f"--config={pathlib.Path(__file__).parents[1] / 'pyproject.toml'}"], "toml: expected a Python file"),
        (["--config.network.name=resnet19"], "unknown network 'resnet19'; did you mean 'resnet18'?"),
    ],
)
def test_wrong_usage_is_one_line(capfd, tmp_path, arguments, expected):
    code, error = _main(capfd, *arguments, f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert expected in error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("evaluation.suite=quik", "did you mean 'quick'?"),
        ("validation.attack=pgd_l3", "unknown attack 'pgd_l3'; did you mean 'pgd_l2'?"),
        ("validation.attack=jpeg --config.data.image_size=24", "jpeg: images must be"),
        ("data.name=digit", "did you mean 'digits'?"),
        ("data.validation=99999", "validation"),
        ("train.steps=12", "train.steps: expected 0 to 10 batches of 128; got 12"),
        ("evaluation.checkpoint=bets", "evaluation.checkpoint: expected 'last' or 'best'; got 'bets'"),
        ("train.clean_epochs=2 --config.evaluation.checkpoint=best", "'best' needs data.validation > 0 and an epoch"),
        ("precision=float16", "precision: expected float32 or bfloat16; got 'float16'"),
        ("train.batch_size=99999", "train.batch_size: expected a multiple of the 1 devices"),
    ],
)
def test_wrong_values_are_one_line(capfd, tmp_path, field, expected):
    fields = f"--config.{field}".split()
    code, error = _main(capfd, "--config=digits:smoke", *fields, f"--workdir={tmp_path / 'run'}")
    assert code == (1 if field.startswith("data.") else 2)  # data may be there at the next try
    assert expected in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_unwritable_work_directory(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    code, error = _main(capfd, "--config=digits:smoke", f"--workdir={tmp_path / 'file' / 'run'}")
    assert code == 1
    assert "cannot write to the work directory" in error


def test_missing_data_set_says_where_and_how(capfd, tmp_path):
    code, error = _main(
        capfd, "--config=cifar10:smoke", f"--config.data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}"
    )
    assert code == 1
    assert str(tmp_path) in error
    assert "lagrangian_jax.data.prepare" in error


def test_torn_notes_of_the_images(dataset, tmp_path):
    (tmp_path / "data.json").write_text('{"train": ')
    with pytest.raises(ValueError, match=r"data\.json is damaged \(.*\): restore it, or give another --workdir"):
        same_data(tmp_path, dataset)


def test_torn_settings_of_a_work_directory(capfd, tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 0, ')
    code, error = _main(capfd, "--config=digits:smoke", f"--workdir={tmp_path}")
    assert code == 1
    assert "config.json is damaged" in error
    assert (tmp_path / "config.json").read_text() == '{"seed": 0, '


def test_determinism_is_set_before_jax_starts(monkeypatch):
    """In the flags that XLA reads when it starts, beside those that are there; once."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine=1")
    config = configuration.load("digits")
    configuration.prepare_jax(config)
    assert "deterministic" not in os.environ["XLA_FLAGS"]
    configuration.set_field(config, "deterministic", "true")
    for _ in range(2):
        configuration.prepare_jax(config)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[0] == "--xla_mine=1"
    assert flags.count("--xla_gpu_deterministic_ops=true") == 1
    assert flags.count(f"--xla_cpu_experimental_ynn_fusion_type={configuration.YNN}") == 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    configuration.prepare_jax(config)
    assert "REDUCE" not in os.environ["XLA_FLAGS"]


def test_sigterm_outside_of_the_loops(capfd):
    """While data is read, say: nothing is lost, and a scheduler is to run it again."""
    before = signal.getsignal(signal.SIGTERM)
    assert configuration.guarded(lambda: os.kill(os.getpid(), signal.SIGTERM)) == os.EX_TEMPFAIL == 75
    assert "the same command goes on" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_work_directory_in_use(capfd, tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, error = _main(capfd, "--config=digits:smoke", f"--workdir={tmp_path / 'run'}")
    assert code == 1
    assert "in use by another process" in error
