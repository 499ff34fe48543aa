"""PyTorch state dicts: names and layouts, both ways.

Flax submodules carry PyTorch's names with ``_`` for ``.`` before a number, so the map is mechanical: ``kernel`` (HWIO
or IO) is ``weight`` (OIHW or OI), ``scale`` is ``weight``, ``mean`` and ``var`` are ``running_mean`` and
``running_var``.
"""

import os
import re
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def load(path: str | os.PathLike, network: nn.Module, image_shape: tuple[int, int, int] = (32, 32, 3)) -> Any:
    """Variables for ``network`` from a file of PyTorch weights.

    Args:
      path: a safetensors file, or a ``.pt``/``.pth`` state dict (read with ``weights_only=True``; needs PyTorch).
      network: a network of `lagrangian_jax.models` of the same architecture.
      image_shape: (H, W, C) of its input.

    Returns:
      ``{"params": ..., "batch_stats": ...}``.

    Raises:
      ValueError: names or shapes do not match; lists them.
    """
    tensors = read_state_dict(path)
    expected = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    flat = flax.traverse_util.flatten_dict(expected)
    names = {leaf: torch_name(leaf) for leaf in flat}
    missing = sorted(set(names.values()) - set(tensors))
    surplus = sorted(n for n in set(tensors) - set(names.values()) if not n.endswith("num_batches_tracked"))
    problems = [f"missing {', '.join(missing)}"] * bool(missing) + [f"surplus {', '.join(surplus)}"] * bool(surplus)
    loaded = {}
    for leaf, spec in flat.items():
        if names[leaf] in tensors:
            value = from_torch(tensors[names[leaf]])
            if value.shape != spec.shape:
                problems.append(f"{names[leaf]} has shape {value.shape}, expected {spec.shape}")
            loaded[leaf] = jnp.asarray(value, jnp.float32)
    if problems:
        raise ValueError(f"{os.fspath(path)} does not fit this network: {'; '.join(problems)}")
    return flax.traverse_util.unflatten_dict(loaded)


def save(path: str | os.PathLike, network: nn.Module, variables: Any) -> None:
    """Writes ``variables`` as safetensors under PyTorch's names and layouts; ``load_state_dict(strict=True)`` takes
    them.

    Args:
      path: the file, ``.safetensors``.
      network: the network that the variables belong to.
      variables: ``{"params": ..., "batch_stats": ...}``.
    """
    from safetensors.numpy import save_file

    flat = flax.traverse_util.flatten_dict(jax.device_get(variables))
    tensors = {torch_name(leaf): np.ascontiguousarray(to_torch(np.asarray(value))) for leaf, value in flat.items()}
    for name in [n for n in tensors if n.endswith("running_mean")]:
        tensors[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    save_file(tensors, os.fspath(path))


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a safetensors or PyTorch file by name; nothing in the file is executed."""
    if os.fspath(path).endswith(".safetensors"):
        from safetensors.numpy import load_file

        return load_file(os.fspath(path))
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "net", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return {name.removeprefix("module."): tensor.numpy() for name, tensor in state.items()}


def torch_name(leaf: tuple[str, ...]) -> str:
    """('params', 'layer1_0', 'conv1', 'kernel') -> 'layer1.0.conv1.weight'."""
    *modules, last = leaf[1:]
    return ".".join([re.sub(r"_(\d+)$", r".\1", module) for module in modules] + [_LEAF[last]])


def from_torch(value: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, OI -> IO."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_torch(value: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW, IO -> OI."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
