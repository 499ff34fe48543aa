"""An invented work directory for the tests of the report; ``python tests/report_workdir.py DIR`` writes one."""

import json
import pathlib
import sys

import numpy as np

# name, label, parameters, column, correct of 1000, mean norms (l0, l2, linf), gradient evaluations
SUITE = [
    ("none", "Clean", {}, "clean", 803, (0, 0, 0), 0),
    ("lpa", "LPA, 0.5", {"bound": 0.5, "steps": 200, "distance": "alexnet"}, "lpa", 212, (3002.1, 2.45, 0.21), 220),
    ("pgd_linf", "PGD linf, 8/255", {"bound": 8 / 255, "steps": 40, "step_size": 2 / 255}, "linf", 438,
     (3048, 1.56, 0.0314), 40),
    ("pgd_l2", "PGD l2, 1.0", {"bound": 1.0, "steps": 40, "step_size": 0.1}, "l2", 512, (3066, 1.0, 0.11), 40),
    ("recolor", "ReColorAdv, 0.06", {"bound": 0.06, "steps": 100}, "recolor", 691, (2950, 2.18, 0.06), 100),
    ("stadv", "StAdv, 0.05", {"bound": 0.05, "steps": 100}, "stadv", 416, (2871.5, 3.67, 0.44), 100),
    ("elastic", "Elastic, 0.5 px", {"bound": 0.5, "steps": 50, "kernel_size": 25, "sigma": 3.0}, "elastic", 368,
     (2989, 7.87, 0.71), 50),
    ("jpeg", "JPEG, 0.125", {"bound": 0.125, "steps": 50}, "jpeg", 614, (3010, 2.07, 0.19), 50),
    ("gaussian_noise", "Gaussian noise, 0.05", {"variance": 0.05}, "noise", 707, (3072, 12.39, 0.9), 0),
    ("gaussian_blur", "Gaussian blur, 1.5", {"kernel_size": 5, "sigma": 1.5}, "blur", 636, (3050, 5.68, 0.65), 0),
    ("pgd_l0", "PGD0, 10 pixels", {"pixels": 10, "steps": 20, "restarts": 3}, "pgd0", 444, (27.1, 3.9, 0.99), 60),
]  # fmt: skip
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
EPOCH = 96  # steps


def fake(folder, names=None, *, side=32, channels=3, epochs=20, class_names=CLASSES, failures=(), seed=0):
    """Writes a work directory as a training and an evaluation leave it, with invented but plausible numbers.

    Args:
      folder: where; must not exist.
      names: attacks to keep; all by default.
      side: image side in pixels.
      channels: of the images.
      epochs: of the training.
      class_names: in the settings.
      failures: messages in the results.
      seed: of the invention.
    """
    rng = np.random.default_rng(seed)
    folder = pathlib.Path(folder)
    (folder / "evaluation").mkdir(parents=True)
    _write(folder / "config.json", _config(folder, epochs, class_names, seed))
    lines = "".join(json.dumps(line) + "\n" for line in _metrics(rng, epochs))
    (folder / "metrics.jsonl").write_text(lines)

    labels, holds, attacks = rng.integers(0, 10, 1000), np.ones(1000, bool), []
    clean = _images(rng, side, channels)
    difficulty = 2 * rng.normal(size=1000)  # some images are easy for every attack
    for name, label, parameters, column, correct, norms, gradients in SUITE:
        if names is not None and name not in names:
            continue
        right = np.zeros(1000, bool)
        right[np.argsort(difficulty + rng.normal(size=1000))[:correct]] = True
        holds &= right
        noise = rng.normal(size=clean.shape) * norms[1] / np.sqrt(clean[0].size)
        np.savez(
            folder / "evaluation" / f"{name}.npz",
            index=np.arange(1000),
            label=labels,
            prediction=np.where(right, labels, (labels + 3) % 10),
            correct=right,
            **{norm: np.full(1000, value) for norm, value in zip(("l0", "l2", "linf"), norms, strict=True)},
            picture_index=np.arange(100, 108),
            pictures=np.clip(clean + noise, 0, 1).astype(np.float32),
        )
        attacks.append(
            {"name": name, "label": label, "attack": name, "parameters": parameters, "column": column,
             "correct": correct, "total": 1000, "accuracy": correct / 1000, "mean_l0": norms[0], "mean_l2": norms[1],
             "mean_linf": norms[2], "mean_ssim": 1 - 0.01 * norms[1],
             "seconds": 0.31 * gradients + 0.2, "compile_seconds": 4.2,
             "gradient_evaluations": gradients, "forward_passes": gradients + 1,
             "cost_exact": name != "lpa", "attacked": 803 if name == "pgd_l0" else 1000,
             "stages": [803, 640, 512] if name == "pgd_l0" else [1000]}
        )  # fmt: skip
    complete = names is None
    results = {
        "schema": 1,
        "suite": "cifar10_table1" if complete else "quick",
        "seed": seed,
        "versions": {"lagrangian_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.0", "python": "3.11.2"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "data": {"name": "cifar10", "split": "test", "examples": 1000, "remark": "The first 1,000 test images."},
        "network": {"name": "resnet18", "width": 16, "parameters": 701466},
        "training": {
            "method": "lagrangian", "epochs": epochs, "steps": EPOCH * epochs, "seconds": 754.2,
            "selected": {"checkpoint": "best", "epoch": epochs, "robust_accuracy": 0.48},
        },
        "attacks": attacks,
        "summary": {
            "clean": 0.803,
            "unseen_mean": 3876 / 7000 if complete else None,
            "union_mean": 5038 / 10000 if complete else None,
            "worst_case": {"correct": int(holds.sum()), "total": 1000},
        },
        "failures": list(failures),
    }  # fmt: skip
    _write(folder / "results.json", results)
    return folder


def _config(folder, epochs, class_names, seed):
    return {
        "method": {"name": "lagrangian", "multiplier": 2.0, "step_size": 0.15, "steps": 5, "decay": 0.1, "kappa": 1.0},
        "data": {"name": "cifar10", "class_names": class_names, "validation": 1024, "dir": None},
        "network": {"name": "resnet18", "width": 16, "precision": "bfloat16"},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "drops": [70, 90], "weight_decay": 2e-4},
        "epochs": epochs,
        "batch_size": 512,
        "seed": seed,
        "workdir": str(folder),
    }


def _metrics(rng, epochs):
    for step in range(10, EPOCH * epochs + 1, 10):
        done, noise = step / (EPOCH * epochs), rng.normal(size=4)
        yield {
            "kind": "train", "step": step, "epoch": step / EPOCH,
            "loss": 0.9 + 1.4 * np.exp(-4 * done) + 0.05 * noise[0],
            "clean_accuracy": None if step % 20 else 0.82 - 0.5 * np.exp(-5 * done),
            "adversarial_accuracy": 0.55 - 0.4 * np.exp(-4 * done) + 0.01 * noise[1],
            "perturbation_l2": 1.1 + 0.3 * done + 0.02 * noise[2], "saturated": 0.3 - 0.2 * done,
            "learning_rate": 0.1 if done < 0.7 else 0.01, "images_per_second": 5000 + 80 * noise[3],
            "seconds": 0.1 * step,
        }  # fmt: skip
        if step % (5 * EPOCH) == 0:
            epoch = step // EPOCH
            robust = 0.5 - 0.4 / epoch
            yield {"kind": "validation", "step": step, "epoch": epoch, "clean_accuracy": 0.79 - 0.4 / epoch,
                   "robust_accuracy": robust, "best": True}  # fmt: skip


def _images(rng, side, channels):
    """Eight smooth images with a bright patch."""
    ramp = np.linspace(0, 1, side)
    smooth = (0.25 + 0.5 * np.outer(ramp, ramp))[None, :, :, None] * rng.uniform(0.2, 1, (8, 1, 1, channels))
    return np.clip(smooth + 0.1 * (ramp > 0.6)[:, None, None], 0, 1)


def _write(path, value):
    path.write_text(json.dumps(value))


if __name__ == "__main__":
    fake(sys.argv[1], failures=["attack lpa: out of device memory, batch halved to 64"])
