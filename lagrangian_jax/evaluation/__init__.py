"""Evaluation: suites of attacks, run on all examples and all devices, resumable, with exact counts.

>>> import lagrangian_jax as lj
>>> lj.evaluation.suites.names()
('quick', 'cifar10_table1', 'imagenet100_table2', 'autoattack_linf', 'autoattack_l2')
"""

from lagrangian_jax.evaluation import suites
from lagrangian_jax.evaluation.result import AttackResult, Result
from lagrangian_jax.evaluation.runner import run
from lagrangian_jax.evaluation.suites import SUITES, Row

__all__ = ["SUITES", "AttackResult", "Result", "Row", "run", "suites"]
