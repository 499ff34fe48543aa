"""Killed, short of disk, told the wrong time, given damaged or hostile files: nothing lost, and a clear message."""

import collections
import functools
import io
import json
import os
import pathlib
import random
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import pytest

from lagrangian_jax import distances, evaluation
from lagrangian_jax.data.cache import cached
from lagrangian_jax.interop import torch_file

TIMES = ("seconds", "compile_seconds", "images_per_second")
start = runpy.run_path(str(pathlib.Path(__file__).with_name("tiny_run.py")))["start"]
start_with_memory = functools.partial(start, method="iaat")  # IAAT remembers a bound for each image
WARMUP = "--config.method.warmup=1.0"


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def contents(workdir):
    """Everything that a run leaves, except times: JSON values and arrays, by name."""
    import orbax.checkpoint as ocp

    found = {}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = without_times(lines)
    found["results.json"] = without_times(json.loads((workdir / "results.json").read_text()))
    found["weights.safetensors"] = np.frombuffer((workdir / "weights.safetensors").read_bytes(), np.uint8)
    for kind in ("last", "best"):
        steps = sorted(int(path.name) for path in (workdir / "checkpoints" / kind).iterdir() if path.is_dir())
        found[f"{kind}: steps"] = steps
        newest = workdir / "checkpoints" / kind / str(steps[-1])
        position = without_times(json.loads((newest / "position" / "metadata").read_text()))
        found[f"{kind}: position"] = position
        state = ocp.PyTreeCheckpointer().restore(newest / "state")
        import jax

        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            found[f"{kind}: state{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    for path in sorted((workdir / "evaluation").iterdir()):
        with np.load(path) as rows:
            found |= {f"{path.name}: {name}": rows[name] for name in rows.files if name not in ("seconds", "about")}
    return found


def assert_same_run(workdir, expected):
    found = contents(workdir)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == found[name].dtype, name
            assert value.tobytes() == found[name].tobytes(), name
        else:
            assert value == found[name], name
    left = [path for path in workdir.rglob("*") if path.suffix in (".writing", ".unfinished", ".part", ".tmp")]
    assert not left
    assert not list(workdir.rglob("*orbax-checkpoint-tmp*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run leaves, and the folder with the programs that it compiled."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder / "run", folder / "log"), folder / "log")
    return contents(folder / "run"), folder


def finish(process, log, code=0):
    assert process.wait(600) == code, log.read_text(errors="replace")[-3000:]


# Kills


def newer(folder, since, pattern="*"):
    """Whether a file in the folder was written after ``since``."""
    try:
        return any(path.stat().st_mtime_ns > since for path in folder.glob(pattern))
    except FileNotFoundError:  # renamed while we look
        return True


PHASES = {  # how the work directory shows that a phase has begun, and how many seconds later, at most, to kill
    "start": (lambda workdir, since: True, 6.0),
    "training": (lambda workdir, since: newer(workdir, since, "metrics.jsonl"), 0.5),
    "checkpoint": (lambda workdir, since: newer(workdir / "checkpoints", since, "*/*orbax-checkpoint-tmp*"), 0.1),
    "evaluation": (lambda workdir, since: newer(workdir / "evaluation", since, ".*"), 1.0),
    "results": (lambda workdir, since: newer(workdir, since, "*results.json*"), 0.5),
}


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    """Each time the same command again; the run ends as one that was not killed, bit for bit."""
    log = tmp_path / "log"
    finish(start_with_memory(tmp_path / "whole", log, WARMUP), log)
    expected = contents(tmp_path / "whole")
    assert expected["last: state['memory']"].size
    draw, kills, runs = random.Random(), collections.Counter(), 0
    while sum(kills.values()) < 50:
        workdir, killed = tmp_path / f"run{runs}", True
        while killed:
            phase = draw.choice([*PHASES, "training", "checkpoint", "evaluation"])
            begun, longest = PHASES[phase]
            since = time.time_ns()
            process = start_with_memory(workdir, log, WARMUP)
            while process.poll() is None and not begun(workdir, since):
                time.sleep(0.002)
            time.sleep(draw.uniform(0, longest))
            killed = process.poll() is None
            if killed:
                process.kill()
                process.wait()
                kills[phase] += 1
            else:
                finish(process, log)
        assert_same_run(workdir, expected)
        runs += 1
    print(f"{sum(kills.values())} kills in {runs} runs: {dict(kills)}")
    assert set(kills) == set(PHASES)


# Twice the same


@pytest.mark.slow
def test_deterministic_runs_are_equal(whole, tmp_path):
    """Bit for bit, with everything compiled anew."""
    finish(start(tmp_path / "run", tmp_path / "log"), tmp_path / "log")
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_damaged_compiled_programs_are_compiled_again(whole, tmp_path):
    """A kill while JAX writes one leaves a part of it."""
    cache = shutil.copytree(whole[1] / "cache", tmp_path / "cache")
    programs = [path for path in cache.rglob("*-cache") if path.is_file()]
    assert programs
    for number, path in enumerate(programs):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * (number % 3) // 3])
    finish(start(tmp_path / "run", tmp_path / "log"), tmp_path / "log")
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_a_second_process_is_turned_away(whole, tmp_path):
    workdir = tmp_path / "run"
    cache = str(whole[1] / "cache")
    first = start(workdir, tmp_path / "first", XDG_CACHE_HOME=cache)
    while not (workdir / "config.json").exists():
        time.sleep(0.01)
    finish(start(workdir, tmp_path / "second", XDG_CACHE_HOME=cache), tmp_path / "second", code=1)
    assert "is in use by another process" in (tmp_path / "second").read_text()
    finish(first, tmp_path / "first")
    assert_same_run(workdir, whole[0])


# A full disk

ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1 tmpfs "$2" && shift
"${@:2}" --workdir="$1/run"
code=$?
cp -a "$1/run" "$1.copy"
exit $code
"""


def small_disks():
    """Whether a file system of a given size can be made here: a user namespace with a mount of its own."""
    done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or not small_disks(), reason="no file system of its own can be made"
)
def test_a_full_disk_is_told_and_costs_nothing(whole, tmp_path):
    """Full at any point from the first checkpoint to the report: one line, exit code 1; with room, it goes on."""
    log, reached, cache = tmp_path / "log", set(), str(whole[1] / "cache")
    for size in ("100k", "200k", "300k", "600k", "1500k"):
        disk = tmp_path / size
        disk.mkdir()
        log.unlink(missing_ok=True)
        wrapper = ["unshare", "-rm", "bash", "-c", ON_A_SMALL_DISK, "bash", size, str(disk)]
        finish(start(disk / "run", log, wrapper=wrapper, XDG_CACHE_HOME=cache), log, code=1)
        output = log.read_text()
        (error,) = [line for line in re.split(r"[\r\n]", output) if "error: " in line]
        assert "No space left on device" in error
        assert error.endswith("; make room, and the same command goes on")
        assert "lagrangian_jax/" not in output  # no traceback of ours; orbax's threads may leave one
        workdir = pathlib.Path(f"{disk}.copy").rename(tmp_path / f"{size}-run")
        reached |= {name for name in ("evaluation", "results.json") if (workdir / name).exists()}
        finish(start(workdir, log, XDG_CACHE_HOME=cache), log)
        assert_same_run(workdir, whole[0])
    assert reached == {"evaluation", "results.json"}


# Too little memory

OUT_OF_MEMORY = """
    import resource
    import jax.numpy as jnp, numpy as np
    import lagrangian_jax as lj

    def logits_fn(images):  # 16 MB of intermediate values an image
        wide = jnp.sin(images.mean((1, 2, 3))[:, None] * jnp.arange(2**21, dtype=jnp.float32))
        return jnp.abs(jnp.fft.fft(wide))[:, :4]

    images = np.random.default_rng(0).random((16, 4, 4, 3), np.float32)
    evaluate = lambda batch_size: lj.evaluation.run(
        logits_fn, images, np.zeros(16, int), suite=[lj.evaluation.Row("none")], batch_size=batch_size
    )
    small = evaluate(2)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 150 * 2**20, resource.RLIM_INFINITY))
    large = evaluate(16)
    np.testing.assert_array_equal(large.examples["none"]["prediction"], small.examples["none"]["prediction"])
    print(large.failures)
"""


@pytest.mark.slow
def test_evaluation_goes_on_when_memory_runs_out():
    """For real: the process may have little more memory than it has."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(OUT_OF_MEMORY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "none: a batch of 16 did not fit into the device's memory; it went on with" in done.stdout


# Hostile files


def hostile_archive(path):
    """A zip whose members would land elsewhere if they were unpacked."""
    array = io.BytesIO()
    np.save(array, np.arange(3))
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../outside.npy", "/tmp/outside.npy", "a/../../outside.npy", "images.npy"):
            archive.writestr(name, array.getvalue())


def test_names_in_an_archive_stay_in_it(tmp_path):
    """Archives are read in memory: rows of an evaluation, cached images, weights; nothing is unpacked by name."""
    inside = tmp_path / "a" / "b" / "evaluation"
    inside.mkdir(parents=True)
    for name in ("none.npz", "weights.pt", "cache.npz", "features.npz"):
        hostile_archive(inside / name)
    before = sorted(tmp_path.rglob("*"))

    def logits_fn(images):
        return images.reshape(len(images), -1)[:, :2]

    images = np.zeros((2, 2, 2, 3), np.float32)
    with pytest.warns(UserWarning, match="damaged"):
        evaluation.run(logits_fn, images, np.zeros(2, int), suite=[evaluation.Row("none")], workdir=inside.parent)
    with pytest.raises(ValueError, match=r"weights\.pt"):
        torch_file.read(inside / "weights.pt")
    assert cached(inside / "cache.npz", ["images"], lambda: {"images": np.zeros(1)})["images"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"features\.npz"):
        distances.create("lpips_alexnet", weights=inside / "features.npz")
    assert sorted(tmp_path.rglob("*")) == before
    assert not pathlib.Path("/tmp/outside.npy").exists()
