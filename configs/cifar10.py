"""CIFAR-10 as in the paper: ResNet-18, 100 epochs of which 3 clean, the Lagrangian attack in 5 steps.

    python -m lagrangian_jax.main --config=configs/cifar10.py

The paper's Table 1: clean 80.43, unseen mean 55.37. One image costs 13 forward passes of 1.11 GFLOP, the run 70.5
PFLOP.
This is the released recipe to the letter: all 50,000 training images, the last epoch, train-mode batch statistics in
the attack with the running averages updated by its forward passes. Nothing is selected, so nothing is held out.

Presets, after the method: ``configs/cifar10.py:lagrangian,fast``
  fast   bfloat16, batch 512, evaluation-mode statistics in the attack, averaged weights, best by validation
  slim   width 16 and 4 epochs, for a CPU: an hour or two on 2 cores
  smoke  a few steps on a tiny network
"""

from functools import partial

from ml_collections import ConfigDict

from lagrangian_jax.config import choose, default, evaluation_statistics, smoke

METHODS: dict[str, dict] = {
    "lagrangian": dict(multiplier=2.0, step_size=0.15, steps=5),
    "standard": {},
    "pgd_linf": {},
    "pgd_l2": {},
    "trades": {},
    "mart": {},
}


def fast(config: ConfigDict) -> None:
    """For an accelerator: the same work in far fewer, larger steps."""
    config.precision = "bfloat16"
    config.train.batch_size = 512
    config.train.average = 0.995
    config.train.log_steps = 95
    config.optimizer.learning_rate = 0.4
    config.optimizer.warmup = 1.0
    config.optimizer.weight_decay = 5e-4
    config.data.validation = 1024
    config.evaluation.checkpoint = "best"
    evaluation_statistics(config)


def slim(config: ConfigDict) -> None:
    """For a CPU: a quarter of the width, a few epochs."""
    config.network.width = 16
    config.train.epochs = 4
    config.train.clean_epochs = 1
    config.train.batch_size = 128
    config.train.checkpoint_steps = 50
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = 0.5
    config.data.validation = 1024
    config.evaluation.suite = "lp"
    config.evaluation.batch_size = 128


def get_config(options: str = "") -> ConfigDict:
    config = default()
    config.data.validation = 0
    return choose(
        config,
        options,
        METHODS,
        {"fast": fast, "slim": slim, "smoke": partial(smoke, batch_size=128, steps=4, examples=64)},
    )
