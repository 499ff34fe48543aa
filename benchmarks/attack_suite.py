"""Speed of every attack, and of a whole suite: images per second, passes of the network, compilation, memory.

    python -m benchmarks.attack_suite --images=128 --output=results/attack_suite/cpu.json
    python -m benchmarks.attack_suite --attacks=fgsm,jpeg,square --images=8 --width=4 --most=3 --suite=none

The attacked network is a ResNet-18 with random weights, on random images. The labels are its predictions, so that no
attack can skip an example as misclassified. ``--cache`` keeps compiled programs: a second run with it shows how much
compilation is left. Peak memory is the growth of the process (on a CPU) or of the device during the attack; a device
only reports its peak since the start, so there an attack that needs less than an earlier one shows nothing.
"""

import argparse
import contextlib
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import lagrangian_jax as lj
from benchmarks.output import write
from lagrangian_jax.evaluation.suites import Row

DISTANCE = {"distance": "lpips_alexnet_cifar"}
# Parameters without which an attack does not run, or would run for days.
PARAMETERS: dict[str, dict] = {
    "lpa": DISTANCE,
    "fast_lpa": DISTANCE,
    "ppgd": DISTANCE,
    "corner_search": {"pixels": 3, "iterations": 100},
}
COUNTS = (
    "steps",
    "queries",
    "iterations",
    "rounds",
    "restarts",
    "search_steps",
    "sinkhorn_steps",
    "max_pixels",
    "targets",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks.attack_suite"
    )
    parser.add_argument("--attacks", type=lambda text: text.split(","), default=list(lj.attacks.names()))
    parser.add_argument("--suite", default="cifar10_table1", help="a suite to run as a whole, too, or none")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--width", type=int, default=16, help="width of the network; the paper's is 64")
    parser.add_argument("--most", type=int, help="cap on steps, queries and the like")
    parser.add_argument("--cache", type=pathlib.Path, help="a directory for compiled programs")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    options = parser.parse_args(arguments)
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", str(options.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    network, variables, images, labels = example(options.width, options.size, options.images)

    def run(suite) -> dict:
        before, started = memory_start(), time.perf_counter()
        result = lj.evaluation.run(network, images, labels, suite=suite, variables=variables)
        rows = [
            {
                "name": row.name,
                "seconds": row.seconds,
                "compile_seconds": row.compile_seconds,
                "images_per_second": row.total / row.seconds if row.seconds else None,
                "gradient_evaluations": row.gradient_evaluations,
                "forward_passes": row.forward_passes,
                "counts_are_exact": row.cost_exact,
            }
            for row in result.attacks
        ]
        return {"rows": rows, "wall_seconds": time.perf_counter() - started, "peak_bytes": memory_peak() - before}

    lj.evaluation.run(network, images, labels, suite=[Row("none")], variables=variables)  # compiles prediction
    measured = []
    print(f"{'attack':21s} images/s  gradients  passes  compilation     memory")
    for name in options.attacks:
        whole = run([Row(name, name, capped(name, options.most))])
        row = whole["rows"][0] | {"peak_bytes": whole["peak_bytes"]}
        measured.append(row)
        print(line(row), flush=True)
    result = {
        "images": options.images,
        "size": options.size,
        "width": options.width,
        "most": options.most,
        "attacks": measured,
    }
    if options.suite != "none":
        whole = run(suite_rows(options.suite, options.most))
        totals = {key: sum(row[key] for row in whole["rows"]) for key in ("seconds", "compile_seconds")}
        result["suite"] = {"name": options.suite, **totals, **whole}
        print(
            f"{options.suite}: {totals['seconds']:.1f} s for {options.images} images, compilation "
            f"{totals['compile_seconds']:.1f} s, {whole['wall_seconds']:.1f} s in all, "
            f"{whole['peak_bytes'] / 2**20:.0f} MiB"
        )
    write(options.output, result)
    return 0


def example(width: int, size: int, count: int):
    """A network as ``logits_fn(variables, images)``, its variables, random images, and its predictions for them."""
    network = lj.models.create("resnet18", num_classes=10, width=width)
    images = np.random.default_rng(0).random((count, size, size, 3), np.float32)
    variables = jax.jit(lambda key: network.init(key, images[:1], train=False))(jax.random.key(0))

    def logits_fn(variables, images):
        return network.apply(variables, images, train=False)

    predictions = jax.jit(lambda images: jnp.argmax(logits_fn(variables, images), -1))(images)
    return logits_fn, variables, images, np.asarray(predictions, np.int32)


def capped(name: str, most: int | None, given: dict | None = None) -> dict:
    """The attack's parameters, with none of its counts over ``most``."""
    given = PARAMETERS.get(name, {}) if given is None else dict(given)
    if most is None:
        return given
    known = given | {"distance": lj.distances.create("l2")} if "distance" in given else given
    found = lj.attacks.create(name, **known).parameters
    return given | {key: min(found[key] or most, most) for key in COUNTS if key in found}


def suite_rows(name: str, most: int | None):
    if most is None:
        return name
    rows = lj.evaluation.suites.SUITES[name]
    return [Row(row.name, row.attack, capped(row.attack, most, dict(row.parameters))) for row in rows]


def memory_start() -> int:
    """What `memory_peak` grows from: a device's peak so far; on a CPU the bytes in use, with the peak reset to them."""
    if jax.default_backend() != "cpu":
        return memory_peak()
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then that since the start
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def memory_peak() -> int:
    if jax.default_backend() != "cpu":
        return sum((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())
    return _resident("VmHWM")


def _resident(field: str) -> int:
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def line(row: dict) -> str:
    def number(value, form):
        return "?" if value is None else format(value, form)

    memory = row["peak_bytes"] / 2**20
    return (
        f"{row['name']:21s} {number(row['images_per_second'], '8.2f')}  {number(row['gradient_evaluations'], '9.1f')}  "
        f"{number(row['forward_passes'], '6.0f')}  {row['compile_seconds']:9.1f} s  {memory:6.0f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
