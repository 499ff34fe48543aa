"""The tables and figures by name: what each evaluates, on which networks."""

import dataclasses

from lagrangian_jax.evaluation import Row
from lagrangian_jax.reproduce import analyses, paper, robustness
from lagrangian_jax.reproduce.experiment import Experiment, Work
from lagrangian_jax.reproduce.networks import Network
from lagrangian_jax.reproduce.robustness import pgd

CLEAN = Row("none", column="clean", label="Clean")
FOREGROUND = (dataclasses.replace(CLEAN, name="foreground"),)  # one pass of the network that predicts it
LAGRANGIAN = Network("cifar10", "lagrangian")
TABLE1 = ("standard", *paper.TABLE1, "mart", "threshold_l2", "threshold_linf")
TABLE2 = ("standard", *paper.TABLE2, "pgd_l2,early_stopping", "pgd_linf,early_stopping")
FIGURE5 = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # l2 bounds
FLOWERS = tuple(Network("flowers", method) for method in ("lagrangian", "pgd_l2", "pgd_linf"))
THREE_CLASSES = tuple(Network("cifar10_three_classes", m) for m in ("carlini_wagner", "lagrangian", "pgd_l2", "pat"))


def on(config: str, methods: tuple[str, ...], rows: str | tuple[Row, ...]) -> tuple[Work, ...]:
    return tuple(Work(Network(config, method), rows) for method in methods)


EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        "Accuracy of every method under every attack on CIFAR-10 (Table 1)",
        on("cifar10", TABLE1, "cifar10_table1"),
        robustness.robustness,
    ),
    "table2": Experiment(
        "Accuracy of every method under every attack on ImageNet-100 (Table 2)",
        on("imagenet100", TABLE2, "imagenet100_table2"),
        robustness.robustness,
    ),
    "table3": Experiment(
        "The effective multiplier of each method (Table 3)",
        on("cifar10", tuple(paper.TABLE3), analyses.MULTIPLIER_COST),
        analyses.multipliers,
    ),
    "table4": Experiment(
        "MPGD against PGD, with the step sizes that hurt most (Table 4)",
        tuple(
            work
            for config in ("cifar10", "imagenet100")
            for method in ("pgd_l2", "pgd_linf")
            for work in (
                Work(Network(config, method), robustness.grid(config), "grid"),
                Work(Network(config, method), robustness.grid(config)[:: len(robustness.GRID)]),
            )
        ),
        robustness.step_sizes,
    ),
    "table5": Experiment(
        "Accuracy at other budgets on CIFAR-10 (Table 5)",
        on("cifar10", tuple(paper.TABLE5), robustness.BUDGETS),
        robustness.budgets,
    ),
    "table6": Experiment(
        "AutoAttack against PGD (Table 6)",
        tuple(
            work
            for config in ("cifar10", "imagenet100")
            for work in on(config, ("lagrangian", "pat"), robustness.autoattack_rows(config))
        ),
        robustness.autoattack,
    ),
    "table7": Experiment(
        "Mean norms of the attacks on the Lagrangian network, CIFAR-10 (Table 7)",
        (Work(LAGRANGIAN, "cifar10_table1"), Work(LAGRANGIAN, (Row("lagrangian", label="Lagrangian"),))),
        robustness.norms,
    ),
    "f2b": Experiment(
        "Foreground-to-background ratio of the perturbation with either penalty",
        tuple(
            work
            for config, other in (("cifar10", analyses.SEGMENTATION), ("imagenet100", analyses.ATTENTION))
            for work in (
                Work(Network(config, "lagrangian"), tuple(analyses.PENALTIES[config].values())),
                Work(other, FOREGROUND, helps=True),
            )
        ),
        analyses.ratios,
    ),
    "figure2": Experiment(
        "Norm of the perturbation against the confidence (Figure 2)",
        (Work(LAGRANGIAN, analyses.FIGURE2),),
        analyses.norm_against_confidence,
    ),
    "figure3": Experiment(
        "Foreground and perturbations with either penalty, CIFAR-10 (Figure 3)",
        (
            Work(LAGRANGIAN, tuple(analyses.PENALTIES["cifar10"].values()), "shown"),
            Work(analyses.SEGMENTATION, FOREGROUND, "shown", helps=True),
        ),
        analyses.pictures,
    ),
    "figure4": Experiment(
        "Attention maps and perturbations with either penalty, ImageNet-100 (Figure 4)",
        (
            Work(Network("imagenet100", "lagrangian"), tuple(analyses.PENALTIES["imagenet100"].values()), "shown"),
            Work(analyses.ATTENTION, FOREGROUND, "shown", helps=True),
        ),
        analyses.pictures,
    ),
    "figure5": Experiment(
        "Accuracy against the l2 bound on three classes of CIFAR-10, with C&W training (Figure 5)",
        tuple(Work(network, (CLEAN, *(pgd("l2", bound, "") for bound in FIGURE5))) for network in THREE_CLASSES),
        robustness.curves_against("l2"),
    ),
    "figure8": Experiment(
        "Accuracy against the l2 bound on Flowers (Figure 8)",
        tuple(Work(network, (CLEAN, *(pgd("l2", bound, "") for bound in range(1, 7)))) for network in FLOWERS),
        robustness.curves_against("l2"),
    ),
    "figure9": Experiment(
        "Accuracy against the linf bound on Flowers (Figure 9)",
        tuple(Work(network, (CLEAN, *(pgd("linf", bound, "") for bound in range(1, 11)))) for network in FLOWERS),
        robustness.curves_against("linf"),
    ),
}
