"""Networks of other libraries: the same weights give the same logits, so the same attacks, example by example."""

import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lagrangian_jax as lj

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"
RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(0, 0.5, (3, 3, 3, 4)).astype(np.float32), RNG.normal(0, 0.1, 4).astype(np.float32)
WEIGHT, OFFSET = RNG.normal(0, 2, (4, 3)).astype(np.float32), RNG.normal(0, 0.1, 3).astype(np.float32)


def plain(images):
    """A 3x3 convolution, ReLU, the mean over positions, a linear layer."""
    x = lax.conv_general_dilated(images, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x + BIAS[None, None, None]).mean((1, 2)) @ WEIGHT + OFFSET[None]


def flax_nnx():
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.linear = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.linear(nnx.relu(self.conv(x)).mean((1, 2)))

    network = Network(nnx.Rngs(0))
    network.conv.kernel[...], network.conv.bias[...] = KERNEL, BIAS
    network.linear.kernel[...], network.linear.bias[...] = WEIGHT, OFFSET
    return network


def equinox():
    eqx = pytest.importorskip("equinox")
    conv = eqx.nn.Conv2d(3, 4, 3, padding=1, key=jax.random.key(0))
    linear = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    conv = eqx.tree_at(lambda c: (c.weight, c.bias), conv, (KERNEL.transpose(3, 2, 0, 1), BIAS[:, None, None]))
    linear = eqx.tree_at(lambda c: (c.weight, c.bias), linear, (jnp.asarray(WEIGHT.T), jnp.asarray(OFFSET)))
    return jax.vmap(lambda image: linear(jax.nn.relu(conv(image.transpose(2, 0, 1))).mean((1, 2))))


def haiku():
    hk = pytest.importorskip("haiku")
    network = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3)(jax.nn.relu(hk.Conv2D(4, 3)(x)).mean((1, 2)))))
    params = {"conv2_d": {"w": KERNEL, "b": BIAS}, "linear": {"w": WEIGHT, "b": OFFSET}}
    return lambda images: network.apply(params, images)


LIBRARIES = [flax_nnx, equinox, haiku]


def _data(size, count):
    images = np.random.default_rng(1).random((count, size, size, 3), np.float32)
    return images, np.asarray(plain(images)).argmax(-1)


def _rows(network, suite, size, count, distances=None):
    images, labels = _data(size, count)
    result = lj.evaluation.run(network, images, labels, suite=suite, distances=distances)
    return {attack.name: result.examples[attack.name] for attack in result.attacks}


@pytest.fixture(scope="module")
def expected():
    return _rows(plain, SOME, 8, 6)


SOME = [
    lj.evaluation.Row("none"),
    lj.evaluation.Row("pgd_linf", parameters={"bound": 0.1, "steps": 2, "random_start": True}),
]


@pytest.mark.parametrize("library", LIBRARIES)
def test_attacks_do_to_any_library_what_they_do_to_a_function(library, expected):
    network, (images, _) = library(), _data(8, 6)
    np.testing.assert_allclose(network(images), plain(images), atol=1e-5)
    rows = _rows(network, SOME, 8, 6)
    for name, row in expected.items():
        np.testing.assert_array_equal(rows[name]["prediction"], row["prediction"])
        np.testing.assert_allclose(rows[name]["l2"], row["l2"], atol=1e-4)
    assert not expected["pgd_linf"]["correct"].all()


def test_a_network_may_give_its_logits_in_bfloat16():
    suite = [lj.evaluation.Row("deepfool", parameters={"steps": 5})]
    rows = _rows(lambda x: plain(x).astype(jnp.bfloat16), suite, 8, 2)
    assert not rows["deepfool"]["correct"].all()


@pytest.mark.slow
@pytest.mark.parametrize("library", [lambda: plain, *LIBRARIES], ids=["function", "nnx", "equinox", "haiku"])
def test_the_whole_suite_on_any_network(library):
    """All rows of Table 1, LPA under a distance that needs no weights."""
    rows = _rows(library(), "cifar10_table1", 32, 4, {"lpips_alexnet_cifar": lj.distances.create("l2")})
    assert set(rows) == {row.name for row in lj.evaluation.suites.get("cifar10_table1")}
    assert rows["none"]["correct"].all()
    assert not rows["pgd_l2"]["correct"].all()
    for name, row in rows.items():
        assert np.isfinite(row["l2"]).all()
        assert (row["l2"] > 0).any() or name == "none"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("attack_*.py")), ids=lambda path: path.stem)
def test_examples_run(path, monkeypatch, capsys):
    for library in ("equinox", "haiku"):
        if library in path.stem:
            pytest.importorskip(library)
    monkeypatch.setattr(sys, "argv", [str(path), "quick"])
    result = runpy.run_path(str(path))["result"]
    assert result["none"].accuracy > 0.8
    assert result["pgd_l2"].accuracy < result["none"].accuracy - 0.2
    assert "worst case" in capsys.readouterr().out


@pytest.mark.slow
def test_training_in_a_loop_of_ones_own_helps(monkeypatch):
    path = EXAMPLES / "train_flax_nnx.py"
    monkeypatch.setattr(sys, "argv", [str(path), "quick"])
    results = runpy.run_path(str(path))["results"]
    assert results["lagrangian"]["none"].accuracy > 0.8
    assert results["lagrangian"]["pgd_l2"].accuracy > results["none"]["pgd_l2"].accuracy + 0.2
