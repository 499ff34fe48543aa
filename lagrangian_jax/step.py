"""The training step: craft, differentiate, update. Pure; runs on each device over its share of the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lagrangian_jax import losses
from lagrangian_jax.attacks.arrays import fold_in, l2_norm
from lagrangian_jax.data.augmentation import augment, unit_interval
from lagrangian_jax.methods import Batch, Method, Network
from lagrangian_jax.methods.regularisation import Regularisation, perturbed, variation
from lagrangian_jax.models.forward import bind
from lagrangian_jax.parallel import AXIS, per_device
from lagrangian_jax.state import TrainState

SATURATION = 1.0  # the margin at which the paper's attack stops gaining (its kappa)


class Metrics(NamedTuple):
    """Sums over the global batch; divide by ``examples``.

    Attributes:
      loss: of the method, with its regularisation.
      correct: crafted images classified correctly, in the pass that is differentiated.
      perturbation_l2: l2 norms of the perturbations.
      saturated: examples whose margin on the crafted image is 1 or more.
      gradient_l2: the norm of the gradient with respect to all parameters, counted once for each example.
      examples: how many.
    """

    loss: Array | float
    correct: Array | float
    perturbation_l2: Array | float
    saturated: Array | float
    gradient_l2: Array | float
    examples: Array | float


def training_step(
    network: nn.Module,
    method: Method,
    optimizer: optax.GradientTransformation,
    augmentation: dict[str, Any] | None,
    steps_per_epoch: int,
    average: float,
    regularisation: Regularisation = Regularisation(),  # noqa: B008, it is immutable
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, Metrics]]:
    """``step(state, images, labels, index) -> (state, metrics)`` for one device of the mesh axis ``data``.

    Args:
      network: the network.
      method: the training method.
      optimizer: applied to the gradient of the mean loss over the global batch.
      augmentation: parameters of `data.augmentation.augment`, or None for images that are augmented already.
      steps_per_epoch: for methods that change with the epoch.
      average: decay of the moving average of parameters and statistics; 0 keeps none.
      regularisation: what is added to the method's loss.
    """
    smoothing, gamma, weight, space = regularisation.checked()

    def step(state: TrainState, images: Array, labels: Array, index: Array) -> tuple[TrainState, Metrics]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(state.key, state.step), index)
        images = unit_interval(images) if augmentation is None else augment(fold_in(keys, 0), images, **augmentation)
        batch = Batch(images, labels, index, smoothing)

        # Craft. If the attack uses batch statistics, they are those of this device's examples, so that its loop needs
        # no collective. The running averages are averaged over the devices once, after the attack.
        rows = jax.tree.map(lambda memory: memory[index], state.memory)
        whole, part = jnp.divmod(state.step, steps_per_epoch)
        crafted = method.craft(
            fold_in(keys, 1),
            Network(network, state.params, state.batch_stats),
            batch,
            rows,
            whole + part / steps_per_epoch,  # a single quotient may round to just below an epoch that begins
        )
        crafted = lax.stop_gradient(crafted)
        batch_stats = lax.pmean(crafted.batch_stats, AXIS)

        # Differentiate the mean loss of the global batch, at the weights or at perturbed ones.
        total = labels.shape[0] * lax.axis_size(AXIS)

        def objective(params):
            outcome = method.loss(bind(network, params, "train", AXIS), batch_stats, batch, crafted)
            if weight:
                features = bind(network, params, "batch", AXIS, features=space == "features")
                clean, _ = features(images, batch_stats)
                moved = features(crafted.images, batch_stats)[0] if space == "features" else outcome.logits
                outcome = outcome._replace(losses=outcome.losses + weight * variation(clean, moved))
            return jnp.sum(outcome.losses) / total, outcome

        def differentiate(params):
            gradient, outcome = jax.grad(objective, has_aux=True)(params)
            return lax.psum(gradient, AXIS), outcome

        params = perturbed(state.params, differentiate(state.params)[0], gamma) if gamma else state.params
        gradient, outcome = differentiate(params)

        # Update.
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = state.average
        if average:
            decay = jnp.minimum(average, (1 + state.step) / (10 + state.step))  # soon forgets the initial weights
            averaged = jax.tree.map(
                lambda old, new: decay * old + (1 - decay) * new, averaged, (params, outcome.batch_stats)
            )
        memory = state.memory
        if jax.tree.leaves(memory):
            indices, updated = lax.all_gather((index, crafted.memory), AXIS, tiled=True)
            memory = jax.tree.map(lambda old, new: old.at[indices].set(new), memory, updated)

        margins = losses.margin(outcome.logits, labels)
        sums = Metrics(
            loss=jnp.sum(outcome.losses),
            correct=jnp.sum(jnp.argmax(outcome.logits, axis=-1) == labels).astype(jnp.float32),
            perturbation_l2=jnp.sum(l2_norm(crafted.images - images)),
            saturated=jnp.sum(margins >= SATURATION).astype(jnp.float32),
            gradient_l2=optax.tree.norm(gradient) * labels.shape[0],
            examples=jnp.float32(labels.shape[0]),
        )
        new = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=outcome.batch_stats,
            opt_state=opt_state,
            average=averaged,
            memory=memory,
        )
        return new, lax.psum(sums, AXIS)

    return step


def resident_steps(step: Callable, mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
    """Several steps in one program, on a data set that lives on the devices.

    Returns:
      ``run(state, images, labels, index) -> (state, metrics)``: the data set's images (N, H, W, C) and labels (N,) are
      replicated, ``index`` (steps, B) is split along B; metrics are those of each step, (steps,). The state is donated.
    """

    def steps(state, images, labels, index):
        _check_memory(state, len(labels))

        def one(state, rows):
            return step(state, images[rows], labels[rows], rows)

        if index.shape[0] == 1:  # no loop: XLA's CPU compiler makes the weight gradients slow in one
            return one(state, index[0])
        return lax.scan(one, state, index)

    return jax.jit(per_device(steps, mesh, (P(), P(), P(), P(None, AXIS)), (P(), P())), donate_argnums=0)


def streaming_step(step: Callable, mesh: Mesh, examples: int) -> Callable[..., tuple[TrainState, Metrics]]:
    """One step on a batch that comes from the host.

    Args:
      step: from `training_step`.
      mesh: the devices.
      examples: size of the training set, to whose rows ``index`` refers.

    Returns:
      ``run(state, images, labels, index) -> (state, metrics)``: images, labels and ``index`` are split by example. The
      state is donated.
    """

    def one(state, images, labels, index):
        _check_memory(state, examples)
        return step(state, images, labels, index)

    return jax.jit(per_device(one, mesh, (P(), P(AXIS), P(AXIS), P(AXIS)), (P(), P())), donate_argnums=0)


def _check_memory(state: TrainState, examples: int) -> None:
    """Checks during tracing: in the compiled program, an index beyond the memory's end would be clamped or dropped."""
    for rows in jax.tree.leaves(state.memory):
        if len(rows) != examples:
            raise ValueError(f"memory: expected a row for each of the {examples} training images; got {len(rows)}")
