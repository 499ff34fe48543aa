"""PyTorch's state dicts: names and layouts, both ways, and the files that hold them.

Flax submodules carry PyTorch's names with ``_`` for ``.`` before a number (and ``__`` for ``_``), so the map is
mechanical: ``kernel`` (HWIO or IO) is ``weight`` (OIHW or OI), ``scale`` is ``weight``, ``mean`` and ``var`` are
``running_mean`` and ``running_var``.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from lagrangian_jax.interop import torch_file

_LEAF = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Keys under which training code saves the weights beside its optimiser and the like; the first that exists is used.
_WRAPPERS = ("state_dict", "model_state_dict", "net", "model", "network", "params")


def read_state_dict(path: str | os.PathLike, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads the tensors in a file, with PyTorch's names and layouts; nothing in the file is executed.

    Args:
      path: a safetensors file, a Flax msgpack file, a run's work directory or an orbax directory; anything else is
        read as a file of ``torch.save`` (.pt, .pth, .th, .tar: the suffix does not matter).
      entry: the key of the state dict, if a file holds several.

    Raises:
      ValueError: if the file is damaged, or holds no state dict or several; the message says which.
      OSError: if it cannot be read.
    """
    name = os.fspath(path)
    run_weights = os.path.join(name, "weights.safetensors")
    if os.path.isdir(name) and os.path.exists(run_weights):
        return read_state_dict(run_weights)
    if os.path.isdir(name):
        return _flax_state(_orbax(name), name)
    if name.endswith(".msgpack"):
        import flax.serialization

        with open(name, "rb") as file:
            content = file.read()
        try:
            tree = flax.serialization.msgpack_restore(content)
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(f"{name} is not a Flax msgpack file that can be read: {error}") from error
        return _flax_state(tree, name)
    if name.endswith(".safetensors"):
        import safetensors
        from safetensors.numpy import load_file

        try:
            return load_file(name)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{name} is not a safetensors file that can be read: {error}") from error
    try:
        return _state_dict(torch_file.read(name), entry, name)
    except RecursionError:
        raise ValueError(f"{name} holds no state dict, but objects that contain each other") from None


def _flax_state(tree: Any, path: str) -> dict[str, np.ndarray]:
    if not isinstance(tree, dict) or not tree.keys() <= {"params", "batch_stats"}:
        found = ", ".join(sorted(tree)) if isinstance(tree, dict) else f"a {type(tree).__name__}"
        raise ValueError(f"{path} holds no variables of Flax, params and batch_stats, but {found}")
    return to_state_dict(tree)


def _orbax(folder: str) -> Any:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(os.path.abspath(folder))
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{folder} is not an orbax directory that can be read: {reason}") from error


def _state_dict(value: Any, entry: str | None, path: str) -> dict[str, np.ndarray]:
    if entry is not None:
        if not isinstance(value, dict) or not isinstance(value.get(entry), dict):
            raise ValueError(f"{path} has no entry {entry!r}; there are {', '.join(_groups(value)) or 'none'}")
        return _state_dict(value[entry], None, path)
    if isinstance(value, dict) and isinstance(value.get("_modules"), dict):  # a whole module was pickled
        return _module_state(value)
    groups = _groups(value)
    inner = next((wrapper for wrapper in _WRAPPERS if wrapper in groups), None)
    tensors = {} if not isinstance(value, dict) else {k: v for k, v in value.items() if isinstance(v, np.ndarray)}
    if inner is None and not tensors:
        if len(groups) != 1:
            found = f"are several: {', '.join(groups)}; choose one with entry=NAME" if groups else "is none"
            raise ValueError(f"{path}: expected a state dict, a dictionary of tensors; there {found}")
        inner = groups[0]
    return tensors if inner is None else _state_dict(value[inner], None, path)


def _groups(value: Any) -> list[str]:
    """Keys of dictionaries that hold tensors at any depth."""

    def holds(item: Any, seen: set[int]) -> bool:
        if not isinstance(item, dict) or id(item) in seen:  # objects in a pickle may refer to each other in circles
            return False
        seen.add(id(item))
        return any(isinstance(inner, np.ndarray) or holds(inner, seen) for inner in item.values())

    return [name for name, item in value.items() if holds(item, {id(value)})] if isinstance(value, dict) else []


def _module_state(module: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    tensors = {**module.get("_parameters", {}), **module.get("_buffers", {})}
    state = {prefix + name: tensor for name, tensor in tensors.items() if isinstance(tensor, np.ndarray)}
    for name, child in module.get("_modules", {}).items():
        if isinstance(child, dict):
            state |= _module_state(child, f"{prefix}{name}.")
    return state


def to_state_dict(variables: Any) -> dict[str, np.ndarray]:
    """Flax variables, ``{"params": ..., "batch_stats": ...}``, with PyTorch's names and layouts."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(variables))
    return {torch_name(leaf): np.ascontiguousarray(to_torch(np.asarray(value))) for leaf, value in flat.items()}


def torch_name(leaf: tuple[str, ...]) -> str:
    """PyTorch's name of a leaf of Flax variables.

    >>> torch_name(("params", "layer1_0", "conv1", "kernel"))
    'layer1.0.conv1.weight'
    >>> torch_name(("batch_stats", "layer_0", "block_2", "batchnorm__1", "mean"))
    'layer.0.block.2.batchnorm_1.running_mean'
    """
    *modules, last = leaf[1:]
    names = [re.sub(r"(?<!_)_(\d+)$", r".\1", module).replace("__", "_") for module in modules]
    return ".".join([*names, _LEAF.get(last, last)])


def from_torch(value: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, OI -> IO."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_torch(value: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW, IO -> OI."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's shape of a Flax array."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
