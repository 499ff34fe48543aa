"""Checkpoints through orbax: written in the background, checked when read, the previous one kept as a spare.

The state is the same on every device, so in a job of several processes only the first one reads and writes, and it
sends the others what it reads; they need not share its disk. A checkpoint does not depend on the devices it came from.
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
    checkpoint is complete, so that a truncated or altered file is noticed and the previous checkpoint used instead. In
    a job of several processes, every process must call every method.

    Args:
      folder: folder of this kind.
      keep: how many of the newest to keep.
      method: name of the training method. It is noted in saved positions, and checkpoints of another method are not
        restored. None notes no method and restores any.
    """

    def __init__(self, folder: pathlib.Path, keep: int, method: str | None = None):
        self._folder = folder.resolve()
        self._keep = keep
        self._method = method
        self._manager: Any = None  # in the first process only
        self._saving: Any = None  # the step that is being written, and its items
        parallel.together(self._open)

    def save(self, state: TrainState, position: dict[str, Any]) -> None:
        """Starts writing; returns as soon as the state is copied off the devices. `wait` raises if it failed."""
        self.wait()
        parallel.together(lambda: self._save(state, position))

    def restore(
        self, like: TrainState, mesh: Mesh, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any], list[str]] | None:
        """The newest undamaged checkpoint, or the newest up to ``step`` if that is given.

        Args:
          like: a state of the same structure, with the expected shapes.
          mesh: the devices to restore to; it need not be the one the checkpoint was written from.
          step: the wanted step; later checkpoints are left over from before an interruption, and the run has not come
            back to them.

        Returns:
          the state, its position and a message for each checkpoint that was passed over because it is damaged or
          missing; None if there is no checkpoint.

        Raises:
          ValueError: all checkpoints are damaged; or the checkpoint is of another method, or of a state of another
            structure or shape (the message says what differs).
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
        """What `restore` restores, as it is on disk: its step, nested dictionaries and lists of arrays, the position.

        For a single process that copies a checkpoint without its network.

        Raises:
          ValueError: all checkpoints are damaged.
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
        """Waits until what is being written is complete, with its manifest.

        Raises:
          OSError: it could not be written (a full disk); earlier checkpoints are kept.
        """
        parallel.together(self._finish)

    def close(self) -> None:
        self.wait()
        if self._manager is not None:
            self._manager.close()

    # In the first process only

    def _open(self) -> None:
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs every step of its work, and errors twice
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
            if other >= step:  # damaged, or from before an interruption; orbax would skip a step before it
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
        saved = about["position"].get("method", self._method)  # older ones do not note it
        if self._method not in (None, saved):
            raise ValueError(
                f"{path} is a checkpoint of the method {saved!r}, not of {self._method!r}. "
                "Remove it, or give another --workdir."
            )
        leaves, expected = _by_name(tree), _by_name(_with_raw_key(like))
        different = differences(_shapes(expected), _shapes(leaves))
        if different:
            more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
            raise ValueError(
                f"{path} is a checkpoint of another state: {'; '.join(different[:3])}{more}. "
                "Remove it, or give another --workdir."
            )
        return [leaves[name] for name in expected], about

    def _read(self, step: int | None) -> tuple[Any, dict[str, Any]] | None:
        """The state as it is on disk, and its ``step``, ``position`` and ``messages``."""
        import orbax.checkpoint as ocp

        problems: list[str] = []
        present = {at for at in self._manager.all_steps() if step is None or at <= step}
        wanted = {step} if present and step is not None else set()
        for candidate in sorted(present | wanted, reverse=True):
            problem = self._damage(candidate) if candidate in present else "it is missing"
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
            except TimeoutError:  # orbax times out by the wall clock, which may have been set
                self._save_again()
            self._saving = None
            steps = set(self._manager.all_steps())
            for step in steps:
                # Also for a run that was killed before writing one: orbax commits by renaming, so its checkpoint is
                # whole.
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
                if step not in self._manager.all_steps():  # the first attempt may have succeeded after all
                    self._manager.save(step, args=items)
                    self._manager.wait_until_finished()
                return
            except Interrupted:
                raise
            except Exception:  # or it is still writing what `_open` clears away: anything may be raised
                if not patience:
                    raise
                time.sleep(patience)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:  # orbax and its storage have no exception for a full disk
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
    """The leaves of a state, or of what is on disk, by name, in the order of its structure."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shapes(leaves: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _first_line(error: Exception) -> str:
    if "No space left on device" in str(error):  # at the end of a long line of storage internals
        return "No space left on device"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
