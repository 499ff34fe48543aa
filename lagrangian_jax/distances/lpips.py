"""LPIPS (Zhang et al. 2018) as perceptual attacks use it: the l2 distance between normalised features."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lagrangian_jax.attacks.arrays import l2_norm
from lagrangian_jax.interop.torch import from_torch, read_state_dict
from lagrangian_jax.models.alexnet import AlexNet

PACKAGED = pathlib.Path(__file__).with_name("alexnet_cifar_features.safetensors")
_LAYERS = (0, 3, 6, 8, 10)  # the indices of AlexNet's convolutions in PyTorch's `features`


@dataclasses.dataclass(frozen=True)
class FeatureDistance:
    r"""The l2 distance between the features of each pair of images, :math:`d(a, b) = \|\phi(a) - \phi(b)\|_2`.

    Attributes:
      features: :math:`\phi`, from images (B, H, W, C) to flat features (B, F). Perceptual attacks call it directly, so
        that the features of the clean image are computed once.
    """

    features: Callable[[Array], Array]

    def __call__(self, images_a: Array, images_b: Array) -> Array:
        """The distances (B,) between two batches (B, H, W, C), float32 in [0, 1]."""
        return l2_norm(self.features(images_a) - self.features(images_b))


def normalise_features(maps: Sequence[Array]) -> Array:
    r"""Flattens feature maps to one vector per example; the l2 distances between these vectors are LPIPS distances.

    .. math:: \phi = \bigoplus_l \frac{f_l}{\sqrt{H_l W_l}\,(\|f_l\| + 10^{-10})}

    with the norm over channels, at each position. There are no learned weights and no average over layers: the
    distance is the square root of unweighted LPIPS. Where all channels are zero, so are the features.

    Args:
      maps: feature maps (B, H, W, C), of any sizes.

    Returns:
      (B, F) float32, where F is the number of values in all maps.

    Source: perceptual-advex `normalize_flatten_features`.
    """
    return jnp.concatenate([_normalise(f.astype(jnp.float32)) for f in maps], axis=-1)


def _normalise(f: Array) -> Array:
    square = jnp.sum(jnp.square(f), axis=-1, keepdims=True)
    # 1 stands in for a zero sum, whose square root has no gradient; the zero features themselves stay zero.
    norm = jnp.sqrt(jnp.where(square > 0, square, 1.0)) + 1e-10
    positions = f.shape[1] * f.shape[2]
    return (f / (norm * np.sqrt(positions).astype(np.float32))).reshape(f.shape[0], -1)


def l2() -> FeatureDistance:
    """The l2 distance between images, over all pixels and channels.

    >>> import jax.numpy as jnp, lagrangian_jax as lj
    >>> print(lj.distances.create("l2")(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))))
    [2.]
    """
    return FeatureDistance(lambda images: images.reshape(images.shape[0], -1))


def lpips_alexnet_cifar(*, weights: str | os.PathLike | None = None) -> FeatureDistance:
    """LPIPS on the AlexNet of CIFAR-10: the distance that bounds LPA in Table 1 (by 0.5).

    Args:
      weights: a file with the tensors ``features.*`` of the network "alexnet_cifar" under PyTorch's names: safetensors,
        .npz or a PyTorch state dict; None for the file that comes with the package.

    Raises:
      FileNotFoundError: no such file; if the packaged one is missing, the message says how to make it.
      ValueError: the file does not fit the network; the message says why.
    """
    if weights is None and not PACKAGED.is_file():
        raise FileNotFoundError(
            f"this installation has no weights for 'lpips_alexnet_cifar' ({PACKAGED.name}). Give weights=FILE, or make "
            "them: train the network 'alexnet_cifar' on clean CIFAR-10, then "
            f"`python -m lagrangian_jax.distances.convert TRAINED.safetensors {PACKAGED} --half`"
        )
    return _lpips_alexnet(weights or PACKAGED, AlexNet(stem="cifar"))


def lpips_alexnet(*, weights: str | os.PathLike | None = None) -> FeatureDistance:
    """LPIPS on torchvision's AlexNet for ImageNet: the distance that bounds LPA in Table 2 (by 0.25).

    Args:
      weights: a file that ``python -m lagrangian_jax.distances.convert`` made from torchvision's weights, or those
        weights themselves, or .npz with the convolutions as ``conv1_w`` (HWIO), ``conv1_b``, ... ``conv5_b``. Required.

    Raises:
      FileNotFoundError: no such file; if none was given, the message says how to make one.
      ValueError: the file does not fit the network; the message says why.
    """
    if weights is None:
        raise FileNotFoundError(
            "distance 'lpips_alexnet' needs weights=FILE (config.evaluation.lpips_alexnet; PAT: config.method.weights)"
            ". Take torchvision's alexnet-owt-7be5be79.pth and convert it: "
            "`python -m lagrangian_jax.distances.convert alexnet-owt-7be5be79.pth FILE.safetensors`"
        )
    return _lpips_alexnet(weights, AlexNet(stem="imagenet"))


def self_lpips(*, features_fn: Callable[[Array], Sequence[Array]] | None = None) -> FeatureDistance:
    """LPIPS on the features of any network, e.g. of the attacked network itself.

    Args:
      features_fn: images (B, H, W, C) to a list of feature maps (B, h, w, c), for instance
        ``lambda images: network.apply(variables, images, train=False, features=True)[1]``. Required. GPUs and TPUs
        round what they multiply too coarsely for the finite differences of `ppgd`: on them, run the network inside
        ``with jax.default_matmul_precision("highest")``.
    """
    if not callable(features_fn):
        raise ValueError(
            "distance 'self_lpips' needs features_fn, a function from images to a list of feature maps (B, h, w, c), "
            f"e.g. lambda images: network.apply(variables, images, features=True)[1]; got {features_fn!r}"
        )
    return FeatureDistance(lambda images: normalise_features(features_fn(images)))


def _lpips_alexnet(weights: str | os.PathLike, network: AlexNet) -> FeatureDistance:
    variables = _variables(weights, network)

    def feature_maps(images: Array) -> Any:
        return network.apply(variables, images, method="feature_maps")

    return self_lpips(features_fn=feature_maps)


def read_features(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the convolutions of an AlexNet from a file: ``features.*``, in PyTorch's names and layout (OIHW).

    Args:
      path: safetensors, a PyTorch state dict (weights only: nothing in it is executed), or .npz, which may
        also use the names ``conv1_w`` (HWIO), ``conv1_b``, ... ``conv5_b``.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file of AlexNet weights at {os.fspath(path)}")
    if os.fspath(path).endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: file[name] for name in file.files}
        for number, layer in enumerate(_LAYERS, start=1):
            if f"conv{number}_w" in tensors:
                tensors[f"features.{layer}.weight"] = tensors.pop(f"conv{number}_w").transpose(3, 2, 0, 1)
            if f"conv{number}_b" in tensors:
                tensors[f"features.{layer}.bias"] = tensors.pop(f"conv{number}_b")
    else:
        tensors = read_state_dict(path)
    found = {name: value for name, value in tensors.items() if name.startswith("features.")}
    expected = {f"features.{layer}.{part}" for layer in _LAYERS for part in ("weight", "bias")}
    if set(found) != expected:
        raise ValueError(
            f"{os.fspath(path)} does not hold the convolutions of an AlexNet: expected {', '.join(sorted(expected))}; "
            f"it has {', '.join(sorted(found)) or 'none of them'}"
        )
    return found


def _variables(path: str | os.PathLike, network: AlexNet) -> dict[str, Any]:
    """The convolutions in ``path`` as variables of ``network``, float32."""
    tensors = read_features(path)
    images = jnp.zeros((1, 64, 64, 3))
    expected = jax.eval_shape(lambda: network.init(jax.random.key(0), images, method="feature_maps"))["params"]
    params: dict[str, dict[str, Array]] = {}
    problems = []
    for layer in _LAYERS:
        module, name = f"features_{layer}", f"features.{layer}.weight"
        kernel, bias = from_torch(tensors[name]), tensors[f"features.{layer}.bias"]
        params[module] = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
        if kernel.shape != expected[module]["kernel"].shape:
            shape = expected[module]["kernel"].shape
            problems.append(f"{name} is {kernel.shape} (height, width, in, out), expected {shape}")
        elif bias.shape != kernel.shape[-1:]:
            problems.append(f"features.{layer}.bias is {bias.shape}, expected {kernel.shape[-1:]}")
    if problems:
        stem = "CIFAR" if network.stem == "cifar" else "ImageNet"
        raise ValueError(f"{os.fspath(path)} does not fit the {stem} AlexNet: {'; '.join(problems)}")
    return {"params": params}
