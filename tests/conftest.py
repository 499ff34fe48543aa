"""Fixtures shared by the tests.

Values recorded from parts of the original implementations are in ``data/original``. Those recorded from whole attacks,
and CIFAR-10, live beside the checkout; where they are absent, the tests that need them are skipped.
"""

import functools
import gc
import importlib.util
import os
import pathlib

import jax
import numpy as np
import pytest

collect_ignore = [] if importlib.util.find_spec("torch") else ["torch_networks.py"]


def pytest_configure(config):
    """Tests mostly trace and compile: collects little garbage, optimises little, and keeps compiled programs."""
    gc.set_threshold(200_000, 20, 50)
    jax.config.update("jax_numpy_rank_promotion", "raise")  # so that programs which ask for it can use the library
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that tests start
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Runs a file's tests in one process, which compiles what they share only once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


ORIGINAL = pathlib.Path(__file__).parent / "data" / "original"
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def original() -> pathlib.Path:
    """The folder of inputs and outputs recorded from parts of the original implementations, and their network."""
    return ORIGINAL


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of outcomes recorded from the originals' whole attacks, and of the AlexNet of their LPIPS."""
    folder = SHARED / "reference" / "golden"
    if not folder.is_dir():
        pytest.skip("the recorded values (../shared/reference/golden) are not here")
    return folder


@functools.cache
def _cifar10_test(directory: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    source = tfds.builder("cifar10", data_dir=directory).as_data_source(split="test")
    rows = sorted(source.__getitems__(range(len(source))), key=lambda row: row["id"])[:256]
    return np.stack([row["image"] for row in rows]), np.array([row["label"] for row in rows], np.int32)


@pytest.fixture(scope="session")
def cifar10_test():
    """``cifar10_test(n)``: the first n <= 256 CIFAR-10 test images, float32 in [0, 1], and labels."""
    directory = os.environ.get("TFDS_DATA_DIR", str(SHARED / "data" / "tfds"))
    if not (pathlib.Path(directory) / "cifar10").is_dir():
        pytest.skip("CIFAR-10 in TFDS form is not here (TFDS_DATA_DIR or ../shared/data/tfds)")

    def first(n: int):
        images, labels = _cifar10_test(directory)
        return images[:n].astype(np.float32) / 255, labels[:n]

    return first


@pytest.fixture(scope="session")
def network_a(original):
    """The recorded network A (slim ResNet-18): ``logits_fn(images)``."""
    import lagrangian_jax as lj

    network = lj.models.create("resnet18", num_classes=10, width=16)
    variables = lj.interop.load(original / "model_a.safetensors", network)
    return lambda images: network.apply(variables, images, train=False)


@pytest.fixture(scope="session")
def linear_network():
    """``linear_network(shape, classes)``: (logits_fn, weights (D, K), biases (K,)), whose answers are known."""

    def build(shape=(4, 4, 3), classes=3, seed=0):
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(int(np.prod(shape)), classes)).astype(np.float32)
        biases = rng.normal(size=classes).astype(np.float32)
        return lambda images: images.reshape(images.shape[0], -1) @ weights + biases[None], weights, biases

    return build


@pytest.fixture(scope="module")
def tiny_network():
    """Registers a network that compiles fast under the name "tiny"."""
    from lagrangian_jax import models
    from lagrangian_jax.models.resnet import ResNet

    models.MODELS["tiny"] = functools.partial(ResNet, stages=(1,), width=4)
    yield
    del models.MODELS["tiny"]


@pytest.fixture
def key():
    return jax.random.key(0)
