"""Train a Flax NNX network on the digits of scikit-learn, and attack it.

python examples/attack_flax_nnx.py [SUITE]
"""

import sys

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


@nnx.jit
def step(network, optimizer, images, labels):
    def loss(network):
        return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()

    optimizer.update(network, nnx.grad(loss)(network))


network = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(network, optax.adam(3e-3), wrt=nnx.Param)
for batch in np.random.default_rng(0).integers(200, len(labels), (100, 128)):
    step(network, optimizer, jnp.asarray(images[batch]), jnp.asarray(labels[batch]))

network.eval()  # running averages in the normalisation: an example must not depend on the others in its batch
result = lj.evaluation.run(network, images[:200], labels[:200], suite=sys.argv[1] if sys.argv[1:] else "quick")
print(result)
