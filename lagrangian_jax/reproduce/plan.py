"""What an experiment would do: the networks, their commands, the attacks, and what all of it costs."""

import json
import shlex
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lagrangian_jax import config as configuration
from lagrangian_jax.build import batches_of_epoch, build_network
from lagrangian_jax.evaluation import Row, suites
from lagrangian_jax.models.forward import apply
from lagrangian_jax.names import unknown
from lagrangian_jax.reproduce import cost, networks
from lagrangian_jax.reproduce.experiment import SHOWN, Experiment
from lagrangian_jax.reproduce.networks import Network
from lagrangian_jax.reproduce.workbench import GRID_IMAGES, Workbench

# Training and test images of the data sets; a plan reads no data. ImageNet-100's are about a tenth of ImageNet's.
SIZES = {
    "cifar10": (50_000, 10_000),
    "cifar10_three_classes": (15_000, 3_000),
    "imagenet100": (128_117, 5_000),
    "flowers": (3_446, 861),
    "digits": (1_437, 360),
}
KINDS = {"test": "test", "grid": "held-out or training", "shown": "shown"}


def lines(bench: Workbench, experiments: Sequence[Experiment], rate: float | None) -> list[str]:
    """The plan as text: what is trained, what is attacked, and the sum.

    Args:
      bench: the workbench; networks that it holds are not trained again.
      experiments: what is asked for; what they share is counted once.
      rate: forward passes of one image per second; None measures it for each network, on one device.

    Raises:
      ValueError: an unknown data set, or a batch or a number of held-out images that does not suit it.
    """
    work = [each for experiment in experiments for each in bench.chosen(experiment.work)]
    clock = _Clock(rate)
    text = ["Networks:"]
    for network in dict.fromkeys(each.network for each in work):
        text += _training(bench, network, clock)
    text.append("Attacks, with the most passes that they can take, including those done already:")
    for network, kind in dict.fromkeys((each.network, each.images) for each in work):
        rows = {
            row.name: row
            for each in work
            if (each.network, each.images) == (network, kind)
            for row in suites.rows(bench.suite(each.rows))
        }
        images = _images(bench, network, kind)
        found = {name: cost.of_row(row).units for name, row in rows.items()}
        takes = clock.takes(images * sum(found.values()), bench.config(network))
        text.append(f"  {network.name}, {images:,} {KINDS[kind]} images: {takes}")
        text.append(f"    {', '.join(f'{name} ({units:g})' for name, units in found.items())}")
    text.append(f"Sum: {clock.passes:.3g} passes, {clock.seconds:,.0f} s, {clock.seconds / 3600:,.1f} hours")
    text.append(
        "A pass is a forward pass of that network over one image; in brackets are passes per image. A gradient by the "
        "image costs one more than its pass, one by the weights two more. LPIPS and segmentation are not counted. "
        + ("The rate is as given." if rate else "Rates are measured now, on one device.")
    )
    return text


class _Clock:
    """Adds up passes and the seconds that they take."""

    def __init__(self, rate: float | None) -> None:
        self.passes, self.seconds = 0.0, 0.0
        self._given, self._measured = rate, dict[str, float]()

    def takes(self, passes: float, config: ConfigDict) -> str:
        rate = self._given or self._rate(config)
        self.passes, self.seconds = self.passes + passes, self.seconds + passes / rate
        return f"{passes:.3g} passes, {passes / rate:,.0f} s at {rate:,.0f} passes a second"

    def _rate(self, config: ConfigDict) -> float:
        fields = {**configuration.plain(config.network), "precision": config.precision, "size": config.data.image_size}
        network = json.dumps(fields, sort_keys=True)
        if network not in self._measured:
            self._measured[network] = measured_rate(config)
        return self._measured[network]


def measured_rate(config: ConfigDict, seconds: float = 1.0) -> float:
    """Passes per second of the configured network on this device, from gradients by the images, two passes each."""
    size, batch = config.data.image_size, 32 if jax.default_backend() == "cpu" else config.evaluation.batch_size
    network = build_network(config, 10)
    images = jnp.full((batch, size, size, 3), 0.5)
    variables = jax.jit(network.init)(jax.random.key(0), images[:1])
    gradient = jax.jit(jax.grad(lambda images: jnp.sum(apply(network, variables, images))))
    gradient(images).block_until_ready()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        gradient(images).block_until_ready()
        calls += 1
    return 2 * calls * batch / (time.perf_counter() - start)


def _training(bench: Workbench, network: Network, clock: _Clock) -> list[str]:
    workdir = bench.workdir(network)
    if bench.is_trained(network):
        return [f"  {network.name}: trained, in {workdir}"]
    config = bench.config(network)
    one = cost.of_training(config)
    steps = batches_of_epoch(config, _count(config)[0])
    clean = config.train.clean_epochs * steps * config.train.batch_size
    adversarial = config.train.epochs * steps * config.train.batch_size - clean
    held_out = config.train.epochs * config.data.validation
    given = {"bound": config.validation.bound, "steps": config.validation.steps}
    validation = held_out * (1 + cost.of_row(Row("validation", config.validation.attack, given)).units)
    takes = clock.takes(3 * clean + one.units * adversarial + validation, config)
    bound = "" if one.exact else "at most "
    fields = [f"--config.{field}={value}" for field, value in bench.overrides.get(network.config, ())]
    if bench.preset == "quick":
        command = "(a tiny network on the digits; no command of its own)"
    else:
        spec = networks.spec(network, bench.preset)
        arguments = [f"--config={spec}", *fields, f"--workdir={workdir}"]
        command = shlex.join(["python", "-m", "lagrangian_jax.main", *arguments])
    also = f"; {held_out:,} held out" if held_out else ""
    return [
        f"  {network.name}: {command}",
        f"    {adversarial:,} images, each {bound}{one.forward:g} forward passes, {one.by_image:g} gradients by the "
        f"image and {one.by_weights:g} by the weights; {clean:,} clean ones{also}",
        f"    {takes}",
    ]


def _count(config: ConfigDict) -> tuple[int, int]:
    """The numbers of training and test images."""
    if config.data.name not in SIZES:
        raise unknown("data set", config.data.name, SIZES)
    train, test = SIZES[config.data.name]
    if not 0 <= config.data.validation < train:
        raise ValueError(f"data.validation: expected 0 to {train - 1} images; got {config.data.validation}")
    return train - config.data.validation, test


def _images(bench: Workbench, network: Network, kind: str) -> int:
    config = bench.config(network)
    if kind == "shown":
        return SHOWN
    count = (config.data.validation or GRID_IMAGES) if kind == "grid" else _count(config)[1]
    return min(count, config.evaluation.examples or count)
