"""What the paper measures besides accuracy: pure functions of arrays, one analysis per module."""

from lagrangian_jax.analysis.foreground import attention_map, foreground_to_background
from lagrangian_jax.analysis.multiplier import Multipliers, effective_multiplier
from lagrangian_jax.analysis.norms import NormsAndConfidence, norms_and_confidence, rank_correlation

__all__ = [
    "Multipliers",
    "NormsAndConfidence",
    "attention_map",
    "effective_multiplier",
    "foreground_to_background",
    "norms_and_confidence",
    "rank_correlation",
]
