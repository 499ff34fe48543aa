"""Evaluation: suites of attacks, run on all examples and all devices, resumable, with exact counts.

>>> import lagrangian_jax as lj
>>> [row.name for row in lj.evaluation.suites.get("autoattack_l2")]
['none', 'autoattack_l2']
"""

from lagrangian_jax.evaluation import suites
from lagrangian_jax.evaluation.result import AttackResult, Result
from lagrangian_jax.evaluation.runner import ready, run
from lagrangian_jax.evaluation.suites import SUITES, Row

__all__ = ["SUITES", "AttackResult", "Result", "Row", "ready", "run", "suites"]
