"""The training loop."""

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from lagrangian_jax import data, methods, parallel
from lagrangian_jax.attacks.arrays import predictions, threefry
from lagrangian_jax.build import (
    batches_of_epoch,
    build_method,
    build_network,
    build_optimizer,
    build_regularisation,
    build_schedule,
    build_validation_attack,
    check,
    initial_variables,
)
from lagrangian_jax.checkpoint import Checkpoints
from lagrangian_jax.config import NotFinite
from lagrangian_jax.data.augmentation import unit_interval
from lagrangian_jax.data.stream import epoch_order
from lagrangian_jax.methods.regularisation import Regularisation
from lagrangian_jax.models.forward import apply, bind
from lagrangian_jax.monitor import Monitor
from lagrangian_jax.signals import Interrupted, Signals
from lagrangian_jax.state import TrainState, initial_state
from lagrangian_jax.step import Metrics, resident_steps, streaming_step, training_step
from lagrangian_jax.workdir import same_data


class Trained(NamedTuple):
    """What `train` returns.

    Attributes:
      variables: ``{"params": ..., "batch_stats": ...}`` of the checkpoint that the configuration selects.
      summary: method, epochs, steps and seconds; the selected checkpoint, with its validation accuracies if it is the
        best one.
    """

    variables: Any
    summary: dict[str, Any]


def train(config: ConfigDict, workdir: pathlib.Path, dataset: data.Dataset) -> Trained:
    """Trains as ``config`` says, or resumes the run in ``workdir``.

    Args:
      config: see `lagrangian_jax.config.default`.
      workdir: receives ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``.
      dataset: from `data.load`.

    Returns:
      `Trained`.

    Raises:
      Interrupted: on SIGTERM or Ctrl-C, once the state is saved.
      NotFinite: a metric or a number of the state is not finite; the last checkpoint is from before that.
      ValueError: the configuration cannot be run, the images are not those that the run began with, or its checkpoints
        are of another method or state, or all damaged.
      OSError: something cannot be written; what was written before is intact.
    """
    # ---- What is trained, on what, how -----------------------------------------------------
    check(config, dataset)
    mesh = parallel.mesh()
    source = dataset.train
    resident = isinstance(source, data.Split)
    examples = len(source.labels)
    steps_per_epoch = batches_of_epoch(config, examples, mesh.size)
    batch_size = config.train.batch_size
    total_steps = config.train.epochs * steps_per_epoch
    clean_steps = config.train.clean_epochs * steps_per_epoch
    network = build_network(config, len(dataset.classes))
    method = build_method(config)
    schedule = build_schedule(config, steps_per_epoch)
    optimizer = build_optimizer(config, schedule)
    augmentation = config.augmentation.to_dict() if resident else None

    def compiled(method: methods.Method, regularisation: Regularisation) -> Callable:
        average = config.train.average
        step = training_step(network, method, optimizer, augmentation, steps_per_epoch, average, regularisation)
        return resident_steps(step, mesh) if resident else streaming_step(step, mesh, examples)

    regularisation = build_regularisation(config)
    clean = compiled(methods.create("standard"), Regularisation(regularisation.label_smoothing))
    adversarial = compiled(method, regularisation)
    count_correct, validate = build_counter(network, mesh), build_validation(config, network, mesh)

    # ---- The state: new, or that of the last checkpoint ------------------------------------
    size = config.data.image_size
    state = initial_state(
        threefry(jax.random.key(config.seed)),
        network,
        (size, size, 3),
        optimizer,
        method.memory(examples),
        average=config.train.average > 0,
    )
    # Tracing shows what the method cannot do with this network or these images: fail now, not after the clean epochs.
    rows, index_shape = (examples, (1, batch_size)) if resident else (batch_size, (batch_size,))
    shapes = ((rows, size, size, 3), jnp.uint8), ((rows,), jnp.int32), (index_shape, jnp.int32)
    jax.eval_shape(adversarial, state, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    same_data(workdir, dataset)
    # Two of each: the newest may be damaged, and `last` may still refer to the previous `best`.
    last, best = (Checkpoints(workdir / "checkpoints" / name, 2, config.method.name) for name in ("last", "best"))
    position: dict[str, Any] = {"seconds": 0.0, "best": None, "window": None}
    restored = last.restore(state, mesh)
    messages: list[str] = []
    if restored:
        state, position, messages = restored
    elif config.init_from:
        given = initial_variables(config, len(dataset.classes))
        anew = len(jax.tree.leaves(given)) < len(jax.tree.leaves(state.variables()))
        messages = [f"training begins from {config.init_from}{', with a new last layer' if anew else ''}"]
        state = state.begun_from(given)
    state = parallel.replicate(state, mesh)
    step = int(state.step)

    # ---- Data --------------------------------------------------------------------------------
    if isinstance(source, data.Split):
        images, labels = parallel.replicate((source.images, source.labels), mesh)
        limit = config.train.steps_per_call or (1 if jax.default_backend() == "cpu" else 50)
    else:
        batches = data.stream(
            source,
            batch_size=batch_size,
            seed=config.seed,
            start_step=step,
            steps_per_epoch=steps_per_epoch,
            train=True,
            image_size=size,
            workers=config.data.workers,
            shard=(jax.process_index(), jax.process_count()),
        )
        limit = 1
    held_out = read_shares(dataset.validation, size, config.data.workers)

    # ---- The loop ----------------------------------------------------------------------------
    monitor = Monitor(workdir, total_steps, step, steps_per_epoch, active=jax.process_index() == 0)
    for message in messages:
        monitor.say(message)
    window, started = Window(position["window"]), time.perf_counter() - position["seconds"]
    every_checkpoint = config.train.checkpoint_steps or steps_per_epoch
    stop = False
    with contextlib.ExitStack() as stack:
        stack.enter_context(monitor)
        if not resident:
            stack.callback(batches.close)
        signals, agreed = stack.enter_context(Signals()), parallel.agreed(mesh)
        while step < total_steps and not stop:
            # In one call, as many steps as there are before the next line of metrics, checkpoint or end of an epoch.
            place = step % steps_per_epoch
            ahead = [steps_per_epoch - place, *(n - place % n for n in (config.train.log_steps, every_checkpoint))]
            count = min(limit, *ahead)
            run = clean if step < clean_steps else adversarial
            if resident:
                index = batch_indices(config.seed, step, count, steps_per_epoch, examples, batch_size)
                index = parallel.split(_own_share(index, 1), mesh, axis=1)
                state, metrics = run(state, images, labels, index)
            else:
                streamed = next(batches)
                batch = parallel.split((streamed["images"], streamed["labels"], streamed["index"]), mesh)
                state, metrics = run(state, *batch)
            window.add(step, metrics)  # read one call late, so that the device never waits for the host
            step += count
            monitor.progress(step)
            stop = agreed(signals.received())  # several processes must leave at the same step
            place = step % steps_per_epoch
            ends_epoch = place == 0
            saves = stop or ends_epoch or place % every_checkpoint == 0

            if ends_epoch or place % config.train.log_steps == 0:
                seen = (images[index[-1]], labels[index[-1]]) if resident else batch[:2]
                correct = count_correct(state.params, state.batch_stats, *seen)
                line = {**window.flush(), "clean_accuracy": float(correct) / batch_size}
                monitor.train(step, {**line, "learning_rate": float(schedule(step - 1))})
            if saves:
                window.check()
                window.stop_clock()
                if not all_finite(state):  # save no state that training could not resume from
                    problem = f"parameters, statistics or momenta are not finite after step {step}"
                    raise parallel.known(NotFinite(problem))
                position |= {"seconds": time.perf_counter() - started, "window": window.state()}
            if ends_epoch and config.data.validation:
                accuracies = validate(state, held_out)
                record = position["best"]
                better = step > clean_steps and (
                    record is None or accuracies["robust_accuracy"] > record["robust_accuracy"]
                )
                if better:
                    position["best"] = {"step": step, "epoch": step / steps_per_epoch, **accuracies}
                    best.save(state, position)
                    best.wait()  # must be complete before `last` refers to it
                monitor.validation(step, {**accuracies, "best": better})
            if saves:
                monitor.sync()
                last.save(state, position)
                window.start_clock()
        last.wait()
        # Ask all processes once more: a signal may have come during the last step, or since.
        stop = any(part["stop"] for part in parallel.gather({"stop": np.array(signals.received())}))
    if stop:
        reached = f"stopped at step {step} of {total_steps}; the same command goes on from there"
        raise parallel.known(Interrupted(reached))

    # ---- What to evaluate --------------------------------------------------------------------
    selected: dict[str, Any] = {"checkpoint": "last", "step": step, "epoch": step / steps_per_epoch}
    if config.evaluation.checkpoint == "best":
        at = position["best"]["step"]
        found = best.restore(state, mesh, at)
        if found is None:
            raise ValueError(f"{workdir / 'checkpoints' / 'best'} no longer holds a checkpoint of step {at}")
        state, best_position, messages = found
        for message in messages:
            monitor.say(message)
        selected = {"checkpoint": "best", **best_position["best"]}
    last.close()
    best.close()
    summary = {
        "method": config.method.name,
        "epochs": config.train.epochs,
        "steps": total_steps,
        "seconds": position["seconds"],
        "selected": selected,
    }
    return Trained(jax.device_get(state.variables()), summary)


def batch_indices(seed: int, step: int, count: int, per_epoch: int, examples: int, batch_size: int) -> np.ndarray:
    """Training examples of ``count`` steps of one epoch, (count, batch_size); each epoch has its own permutation."""
    epoch, first = divmod(step, per_epoch)
    order = epoch_order(seed, epoch, examples)
    return order[(np.arange(count)[:, None] + first) * batch_size + np.arange(batch_size)]


def _own_share(array: np.ndarray, axis: int) -> np.ndarray:
    """The part of a global batch that this process provides."""
    return np.split(array, jax.process_count(), axis=axis)[jax.process_index()]


def read_shares(source: data.Split | data.Source, image_size: int, workers: int) -> data.Split:
    """`data.resident` in every process; each reads and decodes its share of the images, then they exchange shares."""
    if isinstance(source, data.Split) or jax.process_count() == 1:
        return data.resident(source, image_size=image_size, workers=workers)
    mine = np.array_split(np.arange(len(source)), jax.process_count())[jax.process_index()]
    share = data.resident(source.take(mine), image_size=image_size, workers=workers)
    images = np.concatenate([part["images"] for part in parallel.gather({"images": share.images})])
    return data.Split(images, source.labels, source.indices)


def build_counter(network: nn.Module, mesh: Mesh) -> Callable[..., Array]:
    """``count(params, batch_stats, images uint8, labels)``: clean images classified correctly, summed over devices."""

    def count(params, batch_stats, images, labels):
        logits, _ = bind(network, params, "eval")(unit_interval(images), batch_stats)
        return jax.lax.psum(jnp.sum(jnp.argmax(logits, axis=-1) == labels), parallel.AXIS)

    axis = P(parallel.AXIS)
    return jax.jit(parallel.per_device(count, mesh, (P(), P(), axis, axis), P()))


def build_validation(
    config: ConfigDict, network: nn.Module, mesh: Mesh
) -> Callable[[TrainState, data.Split], dict[str, float]]:
    """``validate(state, split)``: clean and robust accuracy, exact fractions of the held-out images."""
    attack, key = build_validation_attack(config), threefry(jax.random.key(config.seed))

    def count(variables, key, images, labels, index, real):
        def logits_fn(images):
            return apply(network, variables, images)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        images = unit_interval(images)
        adversarial = attack(keys, logits_fn, images, labels)
        correct = [jnp.sum(real & (predictions(logits_fn(x)) == labels)) for x in (images, adversarial)]
        return jax.lax.psum(jnp.stack(correct), parallel.AXIS)

    axis = P(parallel.AXIS)
    counted = jax.jit(parallel.per_device(count, mesh, (P(), P(), axis, axis, axis, axis), P()))

    def validate(state: TrainState, split: data.Split) -> dict[str, float]:
        total = len(split.labels)
        size = -(-min(config.evaluation.batch_size, total) // mesh.size) * mesh.size
        correct = np.zeros(2, np.int64)
        for start in range(0, total, size):
            index = np.arange(start, start + size)
            rows = np.minimum(index, total - 1)  # the last batch is padded; the padding is not counted
            batch = (split.images[rows], split.labels[rows], index, index < total)
            batch = parallel.split(jax.tree.map(lambda x: _own_share(x, 0), batch), mesh)
            correct += np.asarray(counted(state.variables(), key, *batch))
        return {"clean_accuracy": int(correct[0]) / total, "robust_accuracy": int(correct[1]) / total}

    return validate


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number in a tree is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


_NO_SUMS = Metrics(*np.zeros(len(Metrics._fields)).tolist())


class Window:
    """The metrics since the last line, fetched one call late."""

    def __init__(self, state: dict[str, Any] | None):
        kept = state or {"sums": _NO_SUMS._asdict(), "seconds": 0.0}
        self._sums, self._seconds = Metrics(**kept["sums"]), kept["seconds"]
        self.start_clock()
        self._pending: list[tuple[int, Any]] = []

    def add(self, step: int, metrics: Any) -> None:
        self._pending.append((step, metrics))
        if len(self._pending) > 1:
            self._take(*self._pending.pop(0))

    def check(self) -> None:
        while self._pending:
            self._take(*self._pending.pop(0))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the first line after it also covers the steps before it."""
        return {"sums": self._sums._asdict(), "seconds": self._seconds}

    def stop_clock(self) -> None:
        """Pauses until `start_clock`: images per second exclude validation and checkpoints."""
        self._seconds += time.perf_counter() - self._since

    def start_clock(self) -> None:
        self._since = time.perf_counter()

    def flush(self) -> dict[str, float]:
        self.check()
        self.stop_clock()
        sums, seconds = self._sums, self._seconds
        self._sums, self._seconds = _NO_SUMS, 0.0
        self.start_clock()
        return {
            "loss": sums.loss / sums.examples,
            "adversarial_accuracy": sums.correct / sums.examples,
            "perturbation_l2": sums.perturbation_l2 / sums.examples,
            "saturated": sums.saturated / sums.examples,
            "gradient_l2": sums.gradient_l2 / sums.examples,
            "images_per_second": sums.examples / seconds,
            "seconds": seconds,
        }

    def _take(self, step: int, metrics: Any) -> None:
        values = np.stack([np.atleast_1d(np.asarray(x, np.float64)) for x in metrics])
        finite = np.isfinite(values)
        if not finite.all():
            later, metric = np.argwhere(~finite.T)[0]  # the earliest step first
            problem = f"{metrics._fields[metric]} is {values[metric, later]} at step {step + later + 1}"
            raise parallel.known(NotFinite(problem))
        self._sums = Metrics(*(np.array(self._sums) + values.sum(axis=1)).tolist())
