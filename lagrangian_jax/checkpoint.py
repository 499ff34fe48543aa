"""Checkpoints through orbax: written in the background, checked when read, the previous one kept in case.

The state is the same on every device, so in a job of several processes the first one alone reads and writes, and tells
the others; its disk need not be theirs. A checkpoint knows nothing of the devices it came from.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from lagrangian_jax import parallel
from lagrangian_jax.config import differences
from lagrangian_jax.signals import Interrupted
from lagrangian_jax.state import TrainState
from lagrangian_jax.workdir import write_whole


class Checkpoints:
    """The checkpoints of one kind (``last`` or ``best``) in a work directory.

    Each holds a `TrainState` and a position, a dictionary of JSON values. A manifest of SHA-256 sums is written when a
    checkpoint is complete, so a truncated or altered file is noticed and the previous checkpoint taken. In a job of
    several processes every method is called in all of them.

    Args:
      folder: of this kind.
      keep: how many, the newest.
      method: the training method's name: noted in the positions that are saved, and the one whose checkpoints are
        restored. None notes none and takes any.
    """

    def __init__(self, folder: pathlib.Path, keep: int, method: str | None = None):
        self._folder = folder.resolve()
        self._keep = keep
        self._method = method
        self._manager: Any = None  # of the first process
        self._saving: Any = None  # its step and what is being written
        parallel.together(self._open)

    def save(self, state: TrainState, position: dict[str, Any]) -> None:
        """Starts writing; returns as soon as the state is copied off the devices. `wait` says whether it succeeded."""
        self.wait()
        parallel.together(lambda: self._save(state, position))

    def restore(
        self, like: TrainState, mesh: Mesh, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any], list[str]] | None:
        """The newest checkpoint that is whole, of those up to a step if one is given.

        Args:
          like: a state of the same structure, with the shapes that are expected.
          mesh: the devices to restore to; it need not be the one the checkpoint was written from.
          step: the one that is wanted; later ones are of a run that was interrupted before it came back there.

        Returns:
          the state, its position and a message for each checkpoint that was passed over, damaged or not there any more;
          None if there is none.

        Raises:
          ValueError: there are checkpoints, and all are damaged; or it is of another method, or a state of another
            structure or shape: says what differs.
        """
        self.wait()
        leaves, about = parallel.together(lambda: self._restore(like, step)) or (None, None)
        about = json.loads(parallel.broadcast(json.dumps(about).encode()))
        if about is None:
            return None
        expected, structure = jax.tree.flatten(_with_raw_key(like))
        leaves = parallel.broadcast_arrays(leaves, expected)
        state = parallel.replicate(jax.tree.unflatten(structure, leaves), mesh)
        return _with_typed_key(state, like.key), about["position"], about["messages"]

    def read(self, step: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """What `restore` restores, as it lies on disk: its step, nested dictionaries and lists of arrays, the position.

        Of a single process; for copying a checkpoint without its network.

        Raises:
          ValueError: there are checkpoints, and all are damaged.
        """
        self.wait()
        found = self._read(step)
        if found is None:
            return None
        tree, about = found
        return about["step"], tree, about["position"]

    def write(self, step: int, tree: Any, position: dict[str, Any]) -> None:
        """Writes what `read` returned."""
        self._write(step, tree, position)
        self.wait()

    def wait(self) -> None:
        """Until what was being written is complete, with its manifest.

        Raises:
          OSError: it could not be written (a full disk); the checkpoints before it are kept.
        """
        parallel.together(self._finish)

    def close(self) -> None:
        self.wait()
        if self._manager is not None:
            self._manager.close()

    # What the first process does

    def _open(self) -> None:
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells every step of its work, errors twice
        self._folder.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions(),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def _save(self, state: TrainState, position: dict[str, Any]) -> None:
        noted = {} if self._method is None else {"method": self._method}
        # A copy: the next step overwrites the devices' memory.
        self._write(int(state.step), jax.tree.map(np.array, _with_raw_key(state)), {**position, **noted})

    def _write(self, step: int, here: Any, position: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        for other in self._manager.all_steps():
            if other >= step:  # damaged, or of a run that was interrupted before it came back here; orbax would skip us
                self._manifest(other).unlink(missing_ok=True)
                self._manager.delete(other)
        items = ocp.args.Composite(state=ocp.args.StandardSave(here), position=ocp.args.JsonSave(position))
        self._saving = step, items
        with self._writing():
            self._manager.save(step, args=items)

    def _restore(self, like: TrainState, step: int | None) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        found = self._read(step)
        if found is None:
            return None
        tree, about = found
        path = self._folder / str(about["step"])
        there = about["position"].get("method", self._method)  # older ones do not tell
        if self._method not in (None, there):
            raise ValueError(
                f"{path} is a checkpoint of the method {there!r}, not of {self._method!r}. "
                "Take it away, or give another --workdir."
            )
        leaves, expected = _by_name(tree), _by_name(_with_raw_key(like))
        different = differences(_shapes(expected), _shapes(leaves))
        if different:
            more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
            raise ValueError(
                f"{path} is a checkpoint of another state: {'; '.join(different[:3])}{more}. "
                "Take it away, or give another --workdir."
            )
        return [leaves[name] for name in expected], about

    def _read(self, step: int | None) -> tuple[Any, dict[str, Any]] | None:
        """The state as it lies there; ``step``, ``position`` and ``messages``."""
        import orbax.checkpoint as ocp

        problems: list[str] = []
        there = {at for at in self._manager.all_steps() if step is None or at <= step}
        wanted = {step} if there and step is not None else set()
        for candidate in sorted(there | wanted, reverse=True):
            problem = self._damage(candidate) if candidate in there else "it is missing"
            if problem is None:
                items = ocp.args.Composite(state=ocp.args.StandardRestore(), position=ocp.args.JsonRestore())
                try:
                    found = self._manager.restore(candidate, args=items)
                    messages = [f"{passed}; going back to the one before" for passed in problems]
                    return found["state"], {"step": candidate, "position": found["position"], "messages": messages}
                except Exception as error:  # whatever orbax and its storage raise on a file they cannot read
                    problem = _first_line(error)
            problems.append(f"checkpoint {self._folder.name}/{candidate} is damaged ({problem})")
        if problems:
            raise ValueError(f"every checkpoint in {self._folder} is damaged: {'; '.join(problems)}")
        return None

    def _finish(self) -> None:
        with self._writing():
            try:
                self._manager.wait_until_finished()
            except TimeoutError:  # orbax loses patience by the clock of the day, which may have been set
                self._save_again()
            self._saving = None
            steps = set(self._manager.all_steps())
            for step in steps:
                # Also of one that was killed before it had any: orbax commits by renaming, so it is whole.
                if not self._manifest(step).exists():
                    write_whole(self._manifest(step), json.dumps(self._sums(step)))
            for manifest in self._folder.glob("*.sha256"):
                if int(manifest.stem) not in steps:
                    manifest.unlink()

    def _save_again(self) -> None:
        step, items = self._saving
        for patience in (1, 2, 4, 8, 0):
            try:
                self._open()
                if step not in self._manager.all_steps():  # the first attempt may have ended well after all
                    self._manager.save(step, args=items)
                    self._manager.wait_until_finished()
                return
            except Interrupted:
                raise
            except Exception:  # or it is still writing what is being cleared away, which fails here in any way
                if not patience:
                    raise
                time.sleep(patience)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:  # orbax and its storage have no class for a full disk
            raise OSError(
                f"cannot write a checkpoint to {self._folder} ({_first_line(error)}); those before it are kept"
            ) from error

    def _manifest(self, step: int) -> pathlib.Path:
        return self._folder / f"{step}.sha256"

    def _sums(self, step: int) -> dict[str, str]:
        folder = self._folder / str(step)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def _damage(self, step: int) -> str | None:
        try:
            expected = json.loads(self._manifest(step).read_text())
        except ValueError:
            return "its manifest is unreadable"
        found = self._sums(step)
        wrong = [name for name, value in expected.items() if found.get(name) != value]
        return f"{wrong[0]} is {'changed' if wrong[0] in found else 'missing'}" if wrong else None


def _with_raw_key(state: TrainState) -> Any:
    return state.replace(key=jax.random.key_data(state.key))


def _with_typed_key(state: Any, like: Array) -> TrainState:
    return state.replace(key=jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like)))


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a state, or of what it is on disk, in the order of its structure."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shapes(leaves: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _first_line(error: Exception) -> str:
    if "No space left on device" in str(error):  # at the end of a long line about the storage's inner life
        return "No space left on device"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
