"""A configuration with your own data set: patches of scikit-learn's two photographs, temple or flower.

    python -m lagrangian_jax.main --config=examples/own_data.py --workdir=runs/own_data
    python -m lagrangian_jax.main --config=examples/own_data.py:pgd_l2,smoke --workdir=runs/own_data-smoke

A data set is a function from the configuration's ``data`` section to a `Dataset`; this file registers one under a name.
"""

from functools import partial

import numpy as np
from ml_collections import ConfigDict

from lagrangian_jax import data
from lagrangian_jax.config import choose, default, smoke
from lagrangian_jax.data.dataset import divide

METHODS: dict[str, dict] = {"lagrangian": {}, "standard": {}, "pgd_l2": dict(bound=1.0, step_size=0.25)}


def load(config) -> data.Dataset:
    """Whatever reads your images goes here; `Split` wants uint8 (N, H, W, C), int32 labels and each image's index."""
    from sklearn.datasets import load_sample_images

    size = config.image_size
    photographs = load_sample_images().images  # two, of 427 x 640 pixels
    patches = [
        photograph[row : row + size, column : column + size]
        for photograph in photographs
        for row in range(0, 427 - size, size)
        for column in range(0, 640 - size, size)
    ]
    labels = np.repeat(np.arange(2, dtype=np.int32), len(patches) // 2)
    everything = data.Split(np.stack(patches), labels, np.arange(len(patches), dtype=np.int32))
    kept, held = data.hold_out(labels, len(labels) // 5)  # fixed, and stratified by class
    return data.Dataset(
        name="patches",
        classes=("temple", "flower"),
        **divide(everything.take(kept), everything.take(held), config.validation),
        remark="Patches of two photographs: a toy.",
    )


data.DATASETS["patches"] = load


def get_config(options: str = "") -> ConfigDict:
    config = default()
    config.data.name = "patches"
    config.data.validation = 64
    config.network.width = 8
    config.train.epochs = 8
    config.train.clean_epochs = 1
    config.train.batch_size = 64
    config.optimizer.schedule = "linear"
    config.evaluation.suite = "quick"
    return choose(config, options, METHODS, {"smoke": partial(smoke, batch_size=64, steps=2, examples=32)})
