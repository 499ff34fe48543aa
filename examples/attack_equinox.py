"""Train an Equinox network on the digits of scikit-learn, and attack it.

python examples/attack_equinox.py [SUITE]
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lagrangian_jax as lj

digits, labels = load_digits(return_X_y=True)
images = np.repeat(digits.reshape(-1, 8, 8, 1), 3, axis=-1).astype(np.float32) / 16  # (N, H, W, C) in [0, 1]
labels = labels.astype(np.int32)

first, second = jax.random.split(jax.random.key(0))
network = eqx.nn.Sequential(
    [
        eqx.nn.Conv2d(3, 32, 3, padding=1, key=first),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(32 * 4 * 4, 10, key=second),
    ]
)


def apply(network, images):
    """Equinox layers take one image, channels first; attacks pass a batch, channels last."""
    return jax.vmap(network)(images.transpose(0, 3, 1, 2))


@eqx.filter_jit
def step(network, state, images, labels):
    def loss(network):
        return optax.softmax_cross_entropy_with_integer_labels(apply(network, images), labels).mean()

    updates, state = optimizer.update(eqx.filter_grad(loss)(network), state)
    return eqx.apply_updates(network, updates), state


optimizer = optax.adam(3e-3)
state = optimizer.init(eqx.filter(network, eqx.is_array))
for batch in np.random.default_rng(0).integers(200, len(labels), (100, 128)):
    network, state = step(network, state, images[batch], labels[batch])


def logits_fn(images):
    return apply(network, images)


result = lj.evaluation.run(logits_fn, images[:200], labels[:200], suite=sys.argv[1] if sys.argv[1:] else "quick")
print(result)
