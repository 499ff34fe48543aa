"""Configurations: plain data with defaults for every field, files that change some of them, and the command line.

A configuration file defines ``get_config(options="")`` and returns a `ConfigDict` made by `default`; ``options`` is
what follows the colon in ``--config=configs/cifar10.py:pgd_l2,slim``: a training method, presets, or both.
"""

import argparse
import ast
import contextlib
import gc
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lagrangian_jax import data, methods, models, parallel
from lagrangian_jax.evaluation import suites
from lagrangian_jax.names import UsageError, unknown
from lagrangian_jax.signals import Interrupted, sigterm_raises

# What XLA's library YNN does on a CPU: products and sums, but not convolutions, which it would run on a single core if
# they have few channels (`python -m benchmarks.layers`).
YNN = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"


# Fields that a file may add; your own data set may have any in `data`. An attack checks the fields of `validation`.
_OPTIONAL = {"data": ("cache_dir",), "optimizer": ("relative_rates",)}
_PACKAGED = data.names()  # before a file adds its own


def default() -> ConfigDict:
    """Every field of a configuration, set to what most runs want."""
    config = ConfigDict()
    config.seed = 0
    config.deterministic = False  # the same bits every time, even on a GPU, where that costs speed
    config.init_from = ""  # weights that training begins from, a file or a run's work directory; "": random ones

    config.data = ConfigDict()
    config.data.name = "cifar10"
    config.data.dir = ""  # where TFDS data sets or class folders are; "" is TFDS_DATA_DIR, or TFDS's own default
    config.data.validation = 1024  # training images held out for model selection
    config.data.image_size = 32
    config.data.workers = 0  # processes that decode streamed images; 0: threads of this process

    config.augmentation = ConfigDict()  # for data sets that live on the device; streamed images are cropped at random
    config.augmentation.padding = 4
    config.augmentation.mode = "reflect"
    config.augmentation.flip = True

    config.network = ConfigDict()
    config.network.name = "resnet18"
    config.network.width = 64
    config.network.stem = "cifar"
    config.precision = "float32"  # of convolutions: float32 or bfloat16

    set_method(config, "lagrangian")

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-4  # on every parameter
    config.optimizer.schedule = "step"  # "step": times `factor` at each milestone; "cosine" or "linear": to zero
    config.optimizer.milestones = (70, 90)  # epochs
    config.optimizer.factor = 0.1
    config.optimizer.warmup = 0.0  # epochs of linear increase from zero

    config.train = ConfigDict()
    config.train.epochs = 100
    config.train.clean_epochs = 3  # the first epochs, on clean images
    config.train.batch_size = 50
    config.train.steps = 0  # per epoch; 0: as many as the training set gives
    config.train.average = 0.0  # decay of the moving average of weights and statistics; 0: none
    config.train.steps_per_call = 0  # steps in one compiled program; 0: one on a CPU, 50 elsewhere
    config.train.log_steps = 50
    config.train.checkpoint_steps = 0  # steps between checkpoints within an epoch; 0: only at its end

    config.regularisation = ConfigDict()  # on top of any method; see `methods.regularisation`
    config.regularisation.label_smoothing = 0.0
    config.regularisation.weight_perturbation = 0.0  # gamma of adversarial weight perturbation
    config.regularisation.variation = 0.0  # weight of the distance between outputs on clean and crafted images
    config.regularisation.variation_of = "logits"  # or "features"

    config.validation = ConfigDict()  # robust accuracy on the held-out images, after every epoch
    config.validation.attack = "pgd_l2"
    config.validation.bound = 1.0
    config.validation.steps = 10
    config.validation.step_size = 0.25

    config.evaluation = ConfigDict()
    config.evaluation.suite = "cifar10_table1"
    config.evaluation.checkpoint = "last"  # or "best", by validation
    config.evaluation.batch_size = 500
    config.evaluation.examples = 0  # a fixed subset of so many test images, stratified by class; 0: all
    config.evaluation.lpips_alexnet = ""  # file with the weights of this distance, which LPA uses on ImageNet-100
    return config


def set_method(config: ConfigDict, name: str, **values: Any) -> None:
    """Chooses the training method: its name and all its parameters become ``config.method``."""
    known = methods.parameters(name)
    for value in values:
        if value not in known:
            raise unknown(f"parameter of method {name!r}:", value, known)
    config.method = ConfigDict({"name": name, **known, **values})


def choose(
    config: ConfigDict,
    options: str,
    method_values: Mapping[str, Mapping[str, Any]],
    presets: Mapping[str, Callable[[ConfigDict], None]],
) -> ConfigDict:
    """Applies ``method,preset,...`` to a configuration.

    Args:
      config: what to change.
      options: comma-separated names, the method first; if there is none, it is the method of ``config``.
      method_values: for each method that makes sense here, the parameters that differ from its defaults.
      presets: functions that change the configuration.
    """
    names = [name for name in options.split(",") if name]
    method = names.pop(0) if names and names[0] in method_values else config.method.name
    set_method(config, method, **method_values[method])
    for name in names:
        if name in method_values:
            raise ValueError(f"{name!r} is a method: expected one, before the presets; got {options!r}")
        if name not in presets:
            raise unknown("method or preset", name, (*method_values, *presets))
        presets[name](config)
    return config


def base(name: str) -> ConfigDict:
    """A packaged configuration for another to start from."""
    config = load(name)
    config.unlock()
    return config


def smoke(config: ConfigDict, batch_size: int, steps: int, examples: int) -> None:
    """Shrinks any configuration to a few steps on a tiny network and a few test images, to see that everything runs."""
    config.network.width = 4
    config.train.epochs = 2
    config.train.clean_epochs = 1
    config.train.batch_size = batch_size
    config.train.steps = steps
    config.train.log_steps = 2
    config.evaluation.suite = "quick"
    config.evaluation.examples = examples
    config.evaluation.batch_size = examples


def early_stopping(config: ConfigDict) -> None:
    """Selects the epoch of best robust accuracy on 1,000 held-out images, for PGD training under its own attack.

    That attack follows later changes of ``config.method``; fields that are set in ``config.validation`` stay.
    """
    config.data.validation = 1000
    config.evaluation.checkpoint = "best"
    if config.method.name in ("pgd_linf", "pgd_l2"):
        config.validation.attack = config.method.name
        for name in ("bound", "steps", "step_size", "random_start"):
            config.validation[name] = config.method.get_oneway_ref(name)


def evaluation_statistics(config: ConfigDict) -> None:
    """Makes attacks in training use the running averages, also for methods whose original uses batch statistics."""
    for field in ("statistics", "search_statistics"):
        if field in config.method:
            config.method[field] = "eval"


def path(text: str) -> pathlib.Path:
    """The argument type of paths; it expands ~, which a shell leaves as it is in ``--workdir=~/runs``."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    return pathlib.Path(text).expanduser()


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Turns a `ValueError` into a `UsageError`, whose exit code tells a scheduler that trying again is useless."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def parse(argv: Sequence[str], parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, ConfigDict]:
    """Reads ``--config=FILE[:options]``, ``--config.field=value`` and what ``parser`` adds.

    Returns:
      the parsed arguments and the locked configuration.

    Raises:
      UsageError: an unknown file, option, field or value; one line that names the nearest valid one.
    """
    named = "FILE:METHOD,PRESET; FILE is a path or the name of a packaged file; 'digits' by default"
    parser.add_argument("--config", default="digits", help=named)
    parser.epilog = (
        "Any field of the configuration is set by --config.FIELD=VALUE, such as --config.train.epochs=10. "
        f"Configurations: {', '.join(names())}. Methods: {', '.join(methods.names())}; the docstring of a "
        f"configuration's file, in {packaged()}, lists the methods and presets that it takes. "
        f"Suites, for --config.evaluation.suite: {', '.join(suites.names())}."
    )
    arguments, rest = parser.parse_known_args(argv)
    overrides = []
    for argument in rest:
        if not argument.startswith("--config.") or "=" not in argument:
            raise UsageError(f"unknown argument {argument!r}; fields are set as --config.field=value")
        overrides.append(argument.removeprefix("--config.").split("=", 1))
    try:
        config = load(arguments.config)
        for field, value in sorted(overrides, key=lambda override: override[0] != "network.name"):
            set_field(config, field, value)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return arguments, config


def load(spec: str) -> ConfigDict:
    """The locked configuration of ``FILE[:options]``; a bare name means a packaged file, such as ``cifar10:pgd_l2``."""
    name, _, options = spec.partition(":")
    path = pathlib.Path(name).expanduser()
    if not path.suffix and not path.is_file():  # a folder may have the name of a packaged one
        path = packaged() / f"{name}.py"
    if not path.is_file():
        raise unknown("configuration", name, names(), like=path.stem)
    if path.suffix != ".py":
        raise ValueError(f"{name}: expected a Python file that defines get_config(options)")
    spec_of_file = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec_of_file is not None
    assert spec_of_file.loader is not None
    module = importlib.util.module_from_spec(spec_of_file)
    spec_of_file.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{name}: expected a Python file that defines get_config(options)")
    config = _made(name, module.get_config, options)
    _check_fields(config)
    return config.lock()


def _made(name: str, get_config: Callable[..., Any], options: str) -> ConfigDict:
    """What a file's ``get_config`` returns; raises ValueError if that is no configuration, or if it misuses one."""
    takes_options = bool(inspect.signature(get_config).parameters)
    if options and not takes_options:
        raise ValueError(f"{name}: its get_config() takes no options, as get_config(options) would; got {options!r}")
    try:
        config = get_config(options) if takes_options else get_config()
    except (AttributeError, KeyError, TypeError) as error:
        *frames, raised_in = traceback.extract_tb(error.__traceback__)
        if "ml_collections" not in raised_in.filename:
            raise
        at = [frame for frame in frames if "ml_collections" not in frame.filename][-1]
        reason = str(error) if isinstance(error, TypeError) else "no such field"  # the others' messages span many lines
        raise ValueError(f"{pathlib.Path(at.filename).name}, line {at.lineno}, {at.line}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{name}: get_config returned {type(config).__name__}; expected a ConfigDict")
    return config


def _check_fields(config: ConfigDict) -> None:
    """Raises ValueError if a file sets a field that nothing reads, or lacks a field."""
    known = default()
    _compare("config", config, known, known)
    for group in ("data", "augmentation", "optimizer", "train", "regularisation", "evaluation"):
        own = config.data if group == "data" and config.data.get("name") not in _PACKAGED else ()
        _compare(f"config.{group}", config[group], known[group], (*known[group], *_OPTIONAL.get(group, ()), *own))
    network, method = (config[group].get("name", "") for group in ("network", "method"))
    _compare("config.network", config.network, (), network_fields({"name": network}))
    _compare("config.method", config.method, (), ("name", *methods.parameters(method)))


def _compare(prefix: str, given: ConfigDict, needed: Iterable[str], valid: Iterable[str]) -> None:
    for field in given:
        if field not in valid:
            raise unknown(f"field in {prefix}:", field, valid)
    for field in needed:
        if field not in given:
            raise ValueError(
                f"{prefix} lacks the field {field!r}; begin with lagrangian_jax.config.default() or base(NAME)"
            )


def packaged() -> pathlib.Path:
    """The folder of the configurations that come with the package."""
    beside = pathlib.Path(__file__).resolve().parent
    installed = beside / "configs"
    return installed if installed.is_dir() else beside.parent / "configs"


def names() -> list[str]:
    """The configurations that come with the package."""
    return sorted(path.stem for path in packaged().glob("*.py") if path.stem != "__init__")


def set_field(config: ConfigDict, field: str, text: str) -> None:
    """Sets ``field``, a dotted path, to ``text``, which is read as the field's type.

    The fields of ``network`` are the parameters of the network. Another ``network.name`` brings its own defaults, but
    keeps what the configuration has changed if it has such parameters. Another ``method.name`` is refused: a bound
    means something else to each method, and presets depend on the method.
    """
    if field == "method.name" and text != config.method.name:
        methods.parameters(text)  # raises for an unknown one
        raise ValueError(
            f"config.method.name: choose the method after the colon, as in --config=cifar10:{text}, which brings its "
            f"parameters; the method here is {config.method.name!r}"
        )
    if field == "network.name":
        before, after = models.parameters(config.network.name), models.parameters(text)
        changed = {key: value for key, value in config.network.items() if key in after and value != before[key]}
        config.network = network_fields({**changed, "name": text})
    elif field.startswith("network."):
        config.network = network_fields(config.network)
    *parents, last = field.split(".")
    holder = config
    for depth, name in enumerate([*parents, last]):
        if not isinstance(holder, ConfigDict) or name not in holder:
            valid = list(holder) if isinstance(holder, ConfigDict) else []
            prefix = ".".join(parents[:depth])
            raise unknown(f"field in config{'.' if prefix else ''}{prefix}:", name, valid)
        if depth < len(parents):
            holder = holder[name]
    old = holder[last]
    if isinstance(old, ConfigDict):
        raise ValueError(f"config.{field} is a group; set one of its fields: {', '.join(old)}")
    holder[last] = _read(field, text, old)


def network_fields(given: Mapping[str, Any]) -> ConfigDict:
    """A network's name and all the parameters that a configuration sets, at their defaults unless given."""
    set_elsewhere = ("num_classes", "axis_name", "dtype")
    known = {key: value for key, value in models.parameters(given["name"]).items() if key not in set_elsewhere}
    return ConfigDict({**known, **given}).lock()


# The functions that take the parameters of these groups check them, and some may be None.
_OF_FUNCTIONS = ("network", "method", "validation")


def _read(field: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
    except (SyntaxError, ValueError):
        value = _fraction(text)
    if old is None or (value is None and field.split(".")[0] in _OF_FUNCTIONS):
        return value
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, tuple) and isinstance(value, (list, int, float)):
        return tuple(value) if isinstance(value, list) else (value,)
    if type(value) is not type(old):
        raise ValueError(f"config.{field}: expected {type(old).__name__}, like {old!r}; got {text!r}")
    return value


def _fraction(text: str) -> Any:
    """The value of 8/255 and the like; any other text as it is."""
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else text
    except (ValueError, ZeroDivisionError):
        return text


def plain(config: ConfigDict) -> dict[str, Any]:
    """Nested dictionaries of JSON types."""
    return {
        key: plain(value) if isinstance(value, ConfigDict) else list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A line ``field: theirs there, ours here`` for every field in which two plain configurations differ."""
    lines = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {b!r} there, {a!r} here")
    return lines


def prepare_jax(config: ConfigDict) -> None:
    """Applies the settings that must come before JAX touches a device: determinism, speed on a CPU, where compiled
    programs are kept. Settings of the environment take precedence.
    """
    wanted = {"xla_cpu_experimental_ynn_fusion_type": YNN}
    if config.deterministic:
        wanted["xla_gpu_deterministic_ops"] = "true"
    flags = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in wanted.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *added]).strip()
    gc.set_threshold(200_000, 20, 50)  # tracing makes objects by the million, and hardly any garbage
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        from lagrangian_jax.data import cache

        jax.config.update("jax_compilation_cache_dir", str(cache.folder(config.data) / "compiled"))


def fail(message: str, code: int) -> int:
    """Prints an error as one line to stderr; returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code


class NotFinite(Exception):
    """A metric or a number of the state is not finite; the message says which, and at what step."""


def guarded(function: Callable[..., None], *arguments: Any) -> int:
    """Runs a command; an error that a user can cause ends in one line and an exit code, not in a traceback."""
    try:
        with sigterm_raises():
            function(*arguments)
    except KeyboardInterrupt:
        return fail("stopped by Ctrl-C; the same command goes on from the last checkpoint or attack", 130)
    except (Interrupted, NotFinite, UsageError, ValueError, OSError) as error:
        full = "; make room, and the same command goes on" if "No space left on device" in str(error) else ""
        code = os.EX_TEMPFAIL if isinstance(error, Interrupted) else 2 if isinstance(error, UsageError) else 1
        fail(f"{error}{full}", code)
        parallel.leave_if_alone(error, code)
        return code
    except Exception as error:  # nothing that a user can cause: show the traceback
        parallel.leave_if_alone(error, 1, trace=True)
        raise
    return 0
