"""Training methods: their losses against recorded values, and what each of them crafts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagrangian_jax import methods
from lagrangian_jax.attacks.attack import l2_norm, linf_norm
from lagrangian_jax.losses import cross_entropy
from lagrangian_jax.methods.trades import mart_loss, trades_loss
from lagrangian_jax.models.forward import bind
from lagrangian_jax.models.resnet import ResNet


@pytest.mark.parametrize(("name", "loss"), [("trades", trades_loss), ("mart", mart_loss)])
def test_loss_matches_the_original(golden, name, loss):
    recorded = np.load(golden / "components" / "losses.npz")
    clean, adversarial, labels = (jnp.asarray(recorded[k]) for k in ("nat_logits", "adv_logits", "labels"))
    beta = float(recorded[f"{name}_beta"])

    def mean(clean, adversarial):
        return jnp.mean(loss(clean, adversarial, labels, beta))

    value, gradients = jax.value_and_grad(mean, (0, 1))(clean, adversarial)
    np.testing.assert_allclose(value, recorded[f"{name}_total"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], recorded[f"{name}_grad_natural_logits"], atol=1e-6)
    np.testing.assert_allclose(gradients[1], recorded[f"{name}_grad_adv_logits"], atol=1e-6)


@pytest.mark.parametrize(("name", "loss"), [("trades", trades_loss), ("mart", mart_loss)])
def test_loss_in_float64(name, loss):
    rng = np.random.default_rng(0)
    clean, adversarial, labels = rng.normal(size=(6, 5)) * 3, rng.normal(size=(6, 5)) * 3, rng.integers(0, 5, 6)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (clean, adversarial))
    rows = np.arange(6)
    kl = (p * np.log(p / q)).sum(-1)
    if name == "trades":
        expected = -np.log(p[rows, labels]) + 2.0 * kl
    else:
        other = np.where(np.eye(5, dtype=bool)[labels], 0, q).max(-1)
        expected = -np.log(q[rows, labels]) - np.log(1.0001 - other) + 2.0 * kl * (1 - p[rows, labels])
    got = loss(jnp.asarray(clean, jnp.float32), jnp.asarray(adversarial, jnp.float32), labels, 2.0)
    np.testing.assert_allclose(got, expected, rtol=2e-4)


@pytest.fixture(scope="module")
def situation():
    module = ResNet(stages=(1,), num_classes=4, width=4)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((8, 8, 8, 3)), jnp.float32)
    variables = module.init(jax.random.key(0), images)
    linear = variables["params"]["linear"]
    linear["kernel"] *= 15  # a network that is sure of what it says: the multiplier does not outweigh its margins
    network = methods.Network(module, variables["params"], variables["batch_stats"])
    batch = methods.Batch(images, jnp.asarray(rng.integers(0, 4, 8)), jnp.arange(8))
    return network, batch


ATTACKING = [name for name in methods.names() if name != "standard"]


@pytest.mark.parametrize("name", ATTACKING)
def test_crafted_images_lower_the_accuracy_of_their_network_and_stay_in_bounds(situation, name):
    network, batch = situation
    method = methods.create(name, statistics="eval")
    keys = jax.random.split(jax.random.key(0), 8)
    crafted = method.craft(keys, network, batch, (), 0.0)
    assert crafted.images.min() >= 0
    assert crafted.images.max() <= 1
    perturbation = crafted.images - batch.images
    bound = methods.parameters(name).get("bound")
    if bound is not None:
        norm = l2_norm if name == "pgd_l2" else linf_norm
        assert jnp.all(norm(perturbation) <= bound + 1e-6)
    forward = bind(network.module, network.params, "eval")
    before, after = (forward(images, network.batch_stats)[0] for images in (batch.images, crafted.images))
    own = methods.create(name).loss(lambda images, stats: forward(images, stats), network.batch_stats, batch, crafted)
    assert own.losses.shape == (8,)
    if name == "trades":  # moves away from the clean prediction, whatever the label
        assert jnp.mean(jnp.abs(jax.nn.softmax(after) - jax.nn.softmax(before))) > 0.003
    else:
        assert jnp.mean(cross_entropy(after, batch.labels)) > jnp.mean(cross_entropy(before, batch.labels))


def test_batch_statistics_are_updated_as_often_as_the_original_does(situation):
    """An update keeps 0.9 of the old average: the share left of it counts the updates."""
    network, batch = situation
    marked = jax.tree.map(lambda x: jnp.full_like(x, 1e6), network.batch_stats)
    keys = jax.random.split(jax.random.key(0), 8)
    expected = {
        "lagrangian": 6,  # 5 in the attack, 1 outside
        "pgd_linf": 11,
        "pgd_l2": 11,
        "trades": 3,  # evaluation mode in the attack; clean, adversarial, clean outside
        "mart": 2,
        "standard": 1,
    }
    for name, updates in expected.items():
        method = methods.create(name)
        crafted = method.craft(keys, network._replace(batch_stats=marked), batch, (), 0.0)
        outcome = method.loss(bind(network.module, network.params, "train"), crafted.batch_stats, batch, crafted)
        left = float(outcome.batch_stats["bn1"]["mean"][0]) / 1e6
        assert round(np.log(left) / np.log(0.9)) == updates, name
    assert set(expected) == set(methods.names())


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown method 'tradse'; did you mean 'trades'"):
        methods.create("tradse")
    with pytest.raises(ValueError, match="unknown parameter of method 'trades': 'bta'; did you mean 'beta'"):
        methods.create("trades", bta=1.0)
