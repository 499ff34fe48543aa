"""Reproduces the paper's tables and figures: ``python -m lagrangian_jax.reproduce NAME --workdir=DIR``.

`paper` holds its numbers, `networks` says what is trained under each preset, `experiments` what each table and figure
evaluates and shows.
"""
