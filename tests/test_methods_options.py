"""Options of any method: smoothed labels, perturbed weights, a penalty on variation; and what methods remember."""

import json
import os
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lagrangian_jax import config as configuration
from lagrangian_jax import data, main, methods, parallel
from lagrangian_jax.build import build_regularisation
from lagrangian_jax.checkpoint import Checkpoints
from lagrangian_jax.losses import cross_entropy, soft_margin
from lagrangian_jax.methods.method import Crafted, Method, adversarial_cross_entropy
from lagrangian_jax.methods.regularisation import Regularisation, perturbed, variation
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, training_step
from lagrangian_jax.train import train
from lagrangian_jax.workdir import open_workdir

RATE = 0.1


class Small(nn.Module):
    """A convolution and a matrix product; with ``features`` also the map between them."""

    @nn.compact
    def __call__(self, images, train=False, features=False):
        x = nn.relu(nn.Conv(5, (3, 3), name="conv")(images))
        logits = nn.Dense(4, name="linear")(x.mean((1, 2)))
        return (logits, [x]) if features else logits


def _brighter(keys, network, batch, memory, epoch):
    return Crafted(batch.images + 0.3, network.batch_stats, memory)


BRIGHTER = Method(_brighter, adversarial_cross_entropy)
NETWORK = Small()
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (24, 6, 6, 3), np.uint8), RNG.integers(0, 4, 24).astype(np.int32)
ROWS = np.array([5, 3, 20, 0, 7, 9, 11, 2], np.int32)


def _step(method, rows=ROWS, state=None, **options):
    """(state before, after, metrics) of one step of plain gradient descent."""
    optimizer = optax.sgd(RATE)
    if state is None:
        state = initial_state(jax.random.key(1), NETWORK, (6, 6, 3), optimizer, method.memory(24))
    mesh = parallel.mesh()
    run = resident_steps(training_step(NETWORK, method, optimizer, None, 1, 0.0, Regularisation(**options)), mesh)
    after, metrics = run(parallel.replicate(jax.tree.map(jnp.copy, state), mesh), IMAGES, LABELS, rows[None])
    return state, after, metrics


def _losses(params, weight=0.0, space="logits"):
    """The loss of each example of the batch, by hand."""
    clean = jnp.asarray(IMAGES[ROWS] / np.float32(255))
    logits, [maps] = NETWORK.apply({"params": params}, clean + 0.3, features=True)
    others, [other_maps] = NETWORK.apply({"params": params}, clean, features=True)
    moved = logits - others if space == "logits" else (maps - other_maps).mean((1, 2))
    return cross_entropy(logits, LABELS[ROWS]) + weight * jnp.sqrt(jnp.sum(moved**2, -1))


def _assert_descends(before, after, gradient):
    expected = jax.tree.map(lambda w, g: w - RATE * g, before.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), after.params, expected)


@pytest.mark.parametrize("space", ["logits", "features"])
def test_variation_adds_the_distance_that_the_outputs_move(space):
    before, after, metrics = _step(BRIGHTER, variation=0.7, variation_of=space)
    np.testing.assert_allclose(metrics.loss, _losses(before.params, 0.7, space).sum(), rtol=1e-5)
    assert metrics.loss > 1.01 * _losses(before.params).sum()
    _assert_descends(before, after, jax.grad(lambda p: _losses(p, 0.7, space).mean())(before.params))


def test_variation_of_what_does_not_move_has_no_gradient():
    gradient = jax.grad(lambda z: variation(z, jnp.ones((2, 3))).sum())(jnp.ones((2, 3)))
    np.testing.assert_array_equal(gradient, 0)


def test_perturbed_weights_lend_the_gradient_and_stay_where_they_were():
    before, after, metrics = _step(BRIGHTER, weight_perturbation=0.5)

    def mean(params):
        return _losses(params).mean()

    worst = {}
    for layer, gradient in jax.grad(mean)(before.params).items():
        kernel, g = np.float64(before.params[layer]["kernel"]), np.float64(gradient["kernel"])
        step = 0.5 * np.sqrt((kernel**2).sum() / (g**2).sum()) * g
        worst[layer] = {"kernel": jnp.float32(kernel + step), "bias": before.params[layer]["bias"]}
    assert mean(worst) > 1.05 * mean(before.params)
    np.testing.assert_allclose(metrics.loss / 8, mean(worst), rtol=1e-5)
    _assert_descends(before, after, jax.grad(mean)(worst))


def test_perturbed_weights_without_a_gradient_stay():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    same = perturbed(params, jax.tree.map(jnp.zeros_like, params), 0.1)
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_smoothed_labels():
    before, after, metrics = _step(BRIGHTER, label_smoothing=0.2)

    def losses(params):
        logits = NETWORK.apply({"params": params}, IMAGES[ROWS] / np.float32(255) + 0.3)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(LABELS[ROWS], 4), 0.2))

    np.testing.assert_allclose(metrics.loss, losses(before.params).sum(), rtol=1e-5)
    _assert_descends(before, after, jax.grad(lambda p: losses(p).mean())(before.params))


def test_soft_margin_in_float64():
    z, labels = RNG.normal(size=(6, 5)) * 4, RNG.integers(0, 5, 6)
    others = np.exp(np.where(np.eye(5, dtype=bool)[labels], -np.inf, z)).sum(-1)
    np.testing.assert_allclose(
        soft_margin(jnp.float32(z), labels), np.log(others) - z[np.arange(6), labels], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(label_smoothing=1.0), r"regularisation\.label_smoothing: expected 0 or more, below 1; got 1\.0"),
        (dict(weight_perturbation=-0.1), r"regularisation\.weight_perturbation: expected 0 or more; got -0\.1"),
        (dict(variation=-1.0), r"regularisation\.variation: expected 0 or more; got -1\.0"),
        (dict(variation_of="logit"), r"regularisation\.variation_of: expected 'logits' or 'features'; got 'logit'"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        training_step(NETWORK, BRIGHTER, optax.sgd(RATE), None, 1, 0.0, Regularisation(**options))


@pytest.mark.parametrize(
    ("options", "method"), [("digits:standard", "standard"), ("segmentation_cifar", "segmentation")]
)
def test_without_crafted_images_nothing_varies(options, method):
    config = configuration.load(options)
    config.regularisation.variation = 0.1
    with pytest.raises(ValueError, match=rf"regularisation\.variation: expected 0 with the method '{method}'"):
        build_regularisation(config)


def test_what_a_method_cannot_do_is_told_before_the_clean_epochs(tmp_path):
    config = configuration.load("digits:jpeg,smoke")
    config.data.image_size = 24
    with pytest.raises(ValueError, match="jpeg: images must be RGB with a height and width that are multiples of 16"):
        train(config, tmp_path, data.load(config.data))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ("mma", "method.statistics=evl", "method 'mma': statistics must be 'train' or"),
        ("pat", "method.distance=lpips_alexnet", "lpips_alexnet"),
        ("jpeg", "method.step_size=abc", "method 'jpeg': step_size must be a positive number; got 'abc'"),
        ("ddn", "method.levels=1", "method 'ddn': levels must be an integer, 2 or larger, or None; got 1"),
        ("lagrangian", "validation.steps=0", "attack 'pgd_l2': steps must be an integer, 1 or larger; got 0"),
        ("lagrangian", "regularisation.variation=-1", "regularisation.variation: expected 0 or more; got -1.0"),
        ("standard", "network.name=segmentation", "both must be 'segmentation', or neither"),
        ("standard", "regularisation.variation=1", "expected 0 with the method 'standard'"),
        ("lagrangian", "optimizer.schedule=stp", "optimizer.schedule: expected step, cosine or linear; got 'stp'"),
        ("lagrangian", "train.steps=12", "train.steps: expected 0 to 10 batches of 128; got 12"),
        ("lagrangian", "train.average=-0.1", "train.average: expected 0 or more, below 1; got -0.1"),
        ("lagrangian", "train.average=1.5", "train.average: expected 0 or more, below 1; got 1.5"),
        ("lagrangian", "train.log_steps=0", "train.log_steps: expected 1 or more; got 0"),
        ("lagrangian", "train.epochs=0", "train.epochs: expected 1 or more; got 0"),
        ("lagrangian", "optimizer.weight_decay=-1", "optimizer.weight_decay: expected 0 or more; got -1.0"),
        ("lagrangian", "optimizer.factor=-1", "optimizer.factor: expected 0 or more; got -1.0"),
        ("lagrangian", "optimizer.momentum=-0.5", "optimizer.momentum: expected 0 or more, below 1; got -0.5"),
        ("lagrangian", "optimizer.momentum=1", "optimizer.momentum: expected 0 or more, below 1; got 1.0"),
        ("lagrangian", "optimizer.milestones=(3,-1)", "optimizer.milestones: expected epochs, 0 or more; got (3, -1)"),
        ("lagrangian", "optimizer.milestones=(3,'a')", "milestones: expected epochs, 0 or more; got (3, 'a')"),
        ("lagrangian", "seed=-1", "seed: expected 0 or more, below 4294967296; got -1"),
        ("lagrangian", "seed=4294967296", "seed: expected 0 or more, below 4294967296; got 4294967296"),
        ("lagrangian", "data.image_size=0", "data.image_size: expected 1 or more; got 0"),
        ("lagrangian", "data.workers=-1", "data.workers: expected 0 or more; got -1"),
        ("lagrangian", "network.width=0", "network 'resnet18': width: expected 1 or more; got 0"),
        ("lagrangian", "evaluation.examples=-1", "evaluation.examples: expected 0 or more; got -1"),
        ("lagrangian", "precision=float16", "precision: expected float32 or bfloat16; got 'float16'"),
    ],
)
def test_what_cannot_be_run_claims_no_work_directory(tmp_path, capsys, options, fields, message):
    workdir = tmp_path / "run"
    code = main.main([f"--config=digits:{options},smoke", f"--config.{fields}", f"--workdir={workdir}"])
    error = capsys.readouterr().err
    assert code == (1 if "lpips" in message else 2)  # a file of weights may be there at the next try
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not workdir.exists()


def test_what_shows_in_tracing_alone_leaves_the_work_directory_to_another_configuration(tmp_path, capsys):
    arguments = ["--config=digits:jpeg,smoke", f"--workdir={tmp_path}"]
    assert main.main([*arguments, "--config.data.image_size=24"]) == 1
    assert "multiples of 16" in capsys.readouterr().err
    config = configuration.load("digits:jpeg,smoke")
    with open_workdir(tmp_path, config):
        (tmp_path / "data.json").write_text("{}")  # now there is something of it
    assert json.loads((tmp_path / "config.json").read_text()) == configuration.plain(config)
    other = configuration.load("digits:ddn,smoke")
    with pytest.raises(ValueError, match="belongs to another configuration"), open_workdir(tmp_path, other):
        pass


# ---- Memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [("mma", dict(steps=1, search_steps=3, smallest=0.25), 0.25), ("iaat", dict(steps=1), 0.0)],
)
def test_memory_is_a_row_for_each_training_example(name, options, first):
    """Two batches in any order write their own rows; the others stay as they began."""
    method = methods.create(name, **options)
    state, once, _ = _step(method)
    np.testing.assert_array_equal(state.memory, np.full(24, first, np.float32))
    others = np.setdiff1d(np.arange(24), ROWS)
    np.testing.assert_array_equal(once.memory[others], state.memory[others])
    assert np.any(np.asarray(once.memory[ROWS]) != first)
    _, reversed_, _ = _step(method, rows=ROWS[::-1].copy())
    np.testing.assert_allclose(reversed_.memory, once.memory, atol=1e-6)
    _, twice, _ = _step(method, rows=others[:8].astype(np.int32), state=once)
    np.testing.assert_array_equal(twice.memory[ROWS], once.memory[ROWS])


def test_memory_comes_back_from_a_checkpoint(tmp_path):
    method = methods.create("iaat", steps=1)
    _, state, _ = _step(method)
    state = state.replace(memory=jnp.linspace(0, 1, 24))
    mesh = parallel.mesh()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, {})
    like = initial_state(jax.random.key(2), NETWORK, (6, 6, 3), optax.sgd(RATE), method.memory(24))
    restored, _, messages = checkpoints.restore(like, mesh)
    checkpoints.close()
    assert not messages
    np.testing.assert_array_equal(restored.memory, state.memory)


def test_memory_of_another_length_is_refused():
    method = methods.create("iaat", steps=1)
    state = initial_state(jax.random.key(1), NETWORK, (6, 6, 3), optax.sgd(RATE), method.memory(20))
    with pytest.raises(ValueError, match="memory: expected a row for each of the 24 training images; got 20"):
        _step(method, state=state)


@pytest.mark.slow
def test_memory_on_eight_devices_is_that_on_one():
    """With running averages in the attack, so that examples do not depend on which share a device."""
    script = textwrap.dedent("""
        import json, sys
        import jax, numpy as np, optax
        sys.path.insert(0, sys.argv[1])
        from jax.sharding import Mesh
        from test_methods_options import IMAGES, LABELS, NETWORK, ROWS
        from lagrangian_jax import data, main, methods, parallel
        from lagrangian_jax.state import initial_state
        from lagrangian_jax.step import resident_steps, training_step

        gaps = {}
        for name, options in (("iaat", dict(warmup=0.0)), ("mma", dict(search_statistics="eval"))):
            method = methods.create(name, steps=2, statistics="eval", **options)
            memories = []
            for devices in (1, 8):
                mesh = Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
                state = initial_state(jax.random.key(1), NETWORK, (6, 6, 3), optax.sgd(0.1), method.memory(24))
                run = resident_steps(training_step(NETWORK, method, optax.sgd(0.1), None, 1, 0.0), mesh)
                index = parallel.split(ROWS[None], mesh, axis=1)
                memories.append(np.asarray(run(parallel.replicate(state, mesh), IMAGES, LABELS, index)[0].memory))
            gaps[name] = float(abs(memories[0] - memories[1]).max())
            assert np.any(memories[0][ROWS] != method.memory(24)[ROWS])
        print(json.dumps(gaps))
    """)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert max(json.loads(output.splitlines()[-1]).values()) < 1e-5
