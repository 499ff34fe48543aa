"""What an evaluation returns: a row per attack, the paper's means, the worst case, and all of it as JSON or text."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lagrangian_jax.evaluation import suites

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """One attack's outcome.

    Attributes:
      name, label, attack, parameters, column: from the suite's row; ``parameters`` has every parameter with its value.
      correct, total, accuracy: how many examples are still classified correctly, of how many; the exact fraction.
      mean_l0, mean_l2, mean_linf: norms of adversarial minus clean image, averaged over all examples. l0 counts pixels
        changed by more than 1e-6; l2 and linf are over pixels and channels of images in [0, 1], and None if a
        perturbation is not finite.
      mean_ssim: structural similarity of adversarial and clean image (`lagrangian_jax.distances.SSIMDistance`), 1 for
        equal ones. None if one is not finite, for images below 11 pixels a side, and for rows of older versions.
      seconds, compile_seconds: spent running, and spent tracing and compiling.
      gradient_evaluations, forward_passes: per example, averaged over all, with the pass that reads the prediction.
        None if the attack's program does not tell.
      cost_exact: False if the two are upper bounds, because the attack can end early.
      attacked: how many examples the attack ran on: all, or those that were classified correctly without it.
      stages: how many examples each stage of the attack ran on.
    """

    name: str
    label: str
    attack: str
    parameters: Mapping[str, Any]
    column: str | None
    correct: int
    total: int
    accuracy: float
    mean_l0: float | None
    mean_l2: float | None
    mean_linf: float | None
    mean_ssim: float | None
    seconds: float
    compile_seconds: float
    gradient_evaluations: float | None
    forward_passes: float | None
    cost_exact: bool
    attacked: int
    stages: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of `lagrangian_jax.evaluation.run`. Printing it shows a table; `to_json` is what reports read.

    Attributes:
      suite: its name, or "custom".
      seed: the key as a number: the seed that it was made from, if there was one.
      attacks: one `AttackResult` per row of the suite, in its order.
      failures: what the reader of the numbers must know: rows left out, halved batches, outputs that are not finite,
        damaged files, warnings of an attack's self-checks, rows that other versions or another machine computed.
      versions, device, data, network: what identifies the software, the machine, the examples and the weights.
      examples: by row name, arrays over all examples (``index``, ``label``, ``prediction``, ``correct``, ``l0``,
        ``l2``, ``linf``, ``ssim``) and the first adversarial images (``picture_index``, ``pictures``). Not in the JSON.
    """

    suite: str
    seed: int
    attacks: tuple[AttackResult, ...]
    failures: tuple[str, ...]
    versions: Mapping[str, str]
    device: Mapping[str, Any]
    data: Mapping[str, Any]
    network: Mapping[str, Any]
    examples: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(repr=False)

    def __getitem__(self, name: str) -> AttackResult:
        """The outcome of one row by its name."""
        for attack in self.attacks:
            if attack.name == name:
                return attack
        raise KeyError(f"{name!r}; the rows are {', '.join(repr(attack.name) for attack in self.attacks)}")

    @property
    def summary(self) -> dict[str, Any]:
        """Clean accuracy, the paper's means (None where a column is missing) and the worst case.

        The worst case counts the examples that are correct in every row with a column, including the clean one; if no
        attack has a column, in every row.
        """
        unseen, union = _means({attack.column: attack.accuracy for attack in self.attacks if attack.column})
        clean = next((a.accuracy for a in self.attacks if a.column == "clean" or a.attack == "none"), None)
        return {"clean": clean, "unseen_mean": unseen, "union_mean": union, "worst_case": self._worst_case()}

    def _worst_case(self) -> dict[str, int]:
        columns = [a for a in self.attacks if a.column]
        counted = columns if any(a.column != "clean" for a in columns) else self.attacks
        correct = np.all([self.examples[a.name]["correct"] for a in counted], axis=0)
        return {"correct": int(correct.sum()), "total": len(correct)}

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``; plain numbers, strings, lists and dicts."""
        return {
            "schema": SCHEMA,
            "suite": self.suite,
            "seed": self.seed,
            "versions": dict(self.versions),
            "device": dict(self.device),
            "data": dict(self.data),
            "network": dict(self.network),
            "training": None,
            "attacks": [plain(dataclasses.asdict(attack)) for attack in self.attacks],
            "summary": self.summary,
            "failures": list(self.failures),
        }

    def __str__(self) -> str:
        head = ("attack", "correct", "accuracy", "mean l2", "mean linf", "gradients", "seconds")
        lines = [head, *(_cells(attack) for attack in self.attacks)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
        text.insert(1, "  ".join("-" * width for width in widths))
        summary, worst = self.summary, self._worst_case()
        means = [("unseen mean", summary["unseen_mean"]), ("union mean", summary["union_mean"])]
        parts = [f"{name} {100 * value:.2f} %" for name, value in means if value is not None]
        share = worst["correct"] / worst["total"]
        parts.append(f"worst case {worst['correct']}/{worst['total']}, {100 * share:.2f} %")
        return "\n".join([*text, "", "; ".join(parts), *(f"note: {failure}" for failure in self.failures)])


def _cells(attack: AttackResult) -> tuple[str, ...]:
    gradients = _number(attack.gradient_evaluations, ".4g")
    return (
        attack.label,
        f"{attack.correct}/{attack.total}",
        f"{100 * attack.accuracy:.2f} %",
        _number(attack.mean_l2, ".3f"),
        _number(attack.mean_linf, ".3f"),
        gradients if attack.cost_exact or gradients == "-" else f"<= {gradients}",
        f"{attack.seconds:.1f}",
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _means(accuracies: Mapping[str | None, float]) -> tuple[float | None, float | None]:
    first, second = ([accuracies[column] for column in columns] for columns in suites.means_of(accuracies))
    return (math.fsum(first) / len(first), math.fsum(second) / len(second)) if first else (None, None)


def plain(value: Any) -> Any:
    """The value in a form that JSON can hold: numbers, strings, None, lists, dicts; anything else by its name."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, str) or value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(getattr(value, "name", None) or getattr(value, "__name__", None) or type(value).__name__)
