"""Training runs from Python: the network that a run has left in its work directory."""

import os
import pathlib
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from lagrangian_jax import interop
from lagrangian_jax.build import build_network
from lagrangian_jax.interop import fit
from lagrangian_jax.interop.torch import read_state_dict
from lagrangian_jax.workdir import made_with, weights_file


def load(workdir: str | os.PathLike) -> tuple[nn.Module, Any]:
    """The network that a run of ``python -m lagrangian_jax.main`` has trained, and its variables.

    Args:
      workdir: the run's work directory.

    Returns:
      the network, in the run's precision, and ``{"params": ..., "batch_stats": ...}`` of the selected checkpoint.

    Raises:
      ValueError: not a work directory, or its training is not complete.

    An attack on the network, and its evaluation::

        network, variables = lj.runs.load("runs/digits")
        logits_fn = lambda images: network.apply(variables, images, train=False)
        adversarial = lj.attacks.create("pgd_l2")(jax.random.key(0), logits_fn, images, labels)
        result = lj.evaluation.run(network.apply, images, labels, suite="quick", variables=variables)
    """
    path = pathlib.Path(workdir).expanduser()
    config = made_with(path)
    if config is None or "network" not in config:
        raise ValueError(f"{path}: no work directory of a training run; it has no config.json")
    file = weights_file(path, "runs.load")
    classes = fit.classes({name: x.shape for name, x in read_state_dict(file).items()})
    if classes is None:
        raise ValueError(f"{file}: no network of `lagrangian_jax.models`; `lagrangian_jax.interop.load` takes your own")
    # JSON has turned tuples into lists, with which a network has no hash.
    config["network"] = {key: tuple(x) if isinstance(x, list) else x for key, x in config["network"].items()}
    network, size = build_network(ConfigDict(config), classes), config["data"]["image_size"]
    return network, interop.load(file, network, (size, size, 3))
