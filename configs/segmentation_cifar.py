"""A segmentation network for CIFAR-10, from image labels alone: the foreground in the foreground-to-background ratio.

    python -m lagrangian_jax.main --config=configs/segmentation_cifar.py --workdir=runs/segmentation
    python -m lagrangian_jax.main --config=configs/segmentation_cifar.py:slim --workdir=runs/segmentation-slim

The network and its training are those of charlieLehman/yapwrap in April 2019, in the smallest of its three versions;
the paper does not say which it used. It is trained for 90 epochs of SGD with Nesterov momentum on normalised images;
the learning rate falls from 0.1 (for the attention head, 0.001) to zero along a cosine. Deviations: reflected padding,
and the last epoch rather than the best one.

Presets, after the colon:
  slim   width 16, 4 epochs, and the attention head at the network's learning rate, for a CPU
  smoke  a few steps on a tiny network
"""

from ml_collections import ConfigDict

from lagrangian_jax.config import base, choose, set_method, smoke


def slim(config: ConfigDict) -> None:
    """For a CPU: a quarter of the width, and so few epochs that the head, at its own rate, would stay as it began."""
    config.network.width = 16
    config.optimizer.relative_rates.attn0 = 1.0
    config.train.epochs = 4
    config.train.checkpoint_steps = 50


def smoke_without_clean_epochs(config: ConfigDict) -> None:
    """`smoke`, with the first epoch training the segmentation, too."""
    smoke(config, batch_size=32, steps=2, examples=32)
    config.train.clean_epochs = 0
    config.evaluation.suite = "clean"


def get_config(options: str = "") -> ConfigDict:
    config = base("cifar10:standard")
    set_method(config, "segmentation")
    config.network = ConfigDict({"name": "segmentation", "width": 64, "normalisation": "cifar10"})
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.relative_rates = ConfigDict({"attn0": 0.01})
    config.train.epochs = 90
    config.train.clean_epochs = 0
    config.train.batch_size = 128
    config.evaluation.suite = "clean"
    config.evaluation.batch_size = 500
    presets = {"slim": slim, "smoke": smoke_without_clean_epochs}
    return choose(config, options, {"segmentation": {}}, presets)
