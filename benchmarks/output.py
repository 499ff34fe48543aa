"""Writes a measurement: its numbers, and the software and machine that they come from."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from lagrangian_jax.evaluation import runner


def write(path: pathlib.Path | None, result: Mapping[str, Any]) -> None:
    """Writes a result as JSON, the software and the machine first; does nothing without a path."""
    if path is None:
        return
    about = {
        "versions": runner.versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **result}, indent=2) + "\n")
