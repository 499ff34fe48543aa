"""ImageNet-100 (every 10th class of ImageNet by WordNet id) as in the paper: ResNet-34, 90 epochs of which 3 clean.

    python -m lagrangian_jax.main --config=configs/imagenet100.py

The paper's Table 2: clean 70.25, unseen mean 53.21. Images stream from TFDS `imagenet2012` through Grain; the decoding
processes are ``data.workers``. Differences from the released script: the last partial batch of an epoch is dropped.

Presets, after the method: ``configs/imagenet100.py:lagrangian,fast``
  fast   bfloat16, batch 512, evaluation-mode statistics in the attack, averaged weights, best by validation
  smoke  a few steps at 64 pixels on a tiny network
"""

from ml_collections import ConfigDict

from lagrangian_jax.config import choose, default, evaluation_statistics, smoke

METHODS: dict[str, dict] = {
    "lagrangian": dict(multiplier=0.45, step_size=0.25, steps=5),
    "standard": {},
}


def fast(config: ConfigDict) -> None:
    """For accelerators: the same work in fewer, larger steps."""
    config.precision = "bfloat16"
    config.train.batch_size = 512
    config.train.average = 0.999
    config.optimizer.learning_rate = 0.4
    config.optimizer.warmup = 1.0
    config.data.validation = 1024
    config.evaluation.checkpoint = "best"
    evaluation_statistics(config)


def small_smoke(config: ConfigDict) -> None:
    """A few steps on small crops and a tiny network, to see that everything runs."""
    config.data.image_size = 64
    config.data.workers = 0
    smoke(config, batch_size=16, steps=3, examples=32)


def get_config(options: str = "") -> ConfigDict:
    config = default()
    config.data.name = "imagenet100"
    config.data.validation = 0
    config.data.image_size = 224
    config.data.workers = 16
    config.network.name = "resnet34"
    config.network.stem = "imagenet"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.milestones = (30, 60, 80)
    config.train.epochs = 90
    config.train.batch_size = 128
    config.validation.bound = 4.0
    config.validation.step_size = 1.0
    config.evaluation.suite = "imagenet100_table2"
    config.evaluation.batch_size = 128
    return choose(config, options, METHODS, {"fast": fast, "smoke": small_smoke})
