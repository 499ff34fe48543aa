"""Loads a network's weights from files and saves them."""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from lagrangian_jax.interop import fit
from lagrangian_jax.interop.torch import from_torch, read_state_dict, to_state_dict
from lagrangian_jax.models.forward import apply


def load(
    path: str | os.PathLike,
    network: nn.Module,
    image_shape: tuple[int, int, int] | None = None,
    *,
    entry: str | None = None,
    other_classes: bool = False,
) -> Any:
    """Loads variables for ``network`` from a file of weights.

    PyTorch's names may have a prefix (``module.``, ``model.``, ``1.``, ...), and the state dict may lie under a key
    (``state_dict``, ``net``, ``model``, ...). A normalisation stored with the weights must be that of ``network``.

    Args:
      path: a PyTorch state dict (weights only: nothing in it is executed; PyTorch is not needed), safetensors, a Flax
        msgpack file or an orbax directory.
      network: a network of `lagrangian_jax.models` of the same architecture.
      image_shape: (H, W, C) of its input; by default (224, 224, 3) if its stem is "imagenet", else (32, 32, 3).
      entry: the key of the state dict in a file that holds several, such as "best".
      other_classes: also accept weights for another number of classes, leaving out those of the last layer.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, float32; ``other_classes`` drops a last layer that does not fit.

    Raises:
      ValueError: if tensors are missing, surplus or of another shape (the message lists them, and the network that
        would fit best), or if the file is damaged, or holds a normalisation that is not the network's.
      OSError: if the file cannot be read.

    >>> import jax, jax.numpy as jnp, tempfile, lagrangian_jax as lj
    >>> network = lj.models.create("resnet20", width=4)
    >>> variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lj.interop.save(f"{folder}/network.safetensors", network, variables)
    ...     loaded = lj.interop.load(f"{folder}/network.safetensors", network)
    >>> all(jax.tree.leaves(jax.tree.map(jnp.array_equal, variables, loaded)))
    True

    A model of RobustBench, from the file that its `load_model` downloads::

        network = lj.interop.robustbench.network("Carmon2019Unlabeled")
        variables = lj.interop.load("models/cifar10/Linf/Carmon2019Unlabeled.pt", network)
        result = lj.evaluation.run(network.apply, images, labels, suite="autoattack_linf", variables=variables)
    """
    tensors = read_state_dict(path, entry)
    leaves = fit.leaves(network, image_shape)
    prefix = fit.common_prefix(tensors, leaves)
    found = {name: tensors[prefix + name] for name in leaves if prefix + name in tensors}
    used = {prefix + name for name in found}
    rest = {name: x for name, x in tensors.items() if name not in used}
    missing = [name for name in leaves if name not in found]
    surplus = [name for name, x in rest.items() if not fit.UNUSED.search(name) and not _copy(name, x, found)]
    unfit = [name for name, x in found.items() if x.shape != leaves[name][1]]
    if other_classes and fit.last_layer(unfit):
        found, unfit = {name: x for name, x in found.items() if name not in unfit}, []
    misshapen = [f"{name} {found[name].shape}, expected {leaves[name][1]}" for name in unfit]
    if missing or surplus or misshapen:
        problems = _listed("missing", missing) + _listed("surplus", surplus) + _listed("of another shape", misshapen)
        better = fit.suggestion({name: x.shape for name, x in tensors.items()}, network)
        raise ValueError(f"{os.fspath(path)} does not fit this network: {'; '.join(problems)}.{better}")
    _check_normalisation(rest, network, os.fspath(path))
    flat = {leaves[name][0]: jnp.asarray(from_torch(x), jnp.float32) for name, x in found.items()}
    return flax.traverse_util.unflatten_dict(flat)


def _copy(name: str, value: np.ndarray, found: Mapping[str, np.ndarray]) -> bool:
    """Whether a tensor duplicates one of the network's: attack objects that hold the network save it again."""
    return any(f".{name}".endswith(f".{known}") and np.array_equal(value, x) for known, x in found.items())


def _listed(what: str, names: Sequence[str], most: int = 3) -> list[str]:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return [f"{what}: {', '.join(names[:most])}{more}"] if names else []


def _check_normalisation(rest: Mapping[str, np.ndarray], network: nn.Module, path: str) -> None:
    for attribute, pattern, neutral in (("mean", fit.MEAN, 0.0), ("std", fit.STD, 1.0)):
        ours = getattr(network, attribute, None)
        for name, value in rest.items():
            if pattern.search(name) and not np.allclose(value.ravel(), neutral if ours is None else ours, atol=1e-4):
                given = tuple(round(float(x), 6) for x in value.ravel())
                raise ValueError(
                    f"{path} holds a normalisation, {name} = {given}, where this network has {attribute} = {ours}; "
                    f"create the network with that {attribute}"
                )


def save(
    path: str | os.PathLike, network: nn.Module, variables: Any, image_shape: tuple[int, int, int] | None = None
) -> None:
    """Writes a network's weights, in the format that the suffix of ``path`` names.

    ==================  ================================================================================================
    ``.safetensors``    PyTorch's names and layouts: ``load_state_dict(load_file(path), strict=True)`` loads them
    ``.msgpack``        ``flax.serialization.msgpack_restore`` gives the variables
    no suffix           an orbax directory, for ``orbax.checkpoint.StandardCheckpointer``
    ``.stablehlo``      the whole network, weights and normalisation inside, for batches of any size on CPU, GPU and
                        TPU; `load_function` and ``jax.export.deserialize`` read it, with its gradient, so that it can
                        be attacked. Needs ``pip install 'lagrangian_jax[export]'``.
    ``.onnx``           the whole network, for batches of any size, to run elsewhere; through `jax2onnx`. Needs
                        ``pip install 'lagrangian_jax[onnx]'``.
    ==================  ================================================================================================

    `load` reads the first three.

    Args:
      path: where to write; an existing file or orbax directory is replaced.
      network: the network that the variables belong to.
      variables: ``{"params": ..., "batch_stats": ...}``.
      image_shape: (H, W, C) of the input, for the formats of whole networks; the default is that of `load`.

    Raises:
      ValueError: if the suffix is another one, or the directory exists and is not orbax's.
      OSError: if the file cannot be written.
      ImportError: if the package that a format needs is not installed.
    """
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        import safetensors.numpy

        # Not with safetensors' own `save_file`, whose files other users may not read.
        path.write_bytes(safetensors.numpy.save(torch_tensors(network, variables), {"format": "pt"}))
    elif path.suffix == ".msgpack":
        import flax.serialization

        path.write_bytes(flax.serialization.msgpack_serialize(jax.device_get(variables)))
    elif path.suffix == ".stablehlo":
        path.write_bytes(_stablehlo(network, variables, image_shape or fit.default_image_shape(network)))
    elif path.suffix == ".onnx":
        path.write_bytes(_onnx(network, variables, image_shape or fit.default_image_shape(network)))
    elif not path.suffix:
        import orbax.checkpoint as ocp

        if path.exists() and not (path / "_CHECKPOINT_METADATA").exists():
            raise ValueError(f"{path} is there already, and is not an orbax directory that could be replaced")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), variables, force=True)
    else:
        raise ValueError(
            f"{path}: expected .safetensors, .msgpack, .stablehlo, .onnx or a directory's name, without a suffix"
        )


def torch_tensors(network: nn.Module, variables: Any) -> dict[str, np.ndarray]:
    """The state dict of PyTorch's class of the same architecture."""
    tensors = to_state_dict(variables)
    for name in [name for name in tensors if name.endswith("running_mean")]:
        tensors[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    return tensors | (network.torch_buffers() if hasattr(network, "torch_buffers") else {})


def _stablehlo(network: nn.Module, variables: Any, image_shape: tuple[int, int, int]) -> bytes:
    _check_export()
    batch = export.symbolic_shape(f"batch, {', '.join(map(str, image_shape))}")
    images = jax.ShapeDtypeStruct(batch, jnp.float32)
    exported = export.export(jax.jit(functools.partial(apply, network, variables)), platforms=("cpu", "cuda", "tpu"))(
        images
    )
    return bytes(exported.serialize(vjp_order=1))


def _check_export() -> None:
    try:
        import flatbuffers  # noqa: F401  (jax.export reads and writes with it)
    except ImportError as error:
        raise ImportError(
            "StableHLO files need the package flatbuffers: pip install 'lagrangian_jax[export]'"
        ) from error


def _onnx(network: nn.Module, variables: Any, image_shape: tuple[int, int, int]) -> bytes:
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ImportError("ONNX files need the package jax2onnx: pip install 'lagrangian_jax[onnx]'") from error
    return to_onnx(functools.partial(apply, network, variables), [("batch", *image_shape)]).SerializeToString()


def load_function(path: str | os.PathLike) -> Callable[[Array], Array]:
    """``logits_fn(images) -> (B, K)`` from a ``.stablehlo`` file of `save` or of ``jax.export``.

    It needs neither the network's code nor its weights, and every attack accepts it.

    Raises:
      ImportError: if the package that the format needs is not installed.
    """
    _check_export()
    return export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call
