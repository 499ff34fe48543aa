"""Attack any JAX function from images to logits: here a very plain one, the distances to one template per class.

python examples/attack_a_function.py [SUITE]
"""

import sys

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import lagrangian_jax as lj

digits, labels = load_digits(return_X_y=True)
images = np.repeat(digits.reshape(-1, 8, 8, 1), 3, axis=-1).astype(np.float32) / 16  # (N, H, W, C) in [0, 1]
templates = np.stack([images[200:][labels[200:] == digit].mean(0) for digit in range(10)])


def logits_fn(images):
    return -jnp.square(images[:, None] - templates).sum((2, 3, 4))


result = lj.evaluation.run(logits_fn, images[:200], labels[:200], suite=sys.argv[1] if sys.argv[1:] else "quick")
print(result)
