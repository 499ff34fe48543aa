"""What ``import lagrangian_jax as lj`` gives."""

import subprocess
import sys

import pytest

import lagrangian_jax as lj


def test_parts_are_there_and_show_in_completion():
    assert set(lj.__all__) <= set(dir(lj))
    assert [name for name in lj.__all__ if getattr(lj, name).__name__ != f"lagrangian_jax.{name}"] == []
    with pytest.raises(AttributeError, match="no attribute 'attack'"):
        lj.attack  # noqa: B018


def test_rare_packages_are_imported_where_they_are_used():
    """All parts, and none of these: they take seconds to import, or are not installed."""
    rare = ("grain", "matplotlib", "orbax", "sklearn", "tensorboardX", "tensorflow", "tensorflow_datasets", "torch")
    code = (
        "import sys, lagrangian_jax as lj\n"
        "[getattr(lj, name) for name in lj.__all__]\n"
        f"print([name for name in {rare} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
