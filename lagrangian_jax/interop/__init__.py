"""Weights of PyTorch networks, in and out, by name; Flax, orbax and StableHLO files; RobustBench's form of a result."""

from lagrangian_jax.interop.robustbench import model_info
from lagrangian_jax.interop.weights import load, load_function, save

__all__ = ["load", "load_function", "model_info", "save"]
