"""The CIFAR-10 AlexNet whose features LPIPS compares: plain training on clean images.

    python -m lagrangian_jax.main --config=configs/alexnet_cifar.py --workdir=runs/alexnet_cifar
    python -m lagrangian_jax.distances.convert runs/alexnet_cifar/weights.safetensors \
        lagrangian_jax/distances/alexnet_cifar_features.safetensors --half

How perceptual-advex trained its network is not published; this is stochastic gradient descent for 12 epochs of three
to four minutes each on one core. The packaged file comes from this run (seed 0), which classifies 79.03 % of the 10,000
clean test images correctly. In the copy of CIFAR-10 that was used, 20 of these and 72 of the training images had been
decoded from JPEG.
"""

from functools import partial

from ml_collections import ConfigDict

from lagrangian_jax.config import base, choose, smoke


def get_config(options: str = "") -> ConfigDict:
    config = base("cifar10:standard")
    config.network = ConfigDict({"name": "alexnet_cifar", "width": 64})
    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = 1.0
    config.train.epochs = 12
    config.train.clean_epochs = 0
    config.train.batch_size = 128
    config.train.checkpoint_steps = 50
    config.evaluation.suite = "lp"
    config.evaluation.batch_size = 128
    return choose(config, options, {"standard": {}}, {"smoke": partial(smoke, batch_size=32, steps=2, examples=32)})
