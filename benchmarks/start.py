"""Seconds from a command to its first training step: the first time, and again with the compiled programs kept.

    python -m benchmarks.start
    python -m benchmarks.start --output=results/start.json --config=digits --config.network.width=64

Runs ``python -m lagrangian_jax.main`` twice, in new work directories that share a new compilation cache, and ends each
run after its first line of metrics. There are no clean epochs, so the first step is the method's own.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.output import write

DEFAULT = ("--config=digits:lagrangian,smoke",)
FIRST_STEP = ("--config.train.log_steps=1", "--config.train.steps_per_call=1", "--config.train.clean_epochs=0")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    options, fields = parser.parse_known_args(argv)
    fields = [*(fields or DEFAULT), *FIRST_STEP]
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        seconds = {name: first_step(fields, work / name, work / "compiled") for name in ("cold", "warm")}
    result = {"command": ["python", "-m", "lagrangian_jax.main", *fields], "seconds": seconds}
    print(f"first start {seconds['cold']:.1f} s to the first step, second start {seconds['warm']:.1f} s")
    write(options.output, result)
    return 0


def first_step(fields: list[str], workdir: pathlib.Path, cache: pathlib.Path) -> float:
    """Seconds until a run with these arguments has written its first line of metrics."""
    command = [sys.executable, "-m", "lagrangian_jax.main", *fields, f"--workdir={workdir}"]
    metrics, log = workdir / "metrics.jsonl", workdir.with_suffix(".log")
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}, stdout=output, stderr=output
        )
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended before its first step:\n{log.read_text()[-2000:]}")
                time.sleep(0.02)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
