"""Packages: what is under ``lagrangian_jax``, and the configurations, which stand beside it in a checkout."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lagrangian_jax", "lagrangian_jax.*"]), "lagrangian_jax.configs"],
    package_dir={"lagrangian_jax.configs": "configs"},
)
