"""RobustBench's form of a result (Croce et al. 2021): what its leaderboard is made of."""

import re
from collections.abc import Mapping
from typing import Any


def model_info(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """An evaluation as an entry of RobustBench's leaderboard, ``model_info/<dataset>/<Linf or L2>/<Name>.json`` there.

    What an evaluation cannot know is left to fill in: ``link``, ``name``, ``authors`` and ``venue`` are empty, and
    ``additional_data`` is None where the weights were not trained here.

    Args:
      results: the content of ``results.json``, or `Result.to_json()`.

    Returns:
      RobustBench's fields, accuracies in per cent as text; None where AutoAttack is not among the attacks.

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
