"""Compares every attack with recorded results of the original implementations: the tables of ``docs/parity.md``.

    python -m benchmarks.attack_parity --recorded=../shared/reference/golden
    python -m benchmarks.attack_parity --recorded=../shared/reference/golden --attacks=jpeg,snow --again

The folder holds ``results.csv`` (a row per network and attack), the attacked networks and LPIPS's AlexNet; the images
are the first of CIFAR-10's test set. Results go to ``results/attack_parity/results.json`` as they come; rows that are
already there are not run again. Then the tables are rewritten; ``--check`` only says whether they match the results.
"""

import argparse
import csv
import json
import pathlib
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

import lagrangian_jax as lj
from lagrangian_jax import data

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "attack_parity" / "results.json"
DOCUMENT = ROOT / "docs" / "parity.md"

LPIPS = "lpips_alexnet_cifar"
# By recorded row: the attack here, and the parameters that the original was called with.
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "clean": ("none", {}),
    "gaussian_noise": ("gaussian_noise", {}),
    "gaussian_blur": ("gaussian_blur", {}),
    "lag": ("lagrangian", {}),
    "l2_pgd40": ("pgd_l2", {"bound": 1.0}),
    "l2_pgd40_eps0p5": ("pgd_l2", {"bound": 0.5}),
    "linf_pgd40": ("pgd_linf", {"bound": 0.0314}),
    "linf_pgd40_16": ("pgd_linf", {"bound": 16 / 255}),
    "stadv_official": ("stadv", {}),
    "stadv_pa": ("stadv", {"step_size": 0.01}),
    "recolor_official": ("recolor", {}),
    "recolor_pa": ("recolor", {"smoothness": 0.06}),
    "elastic": ("elastic", {"kernel_size": 5, "sigma": 3 / 7}),
    "elastic_align_true": ("elastic", {"kernel_size": 5, "sigma": 3 / 7, "align_corners": True}),
    "elastic_k25": ("elastic", {}),
    "elastic_k25_align_true": ("elastic", {"align_corners": True}),
    "elastic_zero_flow": ("elastic", {"bound": 0.0, "steps": 1}),
    "elastic_zero_flow_align_true": ("elastic", {"bound": 0.0, "steps": 1, "align_corners": True}),
    "jpeg": ("jpeg", {}),
    "fog": ("fog", {}),
    "gabor": ("gabor", {}),
    "gabor_0p125": ("gabor", {"bound": 0.125}),
    "snow": ("snow", {}),
    "lpa_official": ("lpa", {"distance": LPIPS}),
    "lpa_pa": ("lpa", {"distance": LPIPS, "steps": 40, "projection": "newton", "probe": "forward"}),
    "fast_lpa": ("fast_lpa", {"distance": LPIPS}),
    "fast_lpa_train10": ("fast_lpa", {"distance": LPIPS, "steps": 10}),
    "ppgd_pa": ("ppgd", {"distance": LPIPS}),
    "pgd0_official": ("pgd_l0", {}),
    "pgd0_k10": ("pgd_l0", {"pixels": 10}),
    "ddn100": ("ddn", {}),
    "ddn_fast_maxnorm1": ("ddn", {"max_norm": 1.0}),
    "cw_l2": ("carlini_wagner", {"steps": 100, "search_steps": 5, "initial_const": 0.01}),
    "aa_linf": ("autoattack", {"norm": "linf", "bound": 8 / 255}),
    "aa_l2": ("autoattack", {"norm": "l2", "bound": 1.0}),
}
# These attacks look for the smallest perturbation; one that is larger than this does not count.
LARGEST_NORM = {"ddn100": 1.0, "cw_l2": 1.0}

# The paper's Table 7: attack, the recorded row that comes nearest, and the mean l2 norm printed there.
TABLE_7 = [
    ("Ours", "lag", 1.31),
    ("LPA", "lpa_official", 2.45),
    ("linf", "linf_pgd40", 1.56),
    ("l2", "l2_pgd40", 1.00),
    ("ReColorAdv", "recolor_official", 2.18),
    ("StAdv", "stadv_official", 3.67),
    ("Elastic", "elastic_k25", 7.87),
    ("JPEG", "jpeg", 2.07),
    ("Gaussian noise", "gaussian_noise", 12.39),
    ("Gaussian blur", "gaussian_blur", 5.68),
    ("PGD0", "pgd0_official", 7.87),
]
ANY_NETWORK = ("gaussian_noise", "gaussian_blur", "elastic_zero_flow")  # also measured on the whole test set


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks.attack_parity"
    )
    parser.add_argument("--recorded", type=pathlib.Path, help="folder of results.csv; without it only tables are made")
    parser.add_argument("--attacks", type=lambda text: text.split(","), help="rows of results.csv, comma-separated")
    parser.add_argument("--again", action="store_true", help="also run rows that are already in the results")
    parser.add_argument("--check", action="store_true", help="exit status 1 if the tables are out of date")
    options = parser.parse_args(arguments)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.recorded:
        for name, row in measure(options.recorded, options.attacks, {} if options.again else results):
            results[name] = row
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(name, json.dumps(row), flush=True)
    text = DOCUMENT.read_text()
    wanted = written(text, {"strength": strength(results), "norms": norms(results)})
    if options.check:
        return int(wanted != text)
    DOCUMENT.write_text(wanted)
    return 0


def measure(recorded: pathlib.Path, attacks: list[str] | None, done: dict):
    """Runs the rows that are not done; yields each one's name, such as A/jpeg, and its results."""
    with open(recorded / "results.csv") as file:
        originals = [row for row in csv.DictReader(file) if row["attack"] in (attacks or ATTACKS)]
    images, labels = cifar10_test()
    networks: dict[str, Callable] = {}
    for original in originals:
        model, attack = original["model"], original["attack"]
        if f"{model}/{attack}" in done:
            continue
        if model not in networks:
            networks[model] = load_network(recorded / f"model_{model.lower()}.safetensors")
        first, count = int(original["first_index"]), int(original["n"])
        chosen = slice(first, first + count)
        here = run(attack, recorded, networks[model], images[chosen], labels[chosen])
        keys = ("robust_acc", "mean_l2", "seconds")
        yield f"{model}/{attack}", {"n": count, "here": here, "original": {key: float(original[key]) for key in keys}}
    for attack in ANY_NETWORK:
        if f"test set/{attack}" not in done and (not attacks or attack in attacks):
            yield f"test set/{attack}", {"n": len(images), "here": {"mean_l2": norm_without_network(attack, images)}}


def cifar10_test() -> tuple[np.ndarray, np.ndarray]:
    test = data.load(SimpleNamespace(name="cifar10")).test
    return test.images.astype(np.float32) / 255, test.labels


def load_network(weights: pathlib.Path) -> Callable:
    network = lj.models.create("resnet18", num_classes=10, width=16)
    variables = lj.interop.load(str(weights), network)
    return lambda images: network.apply(variables, images, train=False)


def create(row: str, recorded: pathlib.Path) -> lj.attacks.Attack:
    name, parameters = ATTACKS[row]
    if "distance" in parameters:
        weights = recorded / "alexnet_cifar_features.safetensors"
        parameters = {**parameters, "distance": lj.distances.create(LPIPS, weights=weights)}
    return lj.attacks.create(name, **parameters)


def run(row: str, recorded: pathlib.Path, logits_fn: Callable, images: np.ndarray, labels: np.ndarray) -> dict:
    predict = jax.jit(lambda images: logits_fn(images).argmax(-1))
    clean = np.asarray(predict(images)) == labels
    started = time.perf_counter()
    adversarial = np.asarray(create(row, recorded)(jax.random.key(0), logits_fn, images, labels))
    seconds = time.perf_counter() - started
    robust = np.asarray(predict(adversarial)) == labels
    l2 = np.sqrt(np.square(adversarial - images).sum((1, 2, 3)))
    if row in LARGEST_NORM:
        robust |= clean & (l2 > LARGEST_NORM[row])
    return {
        "robust_acc": round(100 * float(robust.mean()), 2),
        "mean_l2": round(float(l2.mean()), 4),
        "seconds": round(seconds, 1),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def norm_without_network(row: str, images: np.ndarray) -> float:
    attack = create(row, ROOT)
    logits_fn = lambda images: images.mean((1, 2))  # noqa: E731  any network: the attack ignores it
    labels = np.zeros(1000, np.int32)
    parts = [
        np.asarray(attack(jax.random.key(start), logits_fn, part, labels)) - part
        for start in range(0, len(images), 1000)
        for part in [images[start : start + 1000]]
    ]
    return round(float(np.mean([np.sqrt(np.square(part).sum((1, 2, 3))).mean() for part in parts])), 4)


def strength(results: dict) -> str:
    lines = [
        "| attack | called as | images | original % | here % | difference | l2, original | here | s, original | here |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name in sorted(results, key=lambda name: (name.split("/")[0], list(ATTACKS).index(name.split("/")[1]))):
        model, attack = name.split("/")
        if model == "test set":
            continue
        here, original = results[name]["here"], results[name]["original"]
        cells = [
            attack,
            f"`{call(attack)}`",
            str(results[name]["n"]),
            f"{original['robust_acc']:.2f}",
            f"{here['robust_acc']:.2f}",
            f"{here['robust_acc'] - original['robust_acc']:+.2f}",
            f"{original['mean_l2']:.3f}",
            f"{here['mean_l2']:.3f}",
            f"{original['seconds']:.0f}",
            f"{here['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def call(row: str) -> str:
    name, parameters = ATTACKS[row]
    given = [
        f"{key}={value if key == 'distance' else format(value, '.4g') if isinstance(value, float) else repr(value)}"
        for key, value in parameters.items()
    ]
    return f"{name}({', '.join(given)})"


def norms(results: dict) -> str:
    lines = [
        "| attack | Table 7 | original, network A | here, network A | here, whole test set |",
        "| --- | --: | --: | --: | --: |",
    ]
    for label, row, printed in TABLE_7:
        measured = results.get(f"A/{row}")
        whole = results.get(f"test set/{row}")
        cells = [
            label,
            f"{printed:.2f}",
            f"{measured['original']['mean_l2']:.2f}" if measured else "",
            f"{measured['here']['mean_l2']:.2f}" if measured else "",
            f"{whole['here']['mean_l2']:.2f}" if whole else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def written(text: str, tables: dict[str, str]) -> str:
    """``text`` with each table put between its pair of comments, ``<!-- name -->`` and ``<!-- /name -->``."""
    for name, table in tables.items():
        before, rest = text.split(f"<!-- {name} -->")
        after = rest.split(f"<!-- /{name} -->")[1]
        text = f"{before}<!-- {name} -->\n{table}\n<!-- /{name} -->{after}"
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
