"""The first three classes of CIFAR-10 (airplane, automobile, bird): the paper's comparison with C&W training, Figure 5.

    python -m lagrangian_jax.main --config=configs/cifar10_three_classes.py:carlini_wagner

15,000 training and 3,000 test images, with the recipe of configs/cifar10.py. Carlini and Wagner's attack finds the
closest adversarial images, at hundreds of gradients each, so the paper could afford to train on them for three classes
only. It states neither the number of steps nor the three methods that it compares with; chosen here are 5 rounds of 50
steps, and `lagrangian`, `pgd_l2` and `pat`. The figure's attack is `pgd_l2` in 40 steps, at bounds from 0.1 to 2.

Presets, after the method: ``configs/cifar10_three_classes.py:carlini_wagner,smoke``
  slim        width 16 and 4 epochs, for a CPU; takes hours with C&W (`lagrangian_jax.reproduce figure5 --dry-run`)
  comparison  every method at the same budget, for a CPU: equally many epochs, and attacks of 5 gradients
  smoke       a few steps on a tiny network
"""

from functools import partial

from ml_collections import ConfigDict

from lagrangian_jax.config import base, choose, smoke

METHODS: dict[str, dict] = {"carlini_wagner": {}, "lagrangian": {}, "pgd_l2": {}, "pat": {}, "standard": {}}


def slim(config: ConfigDict) -> None:
    """For a CPU: a quarter of the width, a few epochs."""
    config.network.width = 16
    config.train.epochs = 4
    config.train.clean_epochs = 1
    config.train.batch_size = 128
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = 0.5


def comparison(config: ConfigDict) -> None:
    """`slim`, with the methods of configs/cifar10.py's `comparison`, on 1,000 test images stratified by class."""
    slim(config)
    config.method = base(f"cifar10:{config.method.name},comparison").method
    config.evaluation.examples = 1000
    config.evaluation.batch_size = 125


def get_config(options: str = "") -> ConfigDict:
    config = base("cifar10:carlini_wagner")
    config.data.name = "cifar10_three_classes"
    config.evaluation.suite = "lp"
    presets = {
        "slim": slim,
        "comparison": comparison,
        "smoke": partial(smoke, batch_size=64, steps=4, examples=48),
    }
    return choose(config, options, METHODS, presets)
