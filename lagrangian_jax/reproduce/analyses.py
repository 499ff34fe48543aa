"""What the paper measures besides accuracy: Table 3, the foreground-to-background ratio, Figures 2, 3 and 4."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lagrangian_jax.analysis import (
    attention_map,
    effective_multiplier,
    foreground_to_background,
    norms_and_confidence,
    rank_correlation,
)
from lagrangian_jax.build import build_network
from lagrangian_jax.config import NotFinite
from lagrangian_jax.evaluation import Row, files, runner, suites
from lagrangian_jax.models.forward import apply
from lagrangian_jax.models.segmentation import foreground_probability
from lagrangian_jax.report import analysis_figures
from lagrangian_jax.reproduce import paper
from lagrangian_jax.reproduce.experiment import SHOWN, Outcome, Work, paired
from lagrangian_jax.reproduce.networks import QUICK_STEPS, Network
from lagrangian_jax.reproduce.workbench import Workbench

# ---- Table 3: the effective multiplier ----------------------------------------------------------

# Loss and l2 budget, by the name of the analysis; the first is compared with the paper, which states neither.
MULTIPLIERS = {
    "cross_entropy_1": ("cross_entropy", 1.0),
    "margin_1": ("margin", 1.0),
    "cross_entropy_0.5": ("cross_entropy", 0.5),
    "cross_entropy_1.5": ("cross_entropy", 1.5),
}
MULTIPLIER_STEPS = 40  # of each of three searches
MULTIPLIER_COST = tuple(  # in estimates, a multiplier costs as much as three runs of PGD
    Row(f"multiplier_{name}", "pgd_l2", {"bound": bound, "steps": 3 * MULTIPLIER_STEPS})
    for name, (_, bound) in MULTIPLIERS.items()
)


def multipliers(bench: Workbench, work: Sequence[Work]) -> Outcome:
    variants = [(name, estimator) for name in MULTIPLIERS for estimator in ("difference", "envelope")]
    columns = {"mean": "Mean", "std": "Std"}
    for name, estimator in variants[1:]:
        loss, bound = MULTIPLIERS[name]
        columns[f"{name}_{estimator}"] = f"{'CE' if loss == 'cross_entropy' else loss}, {bound:g}, {estimator}"
    outcome = Outcome(columns, paper.TABLE3, paper.METHODS)
    outcome.remarks.append(
        "Derivative of the adversarial loss with respect to the l2 budget, over the test images, including "
        "misclassified ones. Mean and Std (of the population) are of the cross-entropy at a budget of 1.0, by central "
        "difference; the paper states neither loss, budget nor estimator. The other columns are means by loss, budget "
        "and estimator; the envelope estimator counts only the values inside the box of images."
    )
    steps = QUICK_STEPS if bench.preset == "quick" else MULTIPLIER_STEPS
    for network, found, _ in paired(bench, work):
        outcome.take(network, found)
        measured = {}
        for name, (loss, bound) in MULTIPLIERS.items():
            about = {"loss": loss, "center": bound, "half_width": 0.1, "steps": steps}

            def measure(keys, logits_fn, images, labels, about=about):
                return effective_multiplier(keys, logits_fn, images, labels, **about)._asdict()

            kept = bench.analyse(found, f"multiplier_{name}", about, measure)
            outcome.took(network, f"multiplier_{name}", kept)
            for estimator in ("difference", "envelope"):
                values = kept[estimator]
                measured[f"{name}_{estimator}"] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
        first, *others = measured
        outcome.rows[network.method] = measured[first] | {name: measured[name]["mean"] for name in others}
        outcome.details[network.method] = measured
    return outcome


# ---- Foreground to background, and Figures 3 and 4: where attacks change the picture ------------

SEGMENTATION = Network("segmentation_cifar", "segmentation")
ATTENTION = Network("imagenet100", "standard")
STAGES = {"": -1, "_before": -2}  # of the attention maps: the last one, and the one before it
# The Lagrangian form with either penalty, with the parameters of training.
PENALTIES = {
    "cifar10": {
        "l2": Row("lagrangian"),
        "lpips": Row("fast_lpa", parameters={"bound": 0.5, "steps": 10, "distance": "lpips_alexnet_cifar"}),
    },
    "imagenet100": {
        "l2": Row("lagrangian", parameters={"multiplier": 0.45, "step_size": 0.25}),
        "lpips": Row("fast_lpa", parameters={"bound": 0.25, "steps": 10, "distance": "lpips_alexnet"}),
    },
}


def _foreground_fn(bench: Workbench, config: str, outcome: Outcome) -> tuple[dict[str, Callable[..., Any]], Any]:
    """Foreground probabilities ``fn(variables, images)`` by name, and the variables."""
    network = SEGMENTATION if config == "cifar10" else ATTENTION
    found = bench.trained(network)
    outcome.take(network, found)
    module = build_network(found.config, len(found.dataset.classes))

    def attention(stage, variables, images):
        _, stages = module.apply(variables, images, train=False, features=True)
        return attention_map(stages[stage], images.shape[1:3])

    functions: dict[str, Callable[..., Any]] = {"": functools.partial(foreground_probability, module)}
    if network == ATTENTION:
        functions = {name: functools.partial(attention, stage) for name, stage in STAGES.items()}
    return functions, found.variables


def ratios(bench: Workbench, work: Sequence[Work]) -> Outcome:
    columns = {"l2": "l2 penalty", "lpips": "LPIPS penalty"}
    columns |= {f"{key}_before": f"{heading}, stage before" for key, heading in columns.items()}
    outcome = Outcome(columns, paper.F2B, {"cifar10": "CIFAR-10", "imagenet100": "ImageNet-100"}, heading="Data")
    outcome.remarks.append(
        "The mean perturbation of the foreground divided by that of the background, averaged over images; images where "
        "it is not defined are left out. On CIFAR-10 the foreground is the segmentation network's; on ImageNet-100 it "
        "is the attention map of the last stage (and of the one before) of a network that was trained on clean images."
    )
    attacked = [each for each in work if not each.helps]
    for network, found, (_, rows, *_) in paired(bench, attacked):
        outcome.take(network, found)
        try:
            functions, variables = _foreground_fn(bench, network.config, outcome)
            attacks = [bench.attack_of(found, row) for row in suites.rows(rows)]
        except (ValueError, FileNotFoundError, NotFinite) as error:  # no foreground, or no weights of LPIPS
            bench.left_out.append(f"{network.config}: {error}")
            continue
        digest = files.digest(*jax.tree.leaves(variables))
        values = outcome.rows[network.config] = {}
        for penalty, attack in zip(("l2", "lpips"), attacks, strict=True):

            def measure(keys, logits_fn, images, labels, variables, attack=attack, functions=functions):
                perturbations = attack(keys, logits_fn, images, labels) - images
                return {
                    f"ratio{name}": foreground_to_background(perturbations, foreground(variables, images))
                    for name, foreground in functions.items()
                }

            about = {"attack": attack.name, "parameters": attack.parameters, "foreground": digest}
            kept = bench.analyse(found, f"f2b_{penalty}", about, measure, variables)
            for name in functions:
                defined = kept[f"ratio{name}"][~np.isnan(kept[f"ratio{name}"])]
                if len(defined):
                    values[f"{penalty}{name}"] = float(np.mean(defined))
            outcome.details[f"{network.config}, {penalty}: images left out"] = int(np.isnan(kept["ratio"]).sum())
            outcome.took(network, f"f2b_{penalty}", kept)
    return outcome


def pictures(bench: Workbench, work: Sequence[Work]) -> Outcome:
    """The first test images, where their foreground is, and what each attack does to them."""
    columns = {"l2": "l2 penalty", "lpips": "LPIPS penalty"}
    outcome = Outcome(columns, {}, {}, heading="Image, foreground to background")
    for network, found, (_, rows, *_) in paired(bench, work[:1]):
        outcome.take(network, found)
        images = bench.test_images(found).take(slice(0, SHOWN))
        pixels = jnp.asarray(images.images, jnp.float32) / 255
        functions, variables = _foreground_fn(bench, network.config, outcome)
        foreground = jax.jit(next(iter(functions.values())))(variables, pixels)
        logits_fn = functools.partial(apply, build_network(found.config, len(found.dataset.classes)), found.variables)
        keys = runner.example_keys(jax.random.key(found.config.seed), "pictures", images.indices)
        perturbations = {}
        for penalty, row in zip(columns, suites.rows(rows), strict=True):
            adversarial = bench.attack_of(found, row)(keys, logits_fn, pixels, jnp.asarray(images.labels))
            perturbations[penalty] = np.asarray(adversarial - pixels)
            ratios_shown = foreground_to_background(adversarial - pixels, foreground)
            for index, ratio in zip(images.indices, ratios_shown, strict=True):
                outcome.rows.setdefault(str(index), {})[penalty] = float(ratio)
        outcome.figure = analysis_figures.foreground(
            np.asarray(pixels), np.asarray(foreground), {columns[key]: value for key, value in perturbations.items()}
        )
    outcome.remarks.append(
        "Images by their index in the test set; the ratio is not defined for those without a number."
    )
    return outcome


# ---- Figure 2: the norm of the perturbation against the confidence ------------------------------

FIGURE2 = (
    dataclasses.replace(PENALTIES["cifar10"]["l2"], label="Lagrangian"),
    Row("pgd_l2", parameters={"bound": 1.0, "steps": 40}, label="PGD l2"),
    Row("pgd_linf", parameters={"bound": 8 / 255, "steps": 40}, label="PGD linf"),
    dataclasses.replace(PENALTIES["cifar10"]["lpips"], label="Fast-LPA"),
)


def norm_against_confidence(bench: Workbench, work: Sequence[Work]) -> Outcome:
    columns = {"rank_correlation": "Rank correlation", "mean_l2": "Mean l2", "std_l2": "Std of l2"}
    outcome = Outcome(columns, {}, {row.name: row.label for row in FIGURE2}, heading="Attack")
    outcome.remarks.append(
        "Spearman's rank correlation of the perturbation's l2 norm with the probability of the label on the clean "
        "image, over the test images, on the network trained with the Lagrangian attack. The paper prints no numbers."
    )
    panels = {}
    for network, found, (_, rows, *_) in paired(bench, work):
        outcome.take(network, found)
        for row in suites.rows(rows):
            attack = bench.attack_of(found, row)

            def measure(keys, logits_fn, images, labels, attack=attack):
                return norms_and_confidence(keys, attack, logits_fn, images, labels)._asdict()

            about = {"attack": row.attack, "parameters": attack.parameters}
            kept = bench.analyse(found, f"norm_{row.name}", about, measure)
            norm, confidence = kept["norm"], kept["confidence"]
            outcome.rows[row.name] = {
                "rank_correlation": rank_correlation(confidence, norm),
                "mean_l2": float(np.mean(norm)),
                "std_l2": float(np.std(norm)),
            }
            panels[row.label] = (confidence, norm)
            outcome.took(network, f"norm_{row.name}", kept)
    outcome.figure = analysis_figures.norm_against_confidence(panels)
    return outcome
