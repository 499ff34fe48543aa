"""Handwritten digits that ship inside scikit-learn (8x8, upsampled to 32x32 RGB): the embedded default.

A slim ResNet-18 on 1,000-odd images. It shows every part of a run, not the paper's numbers: clean accuracy near 97 %,
robust accuracy far above that of standard training, in about two minutes on 2 CPU cores.

    python -m lagrangian_jax.main
    python -m lagrangian_jax.main --config=configs/digits.py:standard
    python -m lagrangian_jax.main --config=configs/digits.py:lagrangian,smoke
"""

from functools import partial

from ml_collections import ConfigDict

from lagrangian_jax.config import choose, default, smoke

METHODS: dict[str, dict] = {
    "lagrangian": {},
    "standard": {},
    "pgd_linf": {},
    "pgd_l2": {},
    "trades": {},
    "mart": {},
}


def get_config(options: str = "") -> ConfigDict:
    config = default()
    config.data.name = "digits"
    config.data.validation = 128
    config.augmentation.padding = 2
    config.augmentation.flip = False
    config.network.width = 8
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = 0.5
    config.train.epochs = 8
    config.train.clean_epochs = 1
    config.train.batch_size = 64
    config.train.log_steps = 5
    config.evaluation.suite = "quick"
    config.evaluation.batch_size = 180
    return choose(config, options, METHODS, {"smoke": partial(smoke, batch_size=128, steps=0, examples=64)})
