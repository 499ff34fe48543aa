"""The training state: everything that a run must remember to go on."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array


class TrainState(flax.struct.PyTreeNode):
    """Parameters and all that changes with them.

    Attributes:
      step: steps taken, int32.
      key: random key of the run, which is folded with the step and the example's index wherever randomness is needed.
      params: parameters, float32.
      batch_stats: running statistics of batch normalisation.
      opt_state: state of the optimizer.
      average: exponential moving average of ``params`` and ``batch_stats``, or ``()`` where none is kept.
      memory: the method's memory, a row for each training example, or ``()``.
    """

    step: Array
    key: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    memory: Any

    def variables(self) -> dict[str, Any]:
        """What to evaluate: the averaged parameters and statistics if kept, else the current ones."""
        params, batch_stats = self.average or (self.params, self.batch_stats)
        return {"params": params, "batch_stats": batch_stats}

    def begun_from(self, variables: Any) -> "TrainState":
        """The state with ``variables`` in place of its own, as far as they go; averages start from them, too."""
        own = {"params": self.params, "batch_stats": self.batch_stats}
        merged = unflatten_dict(flatten_dict(own, keep_empty_nodes=True) | flatten_dict(variables))
        params, batch_stats = merged["params"], merged["batch_stats"]
        average = jax.tree.map(jnp.copy, (params, batch_stats)) if self.average else ()
        return self.replace(params=params, batch_stats=batch_stats, average=average)


def initial_state(
    key: Array,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    optimizer: optax.GradientTransformation,
    memory: Any = (),
    average: bool = False,
) -> TrainState:
    """The state before the first step."""

    @jax.jit  # one program, which later starts find compiled; run singly, its hundred operations take seconds
    def initial(key: Array) -> TrainState:
        variables = network.init(jax.random.fold_in(key, 0), jnp.zeros((1, *image_shape)), train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.fold_in(key, 1),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            average=(params, batch_stats) if average else (),
            memory=(),
        )

    return initial(key).replace(memory=memory)
