"""What an experiment is: attacks on networks, and an outcome to compare with the paper's."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lagrangian_jax.evaluation import Result, Row
from lagrangian_jax.report import figures
from lagrangian_jax.reproduce import paper
from lagrangian_jax.reproduce.networks import Network
from lagrangian_jax.reproduce.workbench import Trained, Workbench

SHOWN = 6  # images in a figure of pictures


class Work(NamedTuple):
    """Attacks on a network.

    Attributes:
      network: the network to attack, trained first.
      rows: a suite by name, or rows.
      images: "test", "grid" for those that parameters are chosen on, or "shown" for a few test images.
      helps: whether the network only gives the foreground for attacks on another one.
    """

    network: Network
    rows: str | tuple[Row, ...]
    images: str = "test"
    helps: bool = False


@dataclasses.dataclass
class Outcome:
    """What an experiment shows.

    Attributes:
      columns: headings by key.
      rows: values by row and column.
      paper: the paper's values, likewise.
      labels: the rows' labels, by key.
      heading: the heading of the labels.
      networks: by name, what each is and what was measured on it, as JSON.
      remarks: what a reader must know.
      details: anything else, as JSON.
      figure: the function that draws it, and its size in inches.
    """

    columns: Mapping[str, str]
    paper: Mapping[str, Mapping[str, float]]
    labels: Mapping[str, str]
    heading: str = "Method"
    rows: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    networks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    remarks: list[str] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    figure: tuple[figures.Draw, tuple[float, float]] | None = None

    def take(self, network: Network, found: Trained, result: Result | None = None) -> None:
        """Records where numbers come from."""
        entry = self.networks.setdefault(
            network.name,
            {
                "seed": found.config.seed,
                "network": {name: value for name, value in found.config.network.items() if value is not None}
                | {"precision": found.config.precision},
                "training": found.summary,
                "data": {"name": found.dataset.name, "remark": found.dataset.remark},
                "attacks": [],
                "analyses": {},
            },
        )
        if result is not None:
            found_json = result.to_json()
            entry["data"] |= {"examples": found_json["data"]["examples"]}
            known = [attack["name"] for attack in entry["attacks"]]
            entry["attacks"] += [attack for attack in found_json["attacks"] if attack["name"] not in known]
            self.remarks += [f"{network.name}: {failure}" for failure in result.failures]

    def took(self, network: Network, name: str, kept: Mapping[str, np.ndarray]) -> None:
        """Records how many images an analysis saw, and how many seconds it took."""
        entry = self.networks[network.name]
        entry["data"] |= {"examples": len(kept["index"])}
        entry["analyses"][name] = {"seconds": float(kept["seconds"])}

    @property
    def seconds(self) -> dict[str, float]:
        """How long the trainings took, as far as their work directories tell, and the attacks with the analyses."""
        entries = self.networks.values()
        trainings = [entry["training"]["seconds"] for entry in entries if entry["training"]]
        attacks = [attack["seconds"] + attack["compile_seconds"] for entry in entries for attack in entry["attacks"]]
        analyses = [analysis["seconds"] for entry in entries for analysis in entry["analyses"].values()]
        return {"training": sum(trainings), "attacks": sum(attacks) + sum(analyses)}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table or a figure.

    Attributes:
      title: what it shows.
      work: the attacks on networks, listed so that their cost can be estimated before anything runs.
      make: trains what is missing, attacks, and returns what there is to show.
    """

    title: str
    work: tuple[Work, ...]
    make: Callable[[Workbench, Sequence[Work]], Outcome]


def paired(bench: Workbench, work: Sequence[Work]) -> Iterator[tuple[Network, Trained, Work]]:
    """Each piece of work with its network, trained just before; work whose network cannot be had is left out."""
    work = bench.chosen(work)
    for network, found in bench.each(list(dict.fromkeys(each.network for each in work))):
        for each in work:
            if each.network == network:
                yield network, found, each


def labels(rows: Mapping[str, Any]) -> dict[str, str]:
    names = {"cifar10": "CIFAR-10", "imagenet100": "ImageNet-100"}
    return {key: f"{names[key.split(':')[0]]}, {paper.METHODS[key.split(':')[1]]}" for key in rows}
