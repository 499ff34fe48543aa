"""RobustBench (Croce et al. 2021): the networks of its model zoo, and its format for results."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from lagrangian_jax import models
from lagrangian_jax.names import unknown

_CIFAR10 = {"normalisation": "cifar10"}
_NETWORKS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("resnet18", {}, "Addepalli2021Towards_RN18 Addepalli2022Efficient_RN18 Sehwag2021Proxy_R18"),
    ("resnet50", {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}, "Engstrom2019Robustness"),
    ("preact_resnet18", {}, "Andriushchenko2020Understanding"),
    ("preact_resnet18", _CIFAR10, "Wong2020Fast"),
    (
        "wide_resnet28_10",
        {},
        "Carmon2019Unlabeled Sehwag2020Hydra Sridhar2021Robust Standard Wang2020Improving Wu2020Adversarial_extra "
        "Zhang2020Geometry",
    ),
    ("wide_resnet28_10", {"normalisation": "half"}, "Hendrycks2019Using"),
    (
        "wide_resnet34_10",
        {},
        "Addepalli2021Towards_WRN34 Addepalli2022Efficient_WRN_34_10 Chen2021LTD_WRN34_10 Cui2020Learnable_34_10 "
        "Huang2020Self Jia2022LAS-AT_34_10 Sehwag2021Proxy Sitawarin2020Improving Wu2020Adversarial Zhang2019You "
        "Zhang2019Theoretically Zhang2020Attacks",
    ),
    ("wide_resnet34_10", _CIFAR10, "Chen2020Efficient"),
    ("wide_resnet34_20", {}, "Chen2021LTD_WRN34_20 Cui2020Learnable_34_20"),
    ("wide_resnet34_20", _CIFAR10, "Rice2020Overfitting"),
    ("wide_resnet70_16", {}, "Jia2022LAS-AT_70_16"),
    (
        "dm_preact_resnet18",
        {},
        "Gowal2021Improving_R18_ddpm_100m Rade2021Helper_R18_ddpm Rade2021Helper_R18_extra Rebuffi2021Fixing_R18_ddpm",
    ),
    (
        "dm_wide_resnet28_10",
        {},
        "Gowal2020Uncovering_28_10_extra Gowal2021Improving_28_10_ddpm_100m Pang2022Robustness_WRN28_10 "
        "Rade2021Helper_ddpm Rebuffi2021Fixing_28_10_cutmix_ddpm Wang2023Better_WRN-28-10 Xu2023Exploring_WRN-28-10",
    ),
    ("dm_wide_resnet34_10", {}, "Rade2021Helper_extra"),
    ("dm_wide_resnet34_20", {}, "Gowal2020Uncovering_34_20"),
    (
        "dm_wide_resnet70_16",
        {},
        "Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra Gowal2021Improving_70_16_ddpm_100m "
        "Pang2022Robustness_WRN70_16 Rebuffi2021Fixing_70_16_cutmix_ddpm Rebuffi2021Fixing_70_16_cutmix_extra "
        "Wang2023Better_WRN-70-16",
    ),
)
# (network, its parameters) by the name in RobustBench's model zoo: CIFAR-10, threat model Linf.
NETWORKS = {model: (name, given) for name, given, zoo in _NETWORKS for model in zoo.split()}


def network(model: str) -> nn.Module:
    """The network of a model in RobustBench's zoo (CIFAR-10, Linf), for `lagrangian_jax.interop.load`.

    Args:
      model: the model's name in RobustBench. The file of Andriushchenko2020Understanding holds two states; load it with
        ``entry="last"``, as RobustBench does.

    Raises:
      ValueError: if there is no such model, or its architecture is not in `lagrangian_jax.models`; lists the others.

    >>> network("Wang2023Better_WRN-70-16").depth
    70
    """
    if model not in NETWORKS:
        raise unknown("model of RobustBench", model, sorted(NETWORKS))
    name, given = NETWORKS[model]
    return models.create(name, **given)


def model_info(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """An evaluation as an entry of RobustBench's leaderboard, its ``model_info/<dataset>/<Linf or L2>/<Name>.json``.

    What an evaluation cannot know is left for you to fill in: ``link``, ``name``, ``authors`` and ``venue`` are empty,
    and ``additional_data`` is None if the weights were not trained here.

    Args:
      results: the content of ``results.json``, or `Result.to_json()`.

    Returns:
      RobustBench's fields, with accuracies in per cent as text; None if AutoAttack is not among the attacks.

    >>> clean = {"name": "none", "attack": "none", "correct": 8, "total": 10, "accuracy": 0.8, "parameters": {}}
    >>> robust = {**clean, "name": "aa", "attack": "autoattack", "accuracy": 0.5}
    >>> robust["parameters"] = {"norm": "linf", "bound": 8 / 255}
    >>> info = model_info({"attacks": [clean, robust], "summary": {"clean": 0.8}})
    >>> info["eps"], info["clean_acc"], info["autoattack_acc"]
    ('8/255', '80.00', '50.00')
    """
    attack = next((attack for attack in results["attacks"] if attack["attack"] == "autoattack"), None)
    if attack is None:
        return None
    network, data = results.get("network") or {}, results.get("data") or {}
    clean, robust = results["summary"]["clean"], f"{100 * attack['accuracy']:.2f}"
    notes = [note for note in results.get("failures") or () if note.startswith(f"{attack['name']}:")]
    return {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": False if results.get("training") else None,
        "number_forward_passes": 1,
        "dataset": data.get("name", ""),
        "venue": "",
        "architecture": architecture(network.get("name", "")),
        "eps": _bound(attack["parameters"]["norm"], attack["parameters"]["bound"]),
        "clean_acc": None if clean is None else f"{100 * clean:.2f}",
        "reported": robust,
        "autoattack_acc": robust,
        "footnote": " ".join([f"On {attack['total']:,} images.", *notes]),
        "unreliable": False,
    }


def architecture(name: str) -> str:
    """RobustBench's spelling of a network's name.

    >>> architecture("dm_wide_resnet70_16"), architecture("preact_resnet18"), architecture("alexnet")
    ('WideResNet-70-16', 'PreActResNet-18', 'AlexNet')
    """
    kinds = {"resnet": "ResNet", "preact_resnet": "PreActResNet", "wide_resnet": "WideResNet", "alexnet": "AlexNet"}
    match = re.fullmatch(r"(?:dm_)?([a-z_]+?)(\d[\d_]*)?(?:_cifar)?", name)
    if match is None or match[1] not in kinds:
        return name
    return "-".join([kinds[match[1]], *(match[2] or "").split("_")]).removesuffix("-")


def _bound(norm: str, bound: float) -> str:
    levels = round(bound * 255)
    return f"{levels}/255" if norm == "linf" and levels and abs(bound * 255 - levels) < 1e-3 else f"{bound:g}"
