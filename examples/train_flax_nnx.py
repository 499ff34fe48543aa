"""Adversarial training in your own loop: a Flax NNX network on scikit-learn's digits, with and without the attack.

python examples/train_flax_nnx.py [SUITE]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import lagrangian_jax as lj

digits, labels = load_digits(return_X_y=True)
images = np.repeat(digits.reshape(-1, 8, 8, 1), 3, axis=-1).astype(np.float32) / 16  # (N, H, W, C) in [0, 1]
labels = labels.astype(np.int32)


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 32, (3, 3), padding="SAME", rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.linear = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.linear(x.reshape(len(x), -1))


def train(attack: lj.attacks.Attack, steps: int = 300) -> Network:
    network = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, key, images, labels):
        network.eval()  # the attack leaves the running averages alone
        adversarial = jax.lax.stop_gradient(attack(key, network, images, labels))
        network.train()

        def loss(network):
            return lj.losses.cross_entropy(network(adversarial), labels).mean()

        optimizer.update(network, nnx.grad(loss)(network))

    for i, batch in enumerate(np.random.default_rng(0).integers(200, len(labels), (steps, 128))):
        key = jax.random.fold_in(jax.random.key(0), i)  # new random numbers in every step
        step(network, optimizer, key, jnp.asarray(images[batch]), jnp.asarray(labels[batch]))
    network.eval()
    return network


suite = sys.argv[1] if sys.argv[1:] else "quick"
results = {}
for name in ("none", "lagrangian"):
    network = train(lj.attacks.create(name))
    results[name] = lj.evaluation.run(network, images[:200], labels[:200], suite=suite)
    print(f"Trained with the attack {name!r}:\n{results[name]}\n")
