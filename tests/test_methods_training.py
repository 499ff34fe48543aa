"""Each method, trained on small digits, against standard training under an attack of its kind."""

import functools

import jax
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax import config as configuration
from lagrangian_jax import data, methods, parallel
from lagrangian_jax.build import build_optimizer, build_schedule
from lagrangian_jax.models.forward import apply
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, training_step
from lagrangian_jax.train import batch_indices

pytestmark = pytest.mark.slow

NETWORK = ResNet(stages=(1, 1), width=8)
EPOCHS, BATCH, SIZE = 8, 64, 16
L2, LINF = ("pgd_l2", dict(bound=0.8, steps=20)), ("pgd_linf", dict(bound=0.06, steps=20))
MSD = dict(
    bound_linf=0.1, bound_l2=0.8, bound_l1=8.0, step_size_linf=0.012, step_size_l2=0.2, step_size_l1=0.2, steps=10
)

# The parameters that suit digits of 16 pixels, and the attack that is held against the network.
TRIALS = {
    "lagrangian": (dict(multiplier=2.0), ("lagrangian", dict(multiplier=2.0))),
    "pgd_linf": (dict(bound=0.06, step_size=0.015), LINF),
    "pgd_l2": (dict(bound=0.8, step_size=0.2), L2),
    "trades": (dict(bound=0.06, step_size=0.015), LINF),
    "mart": (dict(bound=0.06, step_size=0.015), LINF),
    "msd": (MSD, ("msd", MSD)),
    "ddn": (dict(steps=20, max_norm=0.8), L2),
    "mma": (dict(largest=0.8, smallest=0.2), L2),
    "iaat": (dict(bound=0.06, increment=0.02, rate=0.5, step_size=0.015, warmup=3.0), LINF),
    "threshold_linf": (dict(bound=0.06, step_size=0.015), LINF),
    "threshold_l2": (dict(bound=0.8, step_size=0.2), L2),
    "pat": (dict(distance="l2", bound=0.8), L2),
    "jpeg": (dict(bound=0.5), ("jpeg", dict(bound=0.5, steps=20))),
    "carlini_wagner": (dict(steps=20, search_steps=2), L2),
}


@functools.cache
def _digits():
    config = configuration.load("digits")
    config.data.image_size = SIZE
    return data.load(config.data)


@functools.cache
def _trained(name):
    """Variables after a few epochs, the first on clean images."""
    config = configuration.load("digits:standard")
    config.train.epochs = EPOCHS
    train = _digits().train
    per_epoch = len(train.labels) // BATCH
    optimizer = build_optimizer(config, build_schedule(config, per_epoch))
    chosen = methods.create(name, **(TRIALS[name][0] if name in TRIALS else {}))
    mesh = parallel.mesh()
    state = initial_state(jax.random.key(0), NETWORK, (SIZE, SIZE, 3), optimizer, chosen.memory(len(train.labels)))
    state, images, labels = parallel.replicate((state, train.images, train.labels), mesh)
    augmentation = dict(padding=1, mode="reflect", flip=False)
    clean, adversarial = (
        resident_steps(training_step(NETWORK, method, optimizer, augmentation, per_epoch, 0.0), mesh)
        for method in (methods.create("standard"), chosen)
    )
    for step in range(EPOCHS * per_epoch):
        index = batch_indices(0, step, 1, per_epoch, len(train.labels), BATCH)
        state, metrics = (clean if step < per_epoch else adversarial)(state, images, labels, index)
        jax.block_until_ready(metrics)
    return state.variables()


def _accuracies(variables, attack, options):
    """(clean, under attack) on the test images."""
    test = _digits().test
    images = test.images.astype(np.float32) / 255
    logits_fn = functools.partial(apply, NETWORK, variables)
    crafted = lj.attacks.create(attack, **options)(jax.random.key(0), logits_fn, images, test.labels)
    return [float(np.mean(np.argmax(logits_fn(x), -1) == test.labels)) for x in (images, crafted)]


@pytest.mark.parametrize("name", TRIALS)
def test_beats_standard_training_under_its_own_attack(name):
    attack, options = TRIALS[name][1]
    _, standard = _accuracies(_trained("standard"), attack, options)
    clean, robust = _accuracies(_trained(name), attack, options)
    print(f"{name}: clean {clean:.3f}, {attack} {robust:.3f}, standard's {standard:.3f}")
    assert clean > 0.7
    assert robust > standard + 0.15


def test_no_method_is_left_out():
    assert {*TRIALS, "standard"} == set(methods.names())
