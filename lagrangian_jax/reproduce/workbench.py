"""Where the tables and figures are made: a folder of trained networks, and what was measured on them."""

import dataclasses
import functools
import json
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from lagrangian_jax import attacks, data, distances, harness, parallel
from lagrangian_jax import config as configuration
from lagrangian_jax.attacks import Attack
from lagrangian_jax.build import build_network, distance_weights
from lagrangian_jax.evaluation import Result, Row, files, runner, suites
from lagrangian_jax.evaluation.result import plain
from lagrangian_jax.interop import load as load_weights
from lagrangian_jax.main import train_and_keep
from lagrangian_jax.models.forward import apply
from lagrangian_jax.reproduce import networks
from lagrangian_jax.reproduce.networks import QUICK_STEPS, Network
from lagrangian_jax.workdir import open_workdir, summary_of_training, write_whole

GRID_IMAGES = 1000  # training images to choose step sizes on, if the configuration holds out none for validation
QUICK_ROWS = 6  # more rows than these "quick" cuts to a third
# The most that "quick" leaves of an attack's parameters.
_SHORT = {"steps": QUICK_STEPS, "rounds": 1, "restarts": 1, "targets": 2, "queries": 4, "max_pixels": 2}


class Trained(NamedTuple):
    """A trained network: its configuration, work directory, data set and variables; the summary of its training."""

    config: ConfigDict
    workdir: pathlib.Path
    dataset: data.Dataset
    variables: Any
    summary: dict[str, Any] | None


@dataclasses.dataclass
class Workbench:
    """A folder with the networks of a preset, trained on demand, and with what was measured on them.

    Attributes:
      folder: holds ``networks/<name>/``, work directories like any other.
      preset: a key of `networks.PRESETS`.
      overrides: by the configuration's name, pairs of a field and its value as text.
      used: by name, work directories elsewhere that replace those in ``networks/``.
      methods: only networks of these methods; all, if empty.
      left_out: what could not be done, and why.
    """

    folder: pathlib.Path
    preset: str = "paper"
    overrides: Mapping[str, Sequence[tuple[str, str]]] = dataclasses.field(default_factory=dict)
    used: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    methods: Sequence[str] = ()
    left_out: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._trained: dict[str, Trained] = {}
        self._images: dict[str, data.Split] = {}
        self._datasets: dict[str, data.Dataset] = {}

    # ---- Networks ----------------------------------------------------------------------------

    def config(self, network: Network) -> ConfigDict:
        """The configuration of a network, locked."""
        return networks.load(network, self.preset, self.overrides)

    def workdir(self, network: Network) -> pathlib.Path:
        return self.used.get(network.name, self.folder / "networks" / network.name)

    def is_trained(self, network: Network) -> bool:
        return (self.workdir(network) / "weights.safetensors").is_file()

    def trained(self, network: Network) -> Trained:
        """A network, trained now unless its work directory holds it; a training that was stopped resumes.

        Raises:
          ValueError: the work directory belongs to another configuration, or the data is missing.
        """
        name = network.name
        if name not in self._trained:
            config, workdir = self.config(network), self.workdir(network)
            dataset = self._dataset(config)
            with open_workdir(workdir, _evaluated_as_there(config, workdir)):
                if self.is_trained(network):
                    module = build_network(config, len(dataset.classes))
                    size = config.data.image_size
                    variables = load_weights(workdir / "weights.safetensors", module, (size, size, 3))
                    summary = summary_of_training(workdir)
                else:
                    print(f"training {name} in {workdir}", flush=True)
                    variables, summary = train_and_keep(config, workdir, dataset)
            self._trained[name] = Trained(config, workdir, dataset, variables, summary)
        return self._trained[name]

    def each(self, wanted: Sequence[Network]) -> Iterator[tuple[Network, Trained]]:
        """The networks in turn; one that cannot be trained or has no data is left out, and `left_out` says so.

        Raises:
          ValueError: none of them could be had; says why.
        """
        failures: list[str] = []
        for network in wanted:
            try:
                found = self.trained(network)
            except data.DataError as error:
                failures.append(f"{network.configuration(self.preset)}: {error}")
            except (configuration.NotFinite, FileNotFoundError, ValueError) as error:
                failures.append(f"{network.name}: {error}")
            else:
                yield network, found
        failures = list(dict.fromkeys(failures))  # names a missing data set once
        if len(failures) and not any(network.name in self._trained for network in wanted):
            raise ValueError("; ".join(failures))
        self.left_out += [failure for failure in failures if failure not in self.left_out]

    def _dataset(self, config: ConfigDict) -> data.Dataset:
        identity = json.dumps(configuration.plain(config.data))
        if identity not in self._datasets:
            self._datasets[identity] = data.load(config.data)
        return self._datasets[identity]

    def chosen(self, work: Sequence[Any]) -> list[Any]:
        """The pieces of work on networks of the wanted methods, and those that help them.

        Under "quick", long lists of rows, which differ only in a number, are cut to a third: each row takes a while to
        compile.
        """
        wanted = [each for each in work if not self.methods or each.helps or each.network.method in self.methods]
        if all(each.helps for each in wanted):
            return []
        return [self._shortened(each) for each in wanted] if self.preset == "quick" else wanted

    def _shortened(self, work: Any) -> Any:
        long = not isinstance(work.rows, str) and len(work.rows) > QUICK_ROWS
        return work._replace(rows=work.rows[::3]) if long else work

    # ---- Images ------------------------------------------------------------------------------

    def test_images(self, found: Trained) -> data.Split:
        """The test images that the configuration evaluates on."""
        return self._kept_images("test", found, lambda: harness.test_images(found.config, found.dataset))

    def grid_images(self, found: Trained) -> data.Split:
        """Images to choose an attack's parameters on: held-out ones, or else training images; never test images."""

        def read():
            held_out, train = found.dataset.validation, found.dataset.train
            source = held_out if len(held_out.labels) else train
            most = min(len(held_out.labels) or GRID_IMAGES, len(source.labels))
            count = min(found.config.evaluation.examples or most, most)
            chosen = source.take(data.hold_out(source.labels, count)[1])  # of all classes
            return data.resident(chosen, image_size=found.config.data.image_size, workers=found.config.data.workers)

        return self._kept_images("grid", found, read)

    def _kept_images(self, kind: str, found: Trained, read: Callable[[], data.Split]) -> data.Split:
        identity = json.dumps([kind, configuration.plain(found.config.data), found.config.evaluation.examples])
        if identity not in self._images:
            self._images[identity] = read()
        return self._images[identity]

    # ---- Measurements ------------------------------------------------------------------------

    def attack(self, found: Trained, rows: str | Sequence[Row], grid: bool = False) -> Result:
        """Runs a suite or rows on the test images; what the work directory holds of it is not done again.

        With ``grid``, it runs on `grid_images` instead, and keeps the results apart from those of the test images.
        """
        images = self.grid_images(found) if grid else self.test_images(found)
        folder = found.workdir / "grid" if grid else found.workdir
        with open_workdir(found.workdir, _evaluated_as_there(found.config, found.workdir)):
            return harness.attack(found.config, folder, found.dataset, found.variables, images, self.suite(rows))

    def suite(self, rows: str | Sequence[Row]) -> str | tuple[Row, ...]:
        """What runs. A named suite stays a name, so that a row whose distance has no weights is left out, not fatal."""
        if self.preset != "quick":
            return rows if isinstance(rows, str) else tuple(rows)
        return tuple(shortened(row) for row in suites.rows(rows))

    def attack_of(self, found: Trained, row: Row) -> Attack:
        """The attack of a row, for an analysis."""
        (row,) = suites.rows(self.suite((row,)))
        return runner.configured(row, distance_weights(found.config))

    def analyse(
        self,
        found: Trained,
        name: str,
        about: Mapping[str, Any],
        function: Callable[..., Mapping[str, Any]],
        *others: Any,
    ) -> dict[str, np.ndarray]:
        """Numbers per example that no suite gives, kept in ``analysis/<name>.npz``.

        Args:
          found: the network.
          name: the file's name; seeds the random numbers, with the configuration's seed and the example's index.
          about: what the numbers depend on besides the network and the images, as JSON.
          function: ``(keys, logits_fn, images, labels, *others) -> {name: (B, ...)}``; runs on one device.
          *others: trees of arrays, for instance another network's variables.

        Returns:
          ``index``, ``label`` and the function's arrays, over all test images; ``seconds``.

        Raises:
          ValueError: the file is from other parameters, images or weights; says which.
        """
        images, seed = self.test_images(found), found.config.seed
        path = found.workdir / "analysis" / f"{name}.npz"
        fingerprint = plain(
            {
                "seed": seed,
                "data": files.digest(images.images, images.labels, images.indices),
                "network": files.digest(*jax.tree.leaves(found.variables)),
                **about,
            }
        )
        if path.is_file():
            try:
                arrays, kept = files.read(path.read_bytes())
            except files.Damaged as error:
                warnings.warn(f"{path} is damaged and is made again ({error})", stacklevel=2)
            else:
                differ = files.differences(kept["fingerprint"], fingerprint)
                if differ:
                    told = "; ".join(differ)
                    raise ValueError(f"{path} belongs to another analysis: {told}. Delete it to have it made again")
                return arrays
        module = build_network(found.config, len(found.dataset.classes))

        @jax.jit
        def run(variables, keys, images, labels, *others):
            return function(keys, functools.partial(apply, module, variables), images, labels, *others)

        keys = runner.example_keys(jax.random.key(seed), name, images.indices)
        started, parts = time.perf_counter(), []
        count = len(images.labels)
        batch = min(found.config.evaluation.batch_size, count)
        for start in range(0, count, batch):
            rows = np.minimum(np.arange(start, start + batch), count - 1)  # the last batch is padded, then cut below
            pixels = images.images[rows].astype(np.float32) / np.float32(255)
            parts.append(
                jax.tree.map(np.asarray, run(found.variables, keys[rows], pixels, images.labels[rows], *others))
            )
            print(f"\r{name}: {min(start + batch, count)}/{count}", end="", flush=True)
        print()
        arrays = {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}
        arrays |= {"index": images.indices, "label": images.labels}
        arrays["seconds"] = np.array(time.perf_counter() - started)
        path.parent.mkdir(exist_ok=True)
        files.write(path, arrays, {"fingerprint": fingerprint})
        return arrays

    def report(self, found: Trained, result: Result) -> None:
        """Writes a network's own ``results.json`` and report, as `lagrangian_jax.main` does.

        A work directory elsewhere (`used`) keeps those that it has.
        """
        from lagrangian_jax import report

        if found.workdir in self.used.values() and (found.workdir / "results.json").is_file():
            return
        results = harness.to_json(result, found.config, found.dataset, found.summary)
        write_whole(found.workdir / "results.json", json.dumps(results, indent=2) + "\n")
        report.write(found.workdir)


def shortened(row: Row) -> Row:
    """A row with just enough work to run all of its code, and with the LPIPS weights that come with the package."""
    parameters = dict(row.parameters)
    callables = {"distance": distances.create("l2")} if "distance" in parameters else {}
    valid = attacks.create(row.attack, **{**parameters, **callables}).parameters
    for name, most in _SHORT.items():
        if name in valid:
            parameters[name] = min(valid[name] or most, most)
    if parameters.get("distance") == "lpips_alexnet":
        parameters["distance"] = "lpips_alexnet_cifar"
    return dataclasses.replace(row, parameters=parameters)


def origin() -> dict[str, Any]:
    """How results describe the software and the machine."""
    return {"versions": runner.versions(), "device": runner.device(parallel.mesh())}


def _evaluated_as_there(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """The configuration with the evaluation of the work directory, which may differ: training does not depend on it.

    Which checkpoint is selected may not differ.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return config
    try:
        there = json.loads(path.read_text()).get("evaluation", {})
    except ValueError:
        return config  # damaged; `open_workdir` says so
    config = config.copy_and_resolve_references().unlock()
    for field in ("suite", "examples", "batch_size"):
        config.evaluation[field] = there.get(field, config.evaluation[field])
    return config
