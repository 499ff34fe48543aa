"""Distances: closed forms and edge cases, then the recorded values of the original LPIPS."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagrangian_jax as lj
from lagrangian_jax.distances import convert, lpips
from lagrangian_jax.models.alexnet import adaptive_average_pool
from lagrangian_jax.models.resnet import ResNet


@pytest.fixture(scope="module")
def weights(golden):
    return golden / "alexnet_cifar_features.safetensors"


@pytest.fixture(scope="module")
def alexnet_lpips(weights):
    return lj.distances.create("lpips_alexnet_cifar", weights=weights)


@pytest.fixture(scope="module")
def imagenet_npz(golden):
    file = golden.parent.parent / "data" / "lpips" / "lpips_alex_v0.1_hwio.npz"
    if not file.is_file():
        pytest.skip("the ImageNet AlexNet (../shared/data/lpips) is not here")
    return file


def images_of(seed, batch=3, size=32):
    return np.random.default_rng(seed).uniform(size=(batch, size, size, 3)).astype(np.float32)


def plain_images(size=32):
    """A black, a white and a grey image."""
    return np.broadcast_to(np.array([0, 1, 0.5], np.float32)[:, None, None, None], (3, size, size, 3)).copy()


def test_names_and_errors(tmp_path):
    assert lj.distances.names() == ("l2", "lpips_alexnet", "lpips_alexnet_cifar", "self_lpips", "ssim")
    with pytest.raises(ValueError, match="unknown distance 'lpips_alexnet_cifra'; did you mean 'lpips_alexnet_cifar'"):
        lj.distances.create("lpips_alexnet_cifra")
    with pytest.raises(ValueError, match="'weight'; did you mean 'weights'"):
        lj.distances.create("lpips_alexnet", weight="file")
    with pytest.raises(FileNotFoundError, match="needs weights=FILE"):
        lj.distances.create("lpips_alexnet")
    with pytest.raises(ValueError, match="needs features_fn"):
        lj.distances.create("self_lpips")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        lj.distances.create("lpips_alexnet_cifar", weights=tmp_path / "absent.safetensors")


def test_package_weights_load_or_the_error_says_how_to_make_them(monkeypatch, tmp_path):
    if lpips.PACKAGED.is_file():
        x = images_of(0)
        assert np.all(np.asarray(lj.distances.create("lpips_alexnet_cifar")(x, 1 - x)) > 0.1)
    monkeypatch.setattr(lpips, "PACKAGED", tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match=r"lagrangian_jax\.distances\.convert"):
        lj.distances.create("lpips_alexnet_cifar")


def test_l2_is_the_norm():
    a, b = images_of(0), images_of(1)
    distance = lj.distances.create("l2")
    np.testing.assert_allclose(distance(a, b), np.sqrt(((a - b) ** 2).sum((1, 2, 3))), rtol=1e-6)
    np.testing.assert_array_equal(distance(a, a), 0)
    gradient = jax.grad(lambda x: distance(a, x).sum())(jnp.asarray(a))
    np.testing.assert_array_equal(gradient, 0)


def test_normalised_features_have_unit_mean_square_a_layer():
    rng = np.random.default_rng(0)
    maps = [rng.uniform(0.1, 1, size=(2, s, s, c)).astype(np.float32) for s, c in ((4, 3), (2, 5))]
    features = lj.distances.normalise_features(maps)
    assert features.shape == (2, 4 * 4 * 3 + 2 * 2 * 5)
    np.testing.assert_allclose(jnp.sum(features[:, :48] ** 2, -1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(features[:, 48:] ** 2, -1), 1, rtol=1e-5)
    # Scaling a position's channels changes nothing.
    np.testing.assert_allclose(lj.distances.normalise_features([5 * m for m in maps]), features, rtol=1e-5)


def test_self_lpips_by_hand():
    """Two positions with orthogonal channels in one map: each contributes 2 / (H W) to the squared distance."""
    distance = lj.distances.create("self_lpips", features_fn=lambda images: [images])
    a = jnp.zeros((1, 1, 2, 2)).at[..., 0].set(0.3)
    b = jnp.zeros((1, 1, 2, 2)).at[..., 1].set(0.9)
    np.testing.assert_allclose(distance(a, b), np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(distance(a, 0.5 * a), 0, atol=1e-6)


def test_self_lpips_on_a_residual_network():
    network = ResNet(stages=(1, 1), num_classes=4, width=4)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    distance = lj.distances.create(
        "self_lpips", features_fn=lambda images: network.apply(variables, images, train=False, features=True)[1]
    )
    a, b = images_of(0, 2, 16), images_of(1, 2, 16)
    compiled = jax.jit(distance)
    np.testing.assert_allclose(compiled(a, b), compiled(b, a), rtol=1e-5)
    assert np.all(np.asarray(compiled(a, b)) > 0)
    assert jax.eval_shape(distance.features, a).shape == (2, 16 * 16 * 4 + 8 * 8 * 8)


def test_gradients_are_finite_where_features_vanish():
    """With strongly negative biases many positions have no active channel, as in plain image areas."""
    network = lj.models.create("alexnet_cifar", width=4)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    params = jax.tree_util.tree_map_with_path(lambda path, x: x - 0.3 if path[-1].key == "bias" else x, params)
    features_fn = lambda images: network.apply({"params": params}, images, method="feature_maps")  # noqa: E731
    assert any((np.asarray(m).max(-1) == 0).any() for m in features_fn(plain_images()))
    distance = lj.distances.create("self_lpips", features_fn=features_fn)
    x = plain_images()
    value_and_gradient = jax.jit(jax.value_and_grad(lambda x, other: distance(x, other).sum()))
    for other in (x, x[::-1], images_of(0)):
        value, gradient = value_and_gradient(x, other)
        assert np.isfinite(value)
        assert np.isfinite(np.asarray(gradient)).all()
    assert value_and_gradient(x, x)[0] == 0


def test_ssim_against_its_definition():
    """Every window written out, in float64."""
    a = images_of(0, 2, 14)
    b = np.clip(a + 0.1 * images_of(1, 2, 14), 0, 1)
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    expected = np.zeros(2)
    for n in range(2):
        values = []
        for i in range(4):
            for j in range(4):
                for c in range(3):
                    p, q = (x[n, i : i + 11, j : j + 11, c].astype(np.float64) for x in (a, b))
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                    values.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        expected[n] = 1 - np.mean(values)
    np.testing.assert_allclose(lj.distances.create("ssim")(a, b), expected, atol=2e-6)


def test_ssim_edge_cases():
    distance = lj.distances.create("ssim")
    x = images_of(0)
    np.testing.assert_allclose(distance(x, x), 0, atol=1e-6)
    black, white = plain_images()[:1], plain_images()[1:2]
    np.testing.assert_allclose(distance(black, white), 1 - 1e-4 / (1 + 1e-4), atol=1e-6)
    with pytest.raises(ValueError, match="11 pixels"):
        distance(x[:, :8], x[:, :8])


def test_alexnet_agrees_with_pytorch(tmp_path):
    """The whole network, classifier included: flattening order, pooling and adaptive pooling."""
    torch = pytest.importorskip("torch")
    from safetensors.numpy import load_file

    f = torch.nn.functional
    for name, size in (("alexnet_cifar", 32), ("alexnet", 71)):
        network = lj.models.create(name, num_classes=5, width=4, mean=None, std=None)
        variables = jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, size, size, 3)))
        lj.interop.save(tmp_path / "weights.safetensors", network, variables)
        state = load_file(tmp_path / "weights.safetensors")
        w = {key: torch.tensor(value) for key, value in state.items()}
        images = images_of(2, 2, size)

        imagenet = name == "alexnet"
        x = torch.tensor(images.transpose(0, 3, 1, 2))
        for layer, options in (
            (0, dict(stride=4, padding=2) if imagenet else dict(stride=2, padding=1)),
            (3, dict(padding=2 if imagenet else 1)),
            *((layer, dict(padding=1)) for layer in (6, 8, 10)),
        ):
            x = f.relu(f.conv2d(x, w[f"features.{layer}.weight"], w[f"features.{layer}.bias"], **options))
            x = f.max_pool2d(x, 3 if imagenet else 2, 2) if layer in (0, 3, 10) else x
        x = torch.nn.AdaptiveAvgPool2d(6)(x) if imagenet else x
        x = x.flatten(1)
        for layer in (1, 4):
            x = f.relu(f.linear(x, w[f"classifier.{layer}.weight"], w[f"classifier.{layer}.bias"]))
        x = f.linear(x, w["classifier.6.weight"], w["classifier.6.bias"])
        np.testing.assert_allclose(jax.jit(network.apply)(variables, images), x.numpy(), atol=1e-5)

        loaded = lj.interop.load(tmp_path / "weights.safetensors", network, (size, size, 3))
        jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))


def test_alexnet_dropout_needs_a_key():
    network = lj.models.create("alexnet_cifar", width=4)
    images = images_of(0)
    variables = jax.jit(network.init)(jax.random.key(0), images)
    plain = network.apply(variables, images)
    np.testing.assert_array_equal(network.apply(variables, images, train=True), plain)
    dropped = network.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped - plain).max() > 1e-3
    np.testing.assert_array_equal(network.apply(variables, images, rngs={"dropout": jax.random.key(0)}), plain)
    logits, maps = network.apply(variables, images, features=True)
    np.testing.assert_array_equal(logits, plain)
    assert [m.shape[1:] for m in maps] == [(16, 16, 4), (8, 8, 12), (4, 4, 24), (4, 4, 16), (4, 4, 16)]


def test_alexnet_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match="63 pixels"):
        lj.models.create("alexnet", width=4).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="stem"):
        lj.models.create("alexnet", width=4, stem="tiny").init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 9), (3, 13)])
def test_adaptive_average_pool_agrees_with_pytorch(height, width):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = torch.nn.AdaptiveAvgPool2d(6)(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(adaptive_average_pool(jnp.asarray(x), 6), expected, atol=1e-6)


def test_recorded_features(golden, alexnet_lpips):
    recorded = np.load(golden / "components" / "lpips_alexnet_cifar.npz")
    features = np.asarray(alexnet_lpips.features(recorded["images"][:2]))
    start = 0
    for layer in range(1, 6):
        values = recorded[f"features_layer{layer}_first2"]
        size = values[0].size
        norm = np.sqrt((values**2).sum(-1, keepdims=True)) + 1e-10
        expected = values / norm / np.sqrt(values.shape[1] * values.shape[2])
        np.testing.assert_allclose(features[:, start : start + size], expected.reshape(2, -1), atol=1e-6)
        # The recorded vector is flattened channels first.
        flat = recorded["normalised_flat_features_image0"][start : start + size]
        flat = flat.reshape(values.shape[3], values.shape[1], values.shape[2]).transpose(1, 2, 0)
        np.testing.assert_allclose(features[0, start : start + size], flat.ravel(), atol=1e-6)
        start += size
    assert start == features.shape[1]


def test_recorded_distances_and_gradients(golden, alexnet_lpips):
    recorded = np.load(golden / "components" / "lpips_alexnet_cifar.npz")
    a, b = recorded["image_a"], recorded["image_b"]

    def total(b):
        distances = alexnet_lpips(a, b)
        return distances.sum(), distances

    (_, distances), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(b)
    np.testing.assert_allclose(distances, recorded["distance"], atol=1e-5)
    np.testing.assert_allclose(gradient, recorded["grad_distance_wrt_b"], atol=1e-5)


def test_real_weights_on_plain_images(alexnet_lpips):
    x = plain_images()
    value_and_gradient = jax.jit(jax.value_and_grad(lambda x, other: alexnet_lpips(x, other).sum()))
    for other in (x, x[::-1]):
        assert np.isfinite(np.asarray(value_and_gradient(x, other)[1])).all()
    assert value_and_gradient(x, x)[0] == 0


def test_imagenet_alexnet_and_its_conversion(imagenet_npz, tmp_path):
    target = tmp_path / "alexnet.safetensors"
    command = [sys.executable, "-m", "lagrangian_jax.distances.convert", str(imagenet_npz), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    direct = lj.distances.create("lpips_alexnet", weights=imagenet_npz)
    converted = lj.distances.create("lpips_alexnet", weights=target)
    a, b = images_of(0, 1, 64), images_of(1, 1, 64)
    np.testing.assert_array_equal(direct(a, b), converted(a, b))

    # The features by their definition, in PyTorch, with the file's own normalisation, of images in [-1, 1].
    torch = pytest.importorskip("torch")
    file = np.load(imagenet_npz)
    f = torch.nn.functional

    def features(images):
        x = torch.tensor(((2 * images - 1 - file["shift"]) / file["scale"]).transpose(0, 3, 1, 2)).float()
        flat = []
        for number, options in enumerate((dict(stride=4, padding=2), dict(padding=2), *[dict(padding=1)] * 3), start=1):
            x = f.max_pool2d(x, 3, 2) if number in (2, 3) else x
            kernel = torch.tensor(file[f"conv{number}_w"].transpose(3, 2, 0, 1))
            x = f.relu(f.conv2d(x, kernel, torch.tensor(file[f"conv{number}_b"]), **options))
            flat.append((f.normalize(x, dim=1) / np.sqrt(x.shape[2] * x.shape[3])).flatten(1))
        return torch.cat(flat, 1)

    expected = (features(a) - features(b)).norm(dim=1).numpy()
    np.testing.assert_allclose(direct(a, b), expected, rtol=1e-4)


def test_conversion_reads_torchvision_files_and_keeps_features_only(imagenet_npz, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(value.copy()) for name, value in lpips.read_features(imagenet_npz).items()}
    state["classifier.6.bias"] = torch.zeros(1000)
    torch.save(state, tmp_path / "alexnet.pth")
    convert.main([str(tmp_path / "alexnet.pth"), str(tmp_path / "half.safetensors"), "--half"])
    half = lpips.read_features(tmp_path / "half.safetensors")
    assert set(half) == set(state) - {"classifier.6.bias"}
    assert all(value.dtype == np.float16 for value in half.values())
    with pytest.raises(ValueError, match=r"does not fit the CIFAR AlexNet: features\.0\.weight is \(11, 11, 3, 64\)"):
        lj.distances.create("lpips_alexnet_cifar", weights=imagenet_npz)


def test_half_precision_weights_change_distances_little(weights, alexnet_lpips, tmp_path):
    convert.convert(weights, tmp_path / "half.safetensors", half=True)
    written = (tmp_path / "half.safetensors").stat()
    assert written.st_size < 5e6
    assert written.st_mode & 0o044  # others may read it, as the umask has it
    half = lj.distances.create("lpips_alexnet_cifar", weights=tmp_path / "half.safetensors")
    a, b = images_of(0), images_of(1)
    np.testing.assert_allclose(half(a, b), alexnet_lpips(a, b), atol=1e-3)


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    tensors = lpips.read_features(weights)
    np.savez(tmp_path / "bias.npz", **tensors | {"features.3.bias": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"does not fit the CIFAR AlexNet: features\.3\.bias is \(3,\), expected \("):
        lj.distances.create("lpips_alexnet_cifar", weights=tmp_path / "bias.npz")
    with pytest.raises(ValueError, match=r"does not fit the ImageNet AlexNet: features\.0\.weight is"):
        lj.distances.create("lpips_alexnet", weights=weights)


def test_conversion_says_what_is_wrong(tmp_path):
    for name in ("a", "conv1_w"):
        np.savez(tmp_path / "other.npz", **{name: np.zeros((1, 1, 1, 1))})
        with pytest.raises(SystemExit, match="does not hold the convolutions of an AlexNet"):
            convert.main([str(tmp_path / "other.npz"), str(tmp_path / "out.safetensors")])
    with pytest.raises(SystemExit, match="no file"):
        convert.main([str(tmp_path / "absent.pth"), str(tmp_path / "out.safetensors")])
    with pytest.raises(SystemExit, match=r"must end in \.safetensors"):
        convert.main([str(tmp_path / "other.npz"), str(tmp_path / "out.npz")])
