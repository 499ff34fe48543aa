"""Arrays that took time to make, kept on disk between runs."""

import hashlib
import logging
import os
import pathlib
import uuid
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


def folder(config: Any) -> pathlib.Path:
    """``config.cache_dir``, else ``$XDG_CACHE_HOME/lagrangian_jax``, else ``~/.cache/lagrangian_jax``."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(getattr(config, "cache_dir", "") or f"{home}/lagrangian_jax").expanduser()


def fingerprint(files: Iterable[pathlib.Path]) -> str:
    """Sixteen hexadecimal digits that change when a file is moved, replaced or written to."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(os.fsencode(file.resolve()) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def cached(
    path: pathlib.Path, names: Iterable[str], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Reads the named arrays from ``path`` (.npz, checksummed); if it is absent or damaged, makes and writes them.

    If the directory cannot be written to, the arrays are made again every time; nothing else is lost.
    """
    try:
        # NumPy leaves a damaged file open if it opened it. The archive's checksums are compared while reading.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged or cannot be read (%s); making it again", path, error)
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written to a temporary file and renamed, so that neither a kill nor a second process leaves half a file here.
        # Not one of `tempfile`, which other users of the cache may not read.
        temporary = path.with_name(f"{path.stem}{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as target:
                np.savez(target, **arrays)  # type: ignore[arg-type]
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
    except OSError as error:
        log.warning("%s could not be written (%s); the data will be read again at every start", path, error)
    return arrays
