"""The installed package, away from a checkout: built as a wheel, in an environment that has nothing else."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def _run(*command, cwd, **environment):
    """Runs a command that knows nothing about this checkout or environment."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=inherited | environment, capture_output=True, text=True
    )


def _succeeds(*command, cwd, **environment):
    done = _run(*command, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    wanted = ["pyproject.toml", "setup.py", "README.md", "lagrangian_jax", "configs"]
    clean = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*wanted, *(path.name for path in ROOT.glob("LICEN*"))):
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target, ignore=clean) if source.is_dir() else shutil.copy(source, target)
    _succeeds(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "source", cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    environment = tmp_path_factory.mktemp("environment")
    _succeeds(sys.executable, "-m", "venv", environment, cwd=environment)
    interpreter = environment / "bin" / "python"
    _succeeds(interpreter, "-m", "pip", "install", "-q", wheel, cwd=environment)
    return interpreter


def test_the_wheel_holds_every_module_configuration_and_data_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("lagrangian_jax/")}
    package = ROOT / "lagrangian_jax"
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    expected = {f"lagrangian_jax/{path.relative_to(package)}" for path in files}
    expected |= {f"lagrangian_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert held == expected


def test_quick_start_from_another_folder(python, tmp_path):
    """Training by a configuration's name, evaluation of what it left, and an error that names the missing data."""
    here = {"cwd": tmp_path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    where = _succeeds(python, "-c", "import lagrangian_jax; print(lagrangian_jax.__file__)", **here).stdout
    assert str(ROOT) not in where
    smoke = "--config=digits:lagrangian,smoke"
    _succeeds(python, "-m", "lagrangian_jax.main", smoke, "--workdir=run", **here)
    for name in ("results.json", "report.html", "weights.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    _succeeds(python, "-m", "lagrangian_jax.evaluate", smoke, "--weights=run", "--workdir=again", **here)
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "again"))
    assert [a["correct"] for a in first["attacks"]] == [a["correct"] for a in second["attacks"]]
    np.testing.assert_array_equal(
        np.load(tmp_path / "run/evaluation/pgd_l2.npz")["l2"], np.load(tmp_path / "again/evaluation/pgd_l2.npz")["l2"]
    )
    failed = _run(python, "-m", "lagrangian_jax.main", "--config=cifar10", **here, TFDS_DATA_DIR=str(tmp_path / "none"))
    assert failed.returncode == 1
    assert "cifar10" in failed.stderr.lower()
    assert "python -m lagrangian_jax.data.prepare cifar10" in failed.stderr
