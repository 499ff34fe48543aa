"""What is trained: the networks of the tables and figures, as configurations under a preset."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from lagrangian_jax import config as configuration
from lagrangian_jax.names import unknown

# For each preset, by configuration, what follows the method in ``--config``; a configuration that is not listed follows
# the paper. "quick" is not a preset of any configuration: a tiny network on the digits takes the place of each.
_SLIM = {name: "slim" for name in ("cifar10", "cifar10_three_classes", "segmentation_cifar", "imagenet100", "flowers")}
PRESETS: dict[str, dict[str, str]] = {
    "paper": {},
    "fast": {"cifar10": "fast", "imagenet100": "fast"},
    "slim": _SLIM,
    "comparison": _SLIM | {"cifar10": "comparison", "cifar10_three_classes": "comparison"},
    "quick": {},
}
QUICK_STEPS = 2  # training steps per epoch, and most steps of an attack


class Network(NamedTuple):
    """A network to train.

    Attributes:
      config: the name of a packaged configuration.
      method: the training method; after a comma, presets that go with it at any size of the run (early_stopping).
    """

    config: str
    method: str

    @property
    def name(self) -> str:
        """The name of its work directory."""
        return "-".join([self.config, *self.method.split(",")])

    def configuration(self, preset: str) -> str:
        """The name of the configuration that takes its place under a preset."""
        return "digits" if preset == "quick" and self.method != "segmentation" else self.config


def load(network: Network, preset: str, overrides: Mapping[str, Sequence[tuple[str, str]]]) -> ConfigDict:
    """The locked configuration of a network.

    Args:
      network: the network.
      preset: a key of `PRESETS`.
      overrides: by the configuration's name, pairs of a field and its value as text.

    Raises:
      ValueError: an unknown field or a wrong value.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    config = quick(network) if preset == "quick" else configuration.load(spec(network, preset))
    for field, value in overrides.get(network.configuration(preset), ()):
        if _concerns(field, config):
            configuration.set_field(config, field, value)
    return config


def _concerns(field: str, config: ConfigDict) -> bool:
    """Whether a field applies to a configuration: a method's parameter, only if the configured method has it."""
    group, _, name = field.partition(".")
    return group != "method" or name in config.method


def check_overrides(wanted: Sequence[Network], preset: str, overrides: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Raises ValueError for an unknown field, a wrong value, or one that none of the networks has."""
    configs = [(network.configuration(preset), load(network, preset, overrides)) for network in wanted]
    for name, fields in overrides.items():
        for field, value in fields:
            if not any(name == known and _concerns(field, config) for known, config in configs):
                used = ", ".join(sorted({known for known, _ in configs}))
                raise ValueError(f"--{name}.{field}={value} concerns no network that is asked for; they are of {used}")


def read_overrides(arguments: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Parses ``--cifar10.train.epochs=10``: by configuration, pairs of a field and its value as text.

    Raises:
      UsageError: an argument of another form, or an unknown configuration.

    >>> read_overrides(["--cifar10.train.epochs=10"])
    {'cifar10': [('train.epochs', '10')]}
    """
    known = configuration.names()
    overrides: dict[str, list[tuple[str, str]]] = {}
    for argument in arguments:
        name, dot, rest = argument.removeprefix("--").partition(".")
        field, equals, value = rest.partition("=")
        if not (argument.startswith("--") and dot and equals):
            raise configuration.UsageError(
                f"unknown argument {argument!r}; set fields of a configuration as --cifar10.field=value"
            )
        if name not in known:
            raise configuration.UsageError(str(unknown("configuration", name, known)))
        overrides.setdefault(name, []).append((field, value))
    return overrides


def spec(network: Network, preset: str) -> str:
    """The equivalent argument of ``--config``."""
    method, *presets = network.method.split(",")
    options = [method, PRESETS[preset].get(network.config, ""), *presets]
    return f"{network.config}:{','.join(option for option in options if option)}".rstrip(":")


def quick(network: Network) -> ConfigDict:
    """A few steps of the method on a tiny network and the digits, to see that every path works."""
    method, *presets = network.method.split(",")
    data = "segmentation_cifar" if method == "segmentation" else "digits"
    config = configuration.load(f"{data}:{method},smoke").unlock()
    config.data.name = "digits"
    if data == "digits":
        configuration.set_field(config, "network.name", "resnet8")  # compiles in half the time
    if "early_stopping" in presets:
        configuration.early_stopping(config)
    config.data.validation = 32
    config.train.batch_size = 32
    config.train.steps = QUICK_STEPS
    config.validation.steps = QUICK_STEPS
    config.evaluation.examples = 12
    config.evaluation.batch_size = 12
    for field in ("steps", "search_steps"):
        if field in config.method:
            config.method[field] = min(config.method[field], QUICK_STEPS)
    return config.lock()
