"""What an experiment would do: the networks, their commands, the attacks, and what all of it costs."""

from collections.abc import Sequence

from lagrangian_jax.evaluation import suites
from lagrangian_jax.reproduce import cost, networks
from lagrangian_jax.reproduce.experiment import SHOWN, Experiment
from lagrangian_jax.reproduce.networks import Network
from lagrangian_jax.reproduce.workbench import GRID_IMAGES, Workbench

# Images of the data sets, training and test; a plan reads no data. ImageNet-100's are a tenth of ImageNet's, about.
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
      bench: the folder; networks that it holds are not trained again.
      experiments: what is asked for; what they share is counted once.
      rate: forward passes a second, of one image, on the device at hand; None gives no seconds.
    """
    work = [each for experiment in experiments for each in bench.chosen(experiment.work)]
    text, total = ["Networks:"], 0.0
    for network in dict.fromkeys(each.network for each in work):
        passes, line = _training(bench, network)
        total += passes
        text += line + ([f"    {_seconds(passes, rate)}"] if rate and passes else [])
    text.append("Attacks, as many passes as they take at most, whatever is done already:")
    for network, kind in dict.fromkeys((each.network, each.images) for each in work):
        rows = {
            row.name: row
            for each in work
            if (each.network, each.images) == (network, kind)
            for row in suites.rows(bench.suite(each.rows))
        }
        images = _images(bench, network, kind)
        found = {name: cost.of_row(row).units for name, row in rows.items()}
        passes = images * sum(found.values())
        total += passes
        text.append(
            f"  {network.name}, {images:,} {KINDS[kind]} images: {_passes(passes)}{_seconds(passes, rate, ', ')}"
        )
        text.append(f"    {', '.join(f'{name} ({units:g})' for name, units in found.items())}")
    text.append(f"Sum: {_passes(total)}{_seconds(total, rate, ', ')}")
    text.append(
        "A pass is a forward pass of that network over one image; in brackets passes an image, a gradient by the image "
        "one more than its pass, one by the weights two more. LPIPS and segmentation are not counted."
    )
    return text


def _training(bench: Workbench, network: Network) -> tuple[float, list[str]]:
    workdir = bench.workdir(network)
    if bench.is_trained(network):
        return 0.0, [f"  {network.name}: trained, in {workdir}"]
    config = bench.config(network)
    one = cost.of_training(config)
    examples = SIZES[config.data.name][0] - config.data.validation
    steps = config.train.steps or examples // config.train.batch_size
    clean = config.train.clean_epochs * steps * config.train.batch_size
    adversarial = config.train.epochs * steps * config.train.batch_size - clean
    passes = 3 * clean + one.units * adversarial
    bound = "" if one.exact else "at most "
    fields = " ".join(f"--config.{field}={value}" for field, value in bench.overrides.get(network.config, ()))
    if bench.preset == "quick":
        command = "(a tiny network on the digits; no command of its own)"
    else:
        spec = networks.spec(network, bench.preset)
        command = f"python -m lagrangian_jax.main --config={spec} {fields} --workdir={workdir}".replace("  ", " ")
    return passes, [
        f"  {network.name}: {command}",
        f"    {adversarial:,} images, each {bound}{one.forward:g} forward passes, {one.by_image:g} gradients by the "
        f"image and {one.by_weights:g} by the weights; {clean:,} clean ones: {_passes(passes)}",
    ]


def _images(bench: Workbench, network: Network, kind: str) -> int:
    config = bench.config(network)
    if kind == "shown":
        return SHOWN
    count = config.data.validation or GRID_IMAGES if kind == "grid" else SIZES[config.data.name][1]
    return min(count, config.evaluation.examples or count)


def _passes(passes: float) -> str:
    return f"{passes:.3g} passes"


def _seconds(passes: float, rate: float | None, before: str = "") -> str:
    return f"{before}{passes / rate:,.0f} s at {rate:g} passes a second" if rate else ""
