"""Weights of PyTorch networks, in and out, by name."""

from lagrangian_jax.interop.torch import load, save

__all__ = ["load", "save"]
