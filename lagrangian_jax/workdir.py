"""A work directory: which configuration and images it belongs to, and that one run at a time writes to it."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lagrangian_jax import methods, parallel
from lagrangian_jax.config import differences, network_fields, plain
from lagrangian_jax.data import Dataset, Source, Split
from lagrangian_jax.names import UsageError

log = logging.getLogger(__name__)

# Fields that may change when a run is resumed: where data and weights are, how images are read and batched for attacks,
# how often metrics are written. Results do not depend on them beyond float rounding, which differs with the number of
# steps that are compiled into a program.
FREE = (
    ("data", "dir"),
    ("data", "workers"),
    ("train", "log_steps"),
    ("evaluation", "batch_size"),
    ("evaluation", "lpips_alexnet"),
)


@contextlib.contextmanager
def open_workdir(workdir: pathlib.Path, config: ConfigDict) -> Iterator[None]:
    """Makes the directory, or checks that it belongs to this configuration, and locks it against other runs.

    It belongs to the configuration of the first run that left more than its settings in it.

    In a job of several processes the first one does this, and an error is raised in all of them.

    Raises:
      UsageError: it belongs to another configuration (the message says what differs; nothing is overwritten).
      ValueError: it is in use.
      OSError: it cannot be written.
    """
    with contextlib.ExitStack() as held:
        parallel.together(lambda: _claim(workdir, config, held))
        yield


def _claim(workdir: pathlib.Path, config: ConfigDict, held: contextlib.ExitStack) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = held.enter_context((workdir / ".lock").open("w"))
    except OSError as error:
        raise OSError(f"cannot write to the work directory {workdir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, however that happens
    except BlockingIOError as error:
        raise ValueError(f"the work directory {workdir} is in use by another process") from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        log.warning("%s is on a file system without locks: a second run in it would not be noticed", workdir)
    path = workdir / "config.json"
    if not path.exists():
        write_whole(path, json.dumps(plain(config), indent=2) + "\n")
        return
    different = differences(fixed(plain(config)), fixed(_with_younger_parameters(_read(path))))
    if different and {entry.name for entry in workdir.iterdir()} == {".lock", "config.json"}:
        write_whole(path, json.dumps(plain(config), indent=2) + "\n")  # the run that made it never began
    elif different:
        raise UsageError(
            f"{workdir} belongs to another configuration: {'; '.join(different)}. "
            f"Give another --workdir, or the configuration it was made with.{_without_training(workdir, different)}"
        )


def _without_training(workdir: pathlib.Path, different: list[str]) -> str:
    """The command that attacks a trained network with other settings, if nothing else differs."""
    attacks_alone = all(line.startswith("evaluation.") and "evaluation.checkpoint:" not in line for line in different)
    if not attacks_alone or not (workdir / "weights.safetensors").is_file():
        return ""
    return (
        " To attack the trained network with other settings: python -m lagrangian_jax.evaluate "
        f"--weights={shlex.quote(str(workdir))} --config=... --suite=... --workdir=ANOTHER"
    )


def made_with(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The plain configuration that a work directory belongs to; None for any other path."""
    path = workdir / "config.json"
    return _read(path) if path.is_file() else None


def weights_file(path: pathlib.Path, option: str) -> pathlib.Path:
    """The weights file that an option names, directly or by its work directory; raises ValueError if there is none."""
    run = (path / "config.json").is_file()
    path = path / "weights.safetensors" if run else path
    if not path.exists():
        when = "; a training run writes it when it is complete" if run else ""
        raise ValueError(f"{option}: no such file: {path}{when}")
    return path


def same_network(path: pathlib.Path, option: str, config: ConfigDict) -> None:
    """Raises ValueError if an option names the work directory of a run that trained another network.

    A training run notes its network; weights alone would not tell its normalisation or activation.
    """
    trained_with = made_with(path)
    if trained_with and "network" in trained_with:
        here, there = (plain(network_fields(given)) for given in (config.network, trained_with["network"]))
        different = differences(here, there)
        if different:
            raise ValueError(
                f"{option}={path} was trained with another network: {'; '.join(different)}. "
                "Give that one, as --config.network.FIELD=VALUE."
            )


def other_images(path: pathlib.Path, config: ConfigDict, dataset: Dataset) -> list[str]:
    """What a reader of results must know if the weights are from a run that held out other test images."""
    here, there = config.data.name, ((made_with(path) or {}).get("data") or {}).get("name")
    if there not in (None, here):
        return [f"the network was trained on {there!r}, and these are the test images of {here!r}"]
    began_with = _read(path / "data.json").get("test", {}) if (path / "data.json").is_file() else {}
    if not _differing({"test": began_with}, {"test": _identity(dataset.test)}):
        return []
    return [
        "the test images are not those that the training run held out: it may have been trained on some of them; "
        "restore the images that it began with"
    ]


def summary_of_training(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The summary of a training run, from ``training.json`` or ``results.json`` in its work directory; else None."""
    if (workdir / "training.json").is_file():
        return _read(workdir / "training.json")
    results = workdir / "results.json"
    return _read(results).get("training") if results.is_file() else None


def same_data(workdir: pathlib.Path, dataset: Dataset) -> None:
    """Notes which images a run uses, or checks that they are the same. The order of examples, a method's memory and the
    rows of attacks depend on them.

    Raises:
      ValueError: a split has other images than when the run began.
    """
    here = {name: _identity(getattr(dataset, name)) for name in ("train", "validation", "test")}
    path = workdir / "data.json"

    def check() -> None:
        if not path.exists():
            write_whole(path, json.dumps(here, indent=2) + "\n")
            return
        different = _differing(_read(path), here)
        if different:
            raise ValueError(
                f"the images of {dataset.name} are not those that {workdir} began with: {'; '.join(different)}. "
                "Restore what was lost or take away what was added, or give another --workdir."
            )

    parallel.together(check)


def _differing(there: dict[str, dict[str, Any]], here: dict[str, dict[str, Any]]) -> list[str]:
    """What differs between two notes of the images in each split, in the fields that ``there``, perhaps older, has."""
    known = {name: {key: here[name][key] for key in here[name].keys() & there[name].keys()} for name in there}
    return differences(known, there)


def _identity(split: Split | Source) -> dict[str, Any]:
    places = np.asarray(split.labels, np.int64).tobytes() + np.asarray(split.indices, np.int64).tobytes()
    found = {"images": len(split.labels), "digest": _digest(places)}
    files = getattr(split, "files", None)  # of a folder, whose images are numbered whatever their names
    if files is not None:
        names = "\0".join(f"{file.parent.name}/{file.name}" for file in files)
        found["files"] = _digest(names.encode(errors="surrogateescape"))
    return found


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file atomically: its name holds the old content or the new, never a part of it."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or give another --workdir") from error


def _with_younger_parameters(config: dict) -> dict:
    """Adds fields younger than a configuration, at their defaults, which are off, so that its run may resume."""
    method = config.get("method", {})
    younger = methods.parameters(method["name"]) if method.get("name") in methods.METHODS else {}
    return {"init_from": "", **config, "method": {**younger, **method}}


def fixed(config: dict) -> dict:
    """A plain configuration without the fields that results do not depend on (`FREE`)."""
    return {
        group: {k: v for k, v in fields.items() if (group, k) not in FREE} if isinstance(fields, dict) else fields
        for group, fields in config.items()
    }
