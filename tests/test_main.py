"""The doors: the whole program, and what wrong usage ends in."""

import argparse
import json
import os
import pathlib
import re
import signal

import jax
import numpy as np
import pytest

from lagrangian_jax import build, data, evaluate, interop, main, pack
from lagrangian_jax import config as configuration
from lagrangian_jax.reproduce import __main__ as reproduce
from lagrangian_jax.workdir import open_workdir, same_data

pytestmark = pytest.mark.usefixtures("tiny_network")


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
    # The results alone tell how the network was trained; where the data was is left out.
    made_with = json.loads((tmp_path / "run" / "config.json").read_text())
    for section in ("method", "optimizer", "augmentation", "regularisation", "validation"):
        assert results["configuration"][section] == made_with[section]
    assert results["configuration"]["method"] == {"name": "standard"}
    assert results["configuration"]["train"]["batch_size"] * results["training"]["steps"] == 128 * 2 * 2
    assert made_with["data"].keys() - results["configuration"]["data"].keys() == {"dir", "workers"}
    assert results["configuration"]["train"] | {"log_steps": 2} == made_with["train"]

    # The other door, on the weights that the run left: the same rows.
    again = [*arguments[:-1], f"--weights={tmp_path / 'run'}", f"--workdir={tmp_path / 'again'}"]
    assert evaluate.main(again) == 0
    capfd.readouterr()
    for row in (tmp_path / "run" / "evaluation").glob("*.npz"):
        one, other = np.load(row), np.load(tmp_path / "again" / "evaluation" / row.name)
        for column in ("index", "label", "prediction", "correct", "l2", "linf"):
            np.testing.assert_array_equal(one[column], other[column])
    # A work directory tells how its weights were trained, and of which network they are.
    other = json.loads((tmp_path / "again" / "results.json").read_text())
    assert [other[key] for key in ("training", "configuration")] == [results["training"], results["configuration"]]
    capfd.readouterr()
    assert evaluate.main([*again, "--config.network.normalisation=half"]) == 2
    error = capfd.readouterr().err
    assert "run was trained with another network: normalisation: None there, 'half' here. Give that one" in error
    # In the same work directory nothing is attacked again, and nothing is lost.
    before = (tmp_path / "run" / "results.json").read_text()
    assert evaluate.main([*arguments[:-1], f"--weights={tmp_path / 'run'}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(before)
    weights = f"--weights={tmp_path / 'run' / 'weights.safetensors'}"  # a file does not tell this
    assert evaluate.main([*arguments[:-1], weights, f"--workdir={tmp_path / 'file'}"]) == 0
    other = json.loads((tmp_path / "file" / "results.json").read_text())
    assert (other["training"], other["configuration"]) == (None, None)
    capfd.readouterr()
    assert evaluate.main([*again, "--suite=quik"]) == 2
    assert "did you mean 'quick'?" in capfd.readouterr().err
    assert evaluate.main([*arguments[:-1], f"--weights={tmp_path / 'none'}", f"--workdir={tmp_path / 'third'}"]) == 1
    assert "no such file" in capfd.readouterr().err

    arguments = [*arguments[:-1], f"--workdir={tmp_path / 'run'}"]
    before = (tmp_path / "run" / "config.json").read_text()
    code, error = _main(capfd, *arguments, "--config.seed=5")
    assert code == 2
    assert "belongs to another configuration: seed: 0 there, 5 here" in error
    assert "Traceback" not in error
    assert "lagrangian_jax.evaluate" not in error
    # Other attacks need no training; another checkpoint would.
    code, error = _main(capfd, *arguments, "--config.evaluation.suite=clean", "--config.evaluation.examples=4")
    assert code == 2
    assert "evaluation.examples: 8 there, 4 here; evaluation.suite: 'quick' there, 'clean' here." in error
    command = f"lagrangian_jax.evaluate --weights={tmp_path / 'run'} --config=... --suite=... --workdir=ANOTHER"
    assert f"To attack the trained network with other settings: python -m {command}" in error
    assert len(error.strip().splitlines()) == 1
    code, error = _main(capfd, *arguments, "--config.evaluation.checkpoint=best")
    assert code == 2
    assert "evaluation.checkpoint" in error
    assert "lagrangian_jax.evaluate" not in error
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_other_test_images_than_those_that_a_run_held_out_are_noted(tmp_path, monkeypatch, capfd):
    fields = ["--config=digits:standard,smoke", "--config.network.name=tiny", "--config.evaluation.examples=8"]
    _, config = configuration.parse([*fields, "--config.evaluation.suite=clean"], argparse.ArgumentParser())
    dataset, trained = data.load(config.data), tmp_path / "run"
    with open_workdir(trained, config):
        same_data(trained, dataset)
    network = build.build_network(config, len(dataset.classes))
    variables = network.init(jax.random.key(0), np.zeros((1, *dataset.test.images.shape[1:]), np.float32), train=False)
    interop.save(trained / "weights.safetensors", network, variables)

    def noted(name, *more):
        workdir = tmp_path / name
        arguments = [*fields, *more, "--suite=clean", f"--weights={trained}", f"--workdir={workdir}"]
        assert evaluate.main(arguments) == 0
        told = capfd.readouterr()
        notes = json.loads((workdir / "results.json").read_text())["failures"]
        for note in notes:  # before the attacks, and below the table
            assert f"note: {note}" in told.err
            assert f"note: {note}" in told.out
        return notes

    assert noted("same") == []
    monkeypatch.setitem(data.DATASETS, "others", data.DATASETS["digits"])
    assert noted("others", "--config.data.name=others") == [
        "the network was trained on 'digits', and these are the test images of 'others'"
    ]
    there = json.loads((trained / "data.json").read_text())
    there["test"]["digest"] = "0"  # as after a file was added to an own folder
    (trained / "data.json").write_text(json.dumps(there))
    assert noted("moved") == [
        "the test images are not those that the training run held out: it may have been trained on some of them; "
        "restore the images that it began with"
    ]
    del there["test"]  # as older versions wrote it
    (trained / "data.json").write_text(json.dumps(there))
    assert noted("older") == []


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
        ("validation.attack=lagrangian", "validation: unknown parameter of attack 'lagrangian': 'bound'"),
        ("validation.attack=jpeg --config.data.image_size=24", "jpeg: images must be"),
        ("evaluation.suite=cifar10_table1 --config.data.image_size=24", "jpeg: images must be"),
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


@pytest.mark.parametrize(
    ("door", "expected"),
    [
        (main, ["--config.FIELD=VALUE", "'digits' by default", "threshold_linf", "imagenet100", "cifar10_table1"]),
        (evaluate, ["--config.FIELD=VALUE", "'digits' by default", "threshold_linf", "imagenet100", "cifar10_table1"]),
        (reproduce, ["--CONFIGURATION.FIELD=VALUE", "--cifar10.train.epochs=10"]),
        (pack, ["--unpack unpack source into target"]),
    ],
)
def test_help_tells_what_else_can_be_given(capsys, door, expected):
    with pytest.raises(SystemExit):
        door.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in expected:
        assert part in text, part


def test_a_folder_may_have_the_name_of_a_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert configuration.load("digits:smoke").data.name == "digits"


def test_a_home_directory_in_a_path_is_found(tmp_path, monkeypatch):
    """A shell leaves the ~ of --workdir=~/run as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configuration.path("~/run") == tmp_path / "run"
    begun = []
    monkeypatch.setattr(configuration, "guarded", lambda function, config, workdir: begun.append(workdir) or 0)
    assert main.main(["--config=digits:smoke", "--workdir=~/run"]) == 0
    assert begun == [tmp_path / "run"]
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["--config=digits:smoke", "--weights=~/w.pt", "--workdir="])


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    import errno
    import fcntl

    def no_locks(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with open_workdir(tmp_path / "run", configuration.load("digits:smoke")):
        assert (tmp_path / "run" / "config.json").exists()
    assert "a file system without locks" in caplog.text


def _split(**arrays):
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1], np.int32)
    return data.Split(images, labels, np.arange(4, dtype=np.int32))._replace(**arrays)


def _dataset(**splits):
    split = _split()
    given = {"train": split, "validation": split, "test": split, "classes": ("a", "b"), **splits}
    return data.Dataset(name="mine", remark="", **given)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (dict(classes=("a",)), "classes of mine: expected two or more; got ['a']"),
        (dict(test=_dataset().test.take(slice(0))), "test images of mine: expected one or more"),
        (dict(test=_dataset().test.take(np.array([0, 0, 1]))), "got 3 with 2 indices"),
        (dict(validation=_dataset().test.take(slice(0))), "data.validation: 4 images are to be held out, but mine"),
        (dict(classes=2), "classes of mine: expected their names, such as ('cat', 'dog'); got 2"),
        (dict(classes="ab"), "classes of mine: expected their names, such as ('cat', 'dog'); got 'ab'"),
        (
            dict(train=_split(labels=np.zeros(4, np.float32))),
            "train labels of mine: expected whole numbers (N,); got float32 (4,): labels.astype(np.int32)",
        ),
        (
            dict(test=_split(labels=np.eye(4, 2, dtype=np.int32))),
            "test labels of mine: expected whole numbers (N,); got int32 (4, 2): labels.argmax(-1)",
        ),
        (dict(train=_split(labels=[0, 1, 0, 1])), "train labels of mine: expected whole numbers (N,); got a list"),
        (dict(train=_split(images=[[0]] * 4)), "train images of mine: expected uint8 (N, 8, 8, 3); got a list"),
        (dict(train=_split(labels=np.array([0, 2, 0, 1]))), "train labels of mine: expected 0 to 1"),
        (
            dict(train=_split(images=np.zeros((4, 8, 8, 3), np.float32))),
            "got float32 (4, 8, 8, 3); images in [0, 1]: (255 * images).round().astype(np.uint8)",
        ),
        (
            dict(train=_split(images=np.zeros((3, 8, 8, 3), np.uint8))),
            "train of mine: expected a label and an index for each image; got 3 images, 4 labels, 4 indices",
        ),
    ],
)
def test_data_that_would_stop_the_run_later_is_refused_at_once(wrong, expected):
    config = configuration.load("digits:smoke").unlock()
    config.data.update(image_size=8, validation=4)
    config.train.update(batch_size=4, steps=1)
    build.check(config, _dataset())
    with pytest.raises(ValueError, match=re.escape(expected)):
        build.check(config, _dataset(**wrong))


def test_unwritable_work_directory(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("run", os.fsdecode(b"\xff")):  # the second is a name of no text, which the message repeats
        code, error = _main(capfd, "--config=digits:smoke", f"--workdir={tmp_path / 'file' / name}")
        assert code == 1
        assert "cannot write to the work directory" in error


def test_missing_data_set_says_where_and_how(capfd, tmp_path):
    code, error = _main(
        capfd, "--config=cifar10:smoke", f"--config.data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}"
    )
    assert code == 1
    assert str(tmp_path) in error
    assert "lagrangian_jax.data.prepare" in error


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
