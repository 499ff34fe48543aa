"""Two processes on this machine, joined by jax.distributed: runs, checkpoints and signals, against one process."""

import json
import os
import pathlib
import runpy
import shutil
import signal
import socket
import time

import numpy as np
import pytest

start = runpy.run_path(str(pathlib.Path(__file__).with_name("tiny_run.py")))["start"]
pytestmark = pytest.mark.slow

# Batch statistics in the attack are those of a device: with the running ones, results do not depend on how many share.
FIELDS = ["--config.method.statistics=eval", "--config.train.epochs=2"]


def launch(workdir, processes, *fields, devices=1, before=""):
    """Starts a job of several processes, each of which writes its output to a file beside the work directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = []
    for process in range(processes):
        environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(process),
            }
        job.append(start(workdir, log(workdir, process), *FIELDS, *fields, before=before, **environment))
    return job


def log(workdir, process):
    return workdir.parent / f"{workdir.name}.{process}.log"


def finish(job, workdir, code=0, seconds=400):
    try:
        codes = [process.wait(seconds) for process in job]
    finally:
        for process in job:
            process.kill()
    logs = [log(workdir, process).read_text(errors="replace") for process in range(len(job))]
    assert codes == [code] * len(job), "\n".join(text[-3000:] for text in logs)
    return logs


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def weights(workdir):
    from safetensors.numpy import load_file

    return load_file(workdir / "weights.safetensors")


def assert_same_results(workdir, expected):
    """The same up to float rounding, since sums over devices are taken in another order.

    ReLUs amplify this step by step: large parts of the digits have one colour, and rounding can switch all of such a
    part at once. A run whose initial weights were perturbed by half a unit in the last place deviates by 2e-5 of its
    gradient's norm at the third step and 2e-3 at the fourth; two processes deviate from one by 2e-6 and 2e-5."""
    ours, theirs = metrics(workdir), metrics(expected)
    assert [(line["kind"], line["step"]) for line in ours] == [(line["kind"], line["step"]) for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        if line["kind"] == "train":
            early = line["step"] <= 2
            np.testing.assert_allclose(line["loss"], other["loss"], rtol=1e-6 if early else 1e-4)
            np.testing.assert_allclose(line["gradient_l2"], other["gradient_l2"], rtol=5e-6 if early else 2e-2)
    for name, value in weights(expected).items():
        np.testing.assert_allclose(weights(workdir)[name], value, rtol=1e-2, atol=5e-3, err_msg=name)
    for path in (expected / "evaluation").iterdir():
        rows, others = np.load(workdir / "evaluation" / path.name), np.load(path)
        np.testing.assert_array_equal(rows["index"], others["index"])
        assert np.sum(rows["correct"] != others["correct"]) <= 1, path.name
        np.testing.assert_allclose(rows["l2"], others["l2"], rtol=5e-2, atol=2e-2, err_msg=path.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(folder):
    """One process with one device."""
    workdir = folder / "alone"
    finish(launch(workdir, 1), workdir)
    return workdir


def test_two_processes_equal_one(folder, alone):
    """Training, validation, checkpoints, evaluation and report; the first process alone writes."""
    workdir = folder / "two"
    logs = finish(launch(workdir, 2), workdir)
    assert_same_results(workdir, alone)
    assert "report:" in logs[0]
    assert "report:" not in logs[1]
    assert not list(workdir.rglob("*process_1*"))
    results = json.loads((workdir / "results.json").read_text())
    assert results["device"]["processes"] == results["device"]["count"] == 2


def stopped(folder, name, processes, devices, step=4):
    """A run that was stopped by SIGTERM, sent to the last process, after some steps."""
    workdir = folder / name
    job = launch(workdir, processes, devices=devices)
    until = time.monotonic() + 400
    while not (workdir / "metrics.jsonl").exists() or len(metrics_so_far(workdir)) < step:
        assert time.monotonic() < until
        assert all(process.poll() is None for process in job)
        time.sleep(0.01)
    job[-1].send_signal(signal.SIGTERM)
    logs = finish(job, workdir, code=os.EX_TEMPFAIL)
    assert all("the same command goes on from there" in text for text in logs)
    (at,) = {text.split("stopped at step ")[1].split()[0] for text in logs}  # all of them at the same step
    return workdir, int(at)


def metrics_so_far(workdir):
    return [line for line in (workdir / "metrics.jsonl").read_text().splitlines() if '"train"' in line]


def test_sigterm_to_one_stops_all_and_they_go_on(folder, alone):
    workdir, step = stopped(folder, "stopped", processes=2, devices=1)
    assert 4 <= step < 8
    assert (workdir / "checkpoints" / "last" / str(step)).is_dir()
    finish(launch(workdir, 2), workdir)
    assert_same_results(workdir, alone)


def test_a_checkpoint_of_eight_devices_goes_on_with_one_and_with_two_processes(folder, alone):
    workdir, _ = stopped(folder, "eight", processes=1, devices=8)
    copies = [shutil.copytree(workdir, folder / f"eight-on-{processes}") for processes in (1, 2)]
    for processes, copy in enumerate(copies, start=1):
        finish(launch(copy, processes), copy)
        assert_same_results(copy, alone)


def test_an_error_of_the_first_process_is_told_by_all(folder, alone):
    """What the first process finds wrong with the work directory ends all of them, at once."""
    begun = time.monotonic()
    job = launch(alone, 2, "--config.seed=5")
    logs = finish(job, alone, code=2, seconds=100)
    assert all("belongs to another configuration: seed: 0 there, 5 here" in text for text in logs)
    assert time.monotonic() - begun < 90


def test_a_killed_process_ends_the_job_and_it_goes_on(folder, alone):
    workdir = folder / "killed"
    job = launch(workdir, 2)
    while not (workdir / "metrics.jsonl").exists() or len(metrics_so_far(workdir)) < 4:
        assert all(process.poll() is None for process in job)
        time.sleep(0.01)
    job[1].kill()
    assert job[0].wait(100) != 0  # it cannot go on alone, and does not hang
    finish(launch(workdir, 2), workdir)
    assert_same_results(workdir, alone)


def test_sigterm_during_evaluation_stops_all(folder, alone):
    workdir = shutil.copytree(alone, folder / "evaluating")
    shutil.rmtree(workdir / "evaluation")
    job = launch(workdir, 2)
    while not (workdir / "evaluation" / "none.npz").exists():
        assert all(process.poll() is None for process in job)
        time.sleep(0.01)
    job[1].send_signal(signal.SIGTERM)
    logs = finish(job, workdir, code=os.EX_TEMPFAIL)
    assert all("of 24 images done; the same command goes on from there" in text for text in logs)
    finish(launch(workdir, 1), workdir)
    assert_same_results(workdir, alone)


PAINTED = """
    import pathlib, jax, numpy as np
    from PIL import Image
    from lagrangian_jax import data

    class Painted:
        def __init__(self, name, rows):
            self.name, self.rows = name, np.asarray(rows)
            self.labels, self.indices = (self.rows % 10).astype(np.int32), self.rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, row):
            at = int(self.rows[row])
            with open(f"{NOTES}/{self.name}.{jax.process_index()}", "a") as notes:
                notes.write(f"{at}\\n")
            pixels = np.random.default_rng(at).integers(0, 256, (40, 48, 3), np.uint8)
            return Image.fromarray(pixels), int(self.labels[row])

        def take(self, rows):
            return Painted(self.name, self.rows[rows])

    NOTES = pathlib.Path(sys.argv[-1].partition("=")[2]).parent
    splits = {name: Painted(name, range(n)) for name, n in (("train", 80), ("validation", 21), ("test", 24))}
    data.DATASETS["painted"] = lambda config: data.Dataset("painted", tuple("0123456789"), **splits, remark="")
"""


def test_each_process_decodes_its_share_of_streamed_images(tmp_path):
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for workdir, processes in ((one, 1), (two, 2)):
        workdir.parent.mkdir()
        job = launch(workdir, processes, "--config.data.name=painted", "--config.evaluation.examples=0", before=PAINTED)
        finish(job, workdir)
    assert_same_results(two, one)
    for name, count in (("validation", 21), ("test", 24)):
        read = [list(map(int, (two.parent / f"{name}.{process}").read_text().split())) for process in (0, 1)]
        assert len(read[0]) == len(read[1]) + count % 2
        assert sorted(read[0] + read[1]) == list(range(count))
    read = [len((two.parent / f"train.{process}").read_text().split()) for process in (0, 1)]
    ahead = (os.cpu_count() + 2) * 8  # batches under way when training ended, a process's half of each
    assert all(8 * 8 <= number <= 8 * 8 + ahead for number in read)


def test_an_error_of_one_process_ends_the_job(tmp_path):
    """An image that only the second process reads cannot be read: it says so, and the first one does not wait."""
    workdir = tmp_path / "run"
    vanished = (
        PAINTED
        + """
    def vanish(self, row, read=Painted.__getitem__):
        if jax.process_index() == 1 and self.name == "test":
            raise data.DataError("painted/7.png: not there any more")
        return read(self, row)

    Painted.__getitem__ = vanish
    """
    )
    begun = time.monotonic()
    fields = ["--config.data.name=painted", "--config.evaluation.examples=0"]
    job = launch(workdir, 2, *fields, before=vanished)
    codes = [process.wait(400) for process in job]
    assert codes[1] == 1
    assert codes[0] != 0
    assert log(workdir, 1).read_text().strip().splitlines()[-1] == "error: painted/7.png: not there any more"
    assert time.monotonic() - begun < 300
    assert (workdir / "weights.safetensors").exists()  # training was done, and is kept
