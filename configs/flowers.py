"""Flowers (daisy, dandelion, rose, sunflower, tulip) as in the paper's appendix A: ResNet-18, settings of ImageNet-100.

    python -m lagrangian_jax.main --config=configs/flowers.py --config.data.dir=FOLDER

The images are ``FOLDER/<class>/*.jpg``. A fixed stratified fifth of them is the test set, since the paper names no
split. The paper compares its method with PGD training in linf and l2 without stating their bounds; here they are those
of configs/imagenet100.py. No checkpoint is selected, so no images are held out.

Presets, after the method: ``configs/flowers.py:lagrangian,slim``
  early_stopping  the epoch with the best robust accuracy on 1,000 held-out training images
  slim            width 16 at 64 pixels and a few epochs, for a CPU
  smoke           a few steps on a tiny network
"""

from ml_collections import ConfigDict

from lagrangian_jax.config import base, choose, early_stopping, smoke

METHODS: dict[str, dict] = {
    "lagrangian": dict(multiplier=0.45, step_size=0.25, steps=5),
    "standard": {},
    "pgd_linf": dict(bound=4 / 255, steps=10, step_size=1 / 255),
    "pgd_l2": dict(bound=4.0, steps=10, step_size=1.0),
}


def slim(config: ConfigDict) -> None:
    """For a CPU: small crops, a quarter of the width, a few epochs."""
    config.data.image_size = 64
    config.data.workers = 0
    config.network.width = 16
    config.train.epochs = 12
    config.train.batch_size = 64
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = 0.5


def small_smoke(config: ConfigDict) -> None:
    """A few steps on small crops and a tiny network, to see that everything runs."""
    config.data.image_size = 64
    config.data.workers = 0
    config.data.validation = 32
    smoke(config, batch_size=16, steps=3, examples=32)


def get_config(options: str = "") -> ConfigDict:
    config = base("imagenet100")
    config.data.name = "flowers"
    config.data.workers = 2
    config.network.name = "resnet18"
    config.train.log_steps = 10
    config.evaluation.suite = "quick"
    presets = {"early_stopping": early_stopping, "slim": slim, "smoke": small_smoke}
    return choose(config, options, METHODS, presets)
