"""Adversarial training with a Lagrangian objective, and the unseen-attack suite, in JAX and Flax."""

import importlib

__version__ = "0.1.0"
__all__ = [
    "analysis",
    "attacks",
    "data",
    "distances",
    "evaluation",
    "interop",
    "losses",
    "methods",
    "models",
    "report",
    "runs",
]


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"lagrangian_jax.{name}")
    raise AttributeError(f"module 'lagrangian_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
