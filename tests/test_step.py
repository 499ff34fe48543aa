"""The training step: against recorded values, against one device, and its bookkeeping."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagrangian_jax as lj
from lagrangian_jax import config as configuration
from lagrangian_jax import losses, methods, parallel
from lagrangian_jax.build import build_optimizer, build_schedule
from lagrangian_jax.methods.method import Crafted, Method, adversarial_cross_entropy
from lagrangian_jax.models.forward import bind
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, streaming_step, training_step
from lagrangian_jax.train import batch_indices


def test_two_steps_match_the_released_code(original):
    """Recorded: SGD 0.1, momentum 0.9, decay 2e-4 on the adversarial images of a train-mode attack on network A."""
    recorded = np.load(original / "components" / "lagrangian_attack.npz")
    network = lj.models.create("resnet18", num_classes=10, width=16)
    variables = lj.interop.load(original / "model_a.safetensors", network)
    optimizer = build_optimizer(_paper(), lambda step: 0.1)

    def craft(keys, network, batch, memory, epoch):
        # The running statistics after the attack's five train-mode passes do not enter this train-mode pass.
        return Crafted(jnp.asarray(recorded["train_adv_images"]), network.batch_stats)

    method = Method(craft, adversarial_cross_entropy)
    state = initial_state(jax.random.key(0), network, (32, 32, 3), optimizer)
    state = state.replace(params=variables["params"], batch_stats=variables["batch_stats"])
    mesh = parallel.mesh()
    run = streaming_step(training_step(network, method, optimizer, None, 1, 0.0), mesh, 8)
    images = np.zeros((8, 32, 32, 3), np.uint8)
    batch = parallel.split((images, recorded["labels"].astype(np.int32), np.arange(8, dtype=np.int32)), mesh)
    state, metrics = run(_placed(state, mesh), *batch)
    np.testing.assert_allclose(metrics.loss / metrics.examples, recorded["trainstep_loss"], rtol=1e-5)
    state, metrics = run(state, *batch)
    np.testing.assert_allclose(metrics.loss / metrics.examples, recorded["trainstep2_loss_same_adv"], rtol=1e-5)
    # The recorded weights of the first step share their memory with those of the second: both are the latter.
    linear = np.asarray(state.params["linear"]["kernel"]).T
    np.testing.assert_allclose(linear, recorded["trainstep2_linear_weight_after"], atol=1e-5)
    conv = np.asarray(state.params["conv1"]["kernel"]).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(conv, recorded["trainstep_conv1_weight_after"], atol=1e-5)


def test_network_forward_matches_recorded_features(original):
    recorded = np.load(original / "components" / "model_a_features.npz")
    network = lj.models.create("resnet18", num_classes=10, width=16)
    variables = lj.interop.load(original / "model_a.safetensors", network)
    logits, stages = network.apply(variables, recorded["images"], train=False, features=True)
    np.testing.assert_allclose(logits, recorded["logits"], atol=1e-4)
    for number, stage in enumerate(stages, start=1):
        np.testing.assert_allclose(stage[:2], recorded[f"layer{number}_first2"], atol=1e-4)


def _paper():
    return configuration.load("cifar10")


def _tiny(method, average=0.0, augmentation=None, steps_per_epoch=2):
    """A step on a tiny ResNet: (network, step, state, images, labels)."""
    network = ResNet(stages=(1,), num_classes=4, width=2)
    optimizer = optax.sgd(0.1, 0.9)
    state = initial_state(jax.random.key(1), network, (8, 8, 3), optimizer, method.memory(32), average > 0)
    step = training_step(network, method, optimizer, augmentation, steps_per_epoch, average)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (32, 8, 8, 3), np.uint8), rng.integers(0, 4, 32).astype(np.int32)
    return network, step, state, images, labels


def _placed(state, mesh):
    """A copy on the mesh's devices, needed because a step donates its input's memory."""
    return parallel.replicate(jax.tree.map(jnp.copy, state), mesh)


def test_metrics_are_sums_over_the_batch():
    network, step, state, images, labels = _tiny(methods.create("standard"))
    mesh = parallel.mesh()
    logits, _ = bind(network, state.params, "train")(images[:16] / np.float32(255), state.batch_stats)
    expected_loss = float(losses.cross_entropy(logits, labels[:16]).sum())
    _, metrics = resident_steps(step, mesh)(_placed(state, mesh), images, labels, np.arange(16, dtype=np.int32)[None])
    assert metrics.examples == 16
    np.testing.assert_allclose(metrics.loss, expected_loss, rtol=1e-5)
    assert metrics.correct == np.sum(np.argmax(logits, -1) == labels[:16])
    assert metrics.perturbation_l2 == 0
    assert metrics.saturated == np.sum(losses.margin(logits, labels[:16]) >= 1)


def test_scan_equals_single_steps():
    _, step, state, images, labels = _tiny(methods.create("lagrangian", steps=2), average=0.9)
    mesh = parallel.mesh()
    run = resident_steps(step, mesh)
    index = np.arange(32, dtype=np.int32).reshape(2, 16)
    together, metrics = run(_placed(state, mesh), images, labels, index)
    apart, first = run(_placed(state, mesh), images, labels, index[:1])
    apart, second = run(apart, images, labels, index[1:])
    np.testing.assert_allclose(metrics.loss, [first.loss, second.loss], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), together.params, apart.params)
    assert int(together.step) == 2


def test_average_follows_the_parameters():
    _, step, state, images, labels = _tiny(methods.create("standard"), average=0.5)
    mesh = parallel.mesh()
    before = jax.device_get(state)
    after, _ = resident_steps(step, mesh)(_placed(state, mesh), images, labels, np.arange(16, dtype=np.int32)[None])
    kernel = ("linear", "kernel")
    old, new = (x.params[kernel[0]][kernel[1]] for x in (before, after))
    decay = 0.1  # min(0.5, (1 + 0) / (10 + 0)): the first steps forget the initial weights
    averaged = after.average[0][kernel[0]][kernel[1]]
    np.testing.assert_allclose(averaged, decay * old + (1 - decay) * new, rtol=1e-5)
    assert after.variables()["params"] is after.average[0]


def test_memory_follows_the_index():
    """Rows written by the method land where the example's index says, whatever the order in the batch."""

    def craft(keys, network, batch, memory, epoch):
        return Crafted(batch.images, network.batch_stats, memory + batch.indices.astype(jnp.float32) + 1)

    method = Method(craft, adversarial_cross_entropy, memory=jnp.zeros)
    _, step, state, images, labels = _tiny(method)
    mesh = parallel.mesh()
    order = np.array([5, 3, 31, 0, 7, 9, 11, 2, 30, 12, 14, 16, 18, 20, 22, 24], np.int32)
    state, _ = resident_steps(step, mesh)(_placed(state, mesh), images, labels, order[None])
    expected = np.zeros(32)
    expected[order] = order + 1
    np.testing.assert_array_equal(state.memory, expected)


def test_an_epoch_begins_at_its_first_step():
    """13 * 82 / 82 is 12.999999 where XLA multiplies by the reciprocal, and IAAT's warm-up would last a step more."""

    def craft(keys, network, batch, memory, epoch):
        return Crafted(batch.images, network.batch_stats, jnp.full_like(memory, epoch))

    _, step, state, images, labels = _tiny(Method(craft, adversarial_cross_entropy, jnp.zeros), steps_per_epoch=82)
    mesh, index = parallel.mesh(), np.arange(8, dtype=np.int32)[None]
    run, epochs = resident_steps(step, mesh), []
    for at in (13 * 82 - 1, 13 * 82, 14 * 82):
        after, _ = run(_placed(state.replace(step=jnp.int32(at)), mesh), images, labels, index)
        epochs.append(float(after.memory[0]))
    assert epochs[0] == pytest.approx(13 - 1 / 82)
    assert epochs[1:] == [13, 14]


@pytest.mark.parametrize("rows", [5, 12])
def test_memory_that_has_not_a_row_for_each_example_is_refused(rows):
    """Of a set of 10: rows 7 and 9 would be written nowhere. Whether its images are on the devices or streamed."""

    def craft(keys, network, batch, memory, epoch):
        return Crafted(batch.images, network.batch_stats, memory + 1)

    method = Method(craft, adversarial_cross_entropy, memory=lambda examples: jnp.zeros((rows, 2)))
    _, step, state, images, labels = _tiny(method)
    mesh, index = parallel.mesh(), np.array([7, 9], np.int32)
    message = f"memory: expected a row for each of the 10 training images; got {rows}"
    with pytest.raises(ValueError, match=message):
        resident_steps(step, mesh)(_placed(state, mesh), images[:10], labels[:10], index[None])
    with pytest.raises(ValueError, match=message):
        streaming_step(step, mesh, 10)(_placed(state, mesh), images[index], labels[index], index)


def test_eight_devices_equal_one(tmp_path):
    """Evaluation-mode attack statistics: the same parameters. Train-mode: each device has its own, so they differ."""
    script = textwrap.dedent("""
        import json, sys
        import jax, numpy as np
        sys.path.insert(0, sys.argv[1])
        from jax.sharding import Mesh
        from test_step import _placed, _tiny
        from lagrangian_jax import methods, parallel
        from lagrangian_jax.step import resident_steps
        differences = {}
        for statistics in ("eval", "train"):
            augmentation = dict(padding=1, mode="reflect", flip=True)
            method = methods.create("lagrangian", steps=3, statistics=statistics)
            _, step, state, images, labels = _tiny(method, 0.9, augmentation)
            results = []
            for devices in (1, 8):
                mesh = Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
                index = parallel.split(np.arange(16, dtype=np.int32)[None], mesh, axis=1)
                out, _ = resident_steps(step, mesh)(_placed(state, mesh), images, labels, index)
                results.append(jax.device_get((out.params, out.batch_stats)))
            gaps = jax.tree.map(lambda a, b: float(abs(a - b).max()), *results)
            differences[statistics] = max(jax.tree.leaves(gaps))
        print(json.dumps(differences))
    """)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    difference = json.loads(output.splitlines()[-1])
    assert difference["eval"] < 2e-5
    assert difference["train"] > 1e-4


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.1), (69.999, 0.1), (70, 0.01), (89.999, 0.01), (90, 0.001)])
def test_paper_schedule(epoch, rate):
    np.testing.assert_allclose(build_schedule(_paper(), 1000)(round(epoch * 1000)), rate, rtol=1e-5)


def test_schedules_end_at_zero_and_warm_up():
    config = configuration.load("cifar10:lagrangian,slim")
    schedule = build_schedule(config, 100)
    np.testing.assert_allclose(schedule(0), 0.1 / 50, rtol=1e-5)
    np.testing.assert_allclose(schedule(200), 0.05, rtol=1e-5)
    np.testing.assert_allclose(schedule(400), 0.0, atol=1e-8)
    config.optimizer.schedule = "exponential"
    with pytest.raises(ValueError, match=r"optimizer\.schedule: expected step, cosine or linear; got 'exponential'"):
        build_schedule(config, 100)


def test_batches_are_permutations_and_do_not_depend_on_how_they_are_asked_for():
    whole = np.concatenate([batch_indices(3, step, 1, 6, 40, 6) for step in range(6)]).ravel()
    assert len(set(whole)) == 36
    np.testing.assert_array_equal(batch_indices(3, 2, 3, 6, 40, 6).ravel(), whole[12:30])
    assert not np.array_equal(batch_indices(3, 6, 1, 6, 40, 6), batch_indices(3, 0, 1, 6, 40, 6))


def test_drops_of_the_learning_rate_that_fall_on_one_step_all_count():
    config = _paper().unlock()
    config.optimizer.update(milestones=(1.0, 1.4, 2.29), factor=0.1, learning_rate=1.0)
    schedule = build_schedule(config, 2)  # 1.4 epochs are 2.8 steps, 2.29 are 4.58
    np.testing.assert_allclose(
        [float(schedule(step)) for step in range(7)], [1, 1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5
    )
    config.optimizer.milestones = (1.0, 1.1)
    np.testing.assert_allclose(
        [float(build_schedule(config, 2)(step)) for step in (1, 2, 3)], [1, 0.01, 0.01], rtol=1e-5
    )
    config.optimizer.milestones = (0.29,)
    assert float(build_schedule(config, 100)(28)) == 1.0  # 0.29 * 100 is a little less than 29
