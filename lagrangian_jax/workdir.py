"""A work directory: which configuration it belongs to, and that one process at a time writes to it."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from lagrangian_jax.config import differences, plain

# Where data is and how fast it is read may change between two sittings of the same run; results do not depend on it.
FREE = (("data", "dir"), ("data", "workers"), ("evaluation", "batch_size"))


@contextlib.contextmanager
def open_workdir(workdir: pathlib.Path, config: ConfigDict) -> Iterator[None]:
    """Makes the directory, or checks that it belongs to this configuration, and holds it against other processes.

    Raises:
      ValueError: it belongs to another configuration (says what differs; nothing is overwritten), or is in use.
      OSError: it cannot be written.
    """
    if jax.process_index() != 0:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise OSError(f"cannot write to the work directory {workdir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"the work directory {workdir} is in use by another process") from error
        path = workdir / "config.json"
        if path.exists():
            different = differences(_fixed(plain(config)), _fixed(json.loads(path.read_text())))
            if different:
                raise ValueError(
                    f"{workdir} belongs to another configuration: {'; '.join(different)}. "
                    "Give another --workdir, or the configuration it was made with."
                )
        else:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(plain(config), indent=2) + "\n")
            temporary.replace(path)
        yield


def _fixed(config: dict) -> dict:
    return {
        group: {k: v for k, v in fields.items() if (group, k) not in FREE} if isinstance(fields, dict) else fields
        for group, fields in config.items()
    }
