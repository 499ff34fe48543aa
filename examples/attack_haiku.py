"""Train a Haiku network on the digits of scikit-learn, and attack it.

python examples/attack_haiku.py [SUITE]
"""

import sys

import haiku as hk
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import lagrangian_jax as lj

digits, labels = load_digits(return_X_y=True)
images = np.repeat(digits.reshape(-1, 8, 8, 1), 3, axis=-1).astype(np.float32) / 16  # (N, H, W, C) in [0, 1]
labels = labels.astype(np.int32)


def network(x):
    x = hk.max_pool(jax.nn.relu(hk.Conv2D(32, 3)(x)), (2, 2, 1), (2, 2, 1), "VALID")
    return hk.Linear(10)(hk.Flatten()(x))


network = hk.without_apply_rng(hk.transform(network))


@jax.jit
def step(params, state, images, labels):
    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, images), labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


optimizer = optax.adam(3e-3)
params = network.init(jax.random.key(0), images[:1])
state = optimizer.init(params)
for batch in np.random.default_rng(0).integers(200, len(labels), (100, 128)):
    params, state = step(params, state, images[batch], labels[batch])

suite = sys.argv[1] if sys.argv[1:] else "quick"
result = lj.evaluation.run(network.apply, images[:200], labels[:200], suite=suite, variables=params)
print(result)
