"""Configurations; `lagrangian_jax.config` reads them."""
