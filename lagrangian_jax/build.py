"""Builds what a configuration describes (network, method, optimizer, schedule, validation); checks that it can run."""

import math
import operator
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lagrangian_jax import attacks, data, evaluation, interop, methods, models, parallel
from lagrangian_jax.attacks.ranges import number
from lagrangian_jax.methods.regularisation import Regularisation
from lagrangian_jax.names import unknown
from lagrangian_jax.workdir import same_network, weights_file

# For each field its least value and the limit it must stay below, in every run (`_COMMON`) or in training.
_COMMON: dict[str, tuple[int, float]] = {
    "seed": (0, 2**32),
    "data.image_size": (1, math.inf),
    "data.workers": (0, math.inf),
    "evaluation.batch_size": (1, math.inf),
    "evaluation.examples": (0, math.inf),
}
_TRAINING: dict[str, tuple[int, float]] = {
    "train.epochs": (1, math.inf),
    "train.clean_epochs": (0, math.inf),
    "train.average": (0, 1),
    "train.steps_per_call": (0, math.inf),
    "train.log_steps": (1, math.inf),
    "train.checkpoint_steps": (0, math.inf),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.factor": (0, math.inf),
    "optimizer.warmup": (0, math.inf),
}


def check_evaluation(config: ConfigDict, dataset: data.Dataset) -> None:
    """Raises ValueError if a network of this configuration cannot be evaluated on these images.

    Writes nothing, so that it can come before a work directory is claimed.
    """
    _check_common(config, dataset)
    for distance, path in distance_weights(config).items():
        if not pathlib.Path(path).is_file():
            raise ValueError(f"evaluation.{distance}: no such file: {path}")
    size = config.data.image_size
    evaluation.ready(config.evaluation.suite, distance_weights(config), (size, size, 3), len(dataset.classes))


def check(config: ConfigDict, dataset: data.Dataset) -> None:
    """Raises ValueError or OSError if a network of this configuration cannot be trained on these images.

    Writes nothing, so that it can come before a work directory is claimed.
    """
    _check_common(config, dataset)
    _check_ranges(config, _TRAINING)
    milestones = config.optimizer.milestones
    if not all(number(epoch) and epoch >= 0 for epoch in milestones):
        raise ValueError(f"optimizer.milestones: expected epochs, 0 or more; got {milestones!r}")
    chosen = config.evaluation.checkpoint
    if chosen not in ("last", "best"):
        raise ValueError(f"evaluation.checkpoint: expected 'last' or 'best'; got {chosen!r}")
    if chosen == "best" and not (config.data.validation and config.train.epochs > config.train.clean_epochs):
        raise ValueError("evaluation.checkpoint: 'best' needs data.validation > 0 and an epoch after the clean ones")
    names = config.network.name, config.method.name
    if "segmentation" in names and len(set(names)) > 1:
        raise ValueError(f"network {names[0]!r}, method {names[1]!r}: both must be 'segmentation', or neither")
    steps_per_epoch = batches_of_epoch(config, len(dataset.train.labels), parallel.mesh().size)
    build_method(config)
    build_regularisation(config)
    build_optimizer(config, build_schedule(config, steps_per_epoch))
    attack = build_validation_attack(config)
    if config.data.validation:  # else the run would fail only after its first epoch
        if not len(dataset.validation.labels):
            raise ValueError(
                f"data.validation: {config.data.validation} images are to be held out, but {dataset.name} has none; "
                "hold them out in its loader, or set --config.data.validation=0"
            )
        attack.check((config.data.image_size, config.data.image_size, 3), len(dataset.classes))


def _check_common(config: ConfigDict, dataset: data.Dataset) -> None:
    _check_ranges(config, _COMMON)
    _check_dataset(dataset, config.data.image_size)
    build_network(config, len(dataset.classes))


def _check_ranges(config: ConfigDict, ranges: Mapping[str, tuple[int, float]]) -> None:
    for field, (least, limit) in ranges.items():
        value = operator.attrgetter(field)(config)
        if not least <= value < limit:
            below = f", below {limit}" if limit < math.inf else ""
            raise ValueError(f"{field}: expected {least} or more{below}; got {value!r}")


def _check_dataset(dataset: data.Dataset, image_size: int) -> None:
    """Raises ValueError if images in memory are not what networks take, a label is no class, there are no test images
    or two share an index.
    """
    if not isinstance(dataset.classes, (tuple, list)):
        raise ValueError(
            f"classes of {dataset.name}: expected their names, such as ('cat', 'dog'); got {dataset.classes!r}"
        )
    wanted, last = (image_size, image_size, 3), len(dataset.classes) - 1
    if last < 1:
        raise ValueError(f"classes of {dataset.name}: expected two or more; got {list(dataset.classes)}")
    for name in ("train", "validation", "test"):
        split = getattr(dataset, name)
        _check_labels(f"{name} labels of {dataset.name}", split.labels, last)
        if isinstance(split, data.Split):
            _check_images(f"{name} images of {dataset.name}", split.images, wanted)
            if not len(split.images) == len(split.labels) == len(split.indices):
                raise ValueError(
                    f"{name} of {dataset.name}: expected a label and an index for each image; got "
                    f"{len(split.images)} images, {len(split.labels)} labels, {len(split.indices)} indices"
                )
    indices = dataset.test.indices
    if not len(indices) or len(np.unique(indices)) < len(indices):
        raise ValueError(
            f"test images of {dataset.name}: expected one or more, each with its own index; got {len(indices)} "
            f"with {len(np.unique(indices))} indices"
        )


def _check_labels(what: str, labels: Any, last: int) -> None:
    if not hasattr(labels, "dtype"):
        raise ValueError(f"{what}: expected whole numbers (N,); got a {type(labels).__name__}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        change = "argmax(-1)" if labels.ndim == 2 else "astype(np.int32)"
        raise ValueError(f"{what}: expected whole numbers (N,); got {labels.dtype} {labels.shape}: labels.{change}")
    if len(labels) and not 0 <= labels.min() <= labels.max() <= last:
        raise ValueError(f"{what}: expected 0 to {last}, one per class; got {labels.min()} to {labels.max()}")


def _check_images(what: str, images: np.ndarray, wanted: tuple[int, ...]) -> None:
    expected = f"expected uint8 (N, {', '.join(map(str, wanted))})"
    if not hasattr(images, "dtype"):
        raise ValueError(f"{what}: {expected}; got a {type(images).__name__}")
    if images.dtype != np.uint8 or images.shape[1:] != wanted:
        floats = np.issubdtype(images.dtype, np.floating)
        change = "; images in [0, 1]: (255 * images).round().astype(np.uint8)" if floats else ""
        raise ValueError(f"{what}: {expected}, from data.image_size; got {images.dtype} {images.shape}{change}")


def build_network(config: ConfigDict, num_classes: int) -> nn.Module:
    """The network of a configuration."""
    precisions = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    if config.precision not in precisions:
        raise ValueError(f"precision: expected {' or '.join(precisions)}; got {config.precision!r}")
    options = {name: value for name, value in config.network.items() if name != "name"}
    return models.create(config.network.name, num_classes=num_classes, dtype=precisions[config.precision], **options)


def initial_variables(config: ConfigDict, num_classes: int) -> Any:
    """The variables that training begins from instead of random ones: the weights that ``config.init_from`` names.

    Returns:
      variables of the configuration's network, without those of the last layer if the weights are for another number of
      classes.

    Raises:
      ValueError: there are no weights, or they are another network's.
    """
    path = pathlib.Path(config.init_from).expanduser()
    file = weights_file(path, "init_from")
    same_network(path, "init_from", config)
    size = config.data.image_size
    return interop.load(file, build_network(config, num_classes), (size, size, 3), other_classes=True)


def build_method(config: ConfigDict) -> methods.Method:
    """The training method of a configuration."""
    return methods.create(config.method.name, **{k: v for k, v in config.method.items() if k != "name"})


def build_regularisation(config: ConfigDict) -> Regularisation:
    """What a configuration adds to the method's loss."""
    regularisation = Regularisation(**config.regularisation).checked()
    name = config.method.name
    if regularisation.variation and name in ("standard", "segmentation"):
        raise ValueError(f"regularisation.variation: expected 0 with the method {name!r}, which crafts no images")
    return regularisation


def build_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """PyTorch's SGD: decay on every parameter, then momentum, then the learning rate.

    ``optimizer.relative_rates``, if configured, multiplies the learning rates of the submodules that it names.
    """
    optimizer = config.optimizer
    steps = [
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.sgd(schedule, optimizer.momentum, optimizer.nesterov),
    ]
    rates = optimizer.get("relative_rates", {})
    if rates:
        steps.append(optax.stateless(lambda updates, params: scale_submodules(updates, rates)))
    return optax.chain(*steps)


def scale_submodules(updates: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, Any]:
    """Updates of a network's parameters, with those of each named submodule multiplied by its rate.

    >>> scale_submodules({"stem": 2.0, "head": {"kernel": 2.0}}, {"head": 0.1})
    {'stem': 2.0, 'head': {'kernel': 0.2}}
    """
    for name in rates:
        if name not in updates:
            raise unknown("submodule in optimizer.relative_rates:", name, updates)
    return {name: optax.tree.scale(rates.get(name, 1.0), tree) for name, tree in updates.items()}


def build_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step."""
    optimizer = config.optimizer
    rate, total = optimizer.learning_rate, config.train.epochs * steps_per_epoch
    if optimizer.schedule == "step":
        # A drop applies from the first step of its epoch.
        drops: dict[int, float] = {}
        for epoch in optimizer.milestones:
            at = round(epoch * steps_per_epoch)
            drops[at] = drops.get(at, 1.0) * optimizer.factor
        base = optax.piecewise_constant_schedule(rate, drops)
    elif optimizer.schedule == "cosine":
        base = optax.cosine_decay_schedule(rate, total)
    elif optimizer.schedule == "linear":
        base = optax.linear_schedule(rate, 0.0, total)
    else:
        raise ValueError(f"optimizer.schedule: expected step, cosine or linear; got {optimizer.schedule!r}")
    warmup = optimizer.warmup * steps_per_epoch
    return lambda step: base(step) * (jnp.minimum(1.0, (step + 1) / warmup) if warmup else 1.0)


def batches_of_epoch(config: ConfigDict, examples: int, devices: int = 1) -> int:
    """Batches per epoch; raises ValueError if their size or number does not suit the training images or the devices."""
    batch_size, steps = config.train.batch_size, config.train.steps
    if not 0 < batch_size <= examples or batch_size % devices:
        raise ValueError(
            f"train.batch_size: expected a multiple of the {devices} devices and at most the {examples} training "
            f"images; got {batch_size}"
        )
    whole = examples // batch_size
    if not 0 <= steps <= whole:
        raise ValueError(f"train.steps: expected 0 to {whole} batches of {batch_size}; got {steps}")
    return steps or whole


def distance_weights(config: ConfigDict) -> dict[str, str]:
    """The weight files that the configuration names, by distance."""
    path = config.evaluation.lpips_alexnet
    return {"lpips_alexnet": str(pathlib.Path(path).expanduser())} if path else {}


def build_validation_attack(config: ConfigDict) -> attacks.Attack:
    """The attack that a configuration runs on the held-out images."""
    options = dict(config.validation.items())
    try:
        return attacks.create(options.pop("attack"), **options)
    except ValueError as error:
        raise ValueError(f"validation: {error}") from error
