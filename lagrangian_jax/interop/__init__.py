"""Reads and writes weights: of PyTorch networks, by name; Flax, orbax, StableHLO and ONNX files; RobustBench."""

from lagrangian_jax.interop import robustbench
from lagrangian_jax.interop.robustbench import model_info
from lagrangian_jax.interop.weights import load, load_function, save

__all__ = ["load", "load_function", "model_info", "robustbench", "save"]
