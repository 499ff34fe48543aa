"""Checkpoints through orbax: written in the background, checked when read, the previous one kept in case."""

import hashlib
import json
import logging
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from lagrangian_jax.parallel import replicate
from lagrangian_jax.state import TrainState


class Checkpoints:
    """The checkpoints of one kind (``last`` or ``best``) in a work directory.

    Each holds a `TrainState` and a position, a dictionary of JSON values. A manifest of SHA-256 sums is written when a
    checkpoint is complete, so a truncated or altered file is noticed and the previous checkpoint taken.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every step of its work
        self._ocp = ocp
        self._folder = folder.resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, state: TrainState, position: dict[str, Any]) -> None:
        """Starts writing; returns as soon as the state is copied off the devices."""
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():  # an interrupted run that has come to the same step again
            self._manager.delete(step)
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(_with_raw_key(state)), position=self._ocp.args.JsonSave(position)
        )
        self._manager.save(step, args=items)

    def restore(self, like: TrainState, mesh: Mesh) -> tuple[TrainState, dict[str, Any], list[str]] | None:
        """The newest checkpoint that is whole.

        Args:
          like: a state of the same structure, with the shapes that are expected.
          mesh: the devices to restore to; it need not be the one the checkpoint was written from.

        Returns:
          the state, its position and a message for each damaged checkpoint that was passed over; None if there is none.

        Raises:
          ValueError: there are checkpoints, and all are damaged.
        """
        self.wait()
        messages: list[str] = []
        target = replicate(_with_raw_key(like), mesh)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target)
        for step in sorted(self._manager.all_steps(), reverse=True):
            problem = self._damage(step)
            if problem is None:
                try:
                    items = self._manager.restore(
                        step,
                        args=self._ocp.args.Composite(
                            state=self._ocp.args.StandardRestore(abstract), position=self._ocp.args.JsonRestore()
                        ),
                    )
                    return _with_typed_key(items["state"]), items["position"], messages
                except Exception as error:  # whatever orbax and its storage raise on a file they cannot read
                    problem = str(error).strip().splitlines()[0]
            messages.append(
                f"checkpoint {self._folder.name}/{step} is damaged ({problem}); going back to the one before"
            )
        if messages:
            raise ValueError(f"every checkpoint in {self._folder} is damaged: {'; '.join(messages)}")
        return None

    def wait(self) -> None:
        """Until what was being written is complete, with its manifest."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            for step in self._manager.all_steps():
                manifest = self._manifest(step)
                if not manifest.exists():
                    temporary = manifest.with_suffix(".tmp")
                    temporary.write_text(json.dumps(self._sums(step)))
                    temporary.replace(manifest)
            for manifest in self._folder.glob("*.sha256"):
                if not (self._folder / manifest.stem).is_dir():
                    manifest.unlink()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _manifest(self, step: int) -> pathlib.Path:
        return self._folder / f"{step}.sha256"

    def _sums(self, step: int) -> dict[str, str]:
        folder = self._folder / str(step)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def _damage(self, step: int) -> str | None:
        try:
            expected = json.loads(self._manifest(step).read_text())
        except FileNotFoundError:
            return None  # killed between the checkpoint and its manifest; orbax commits by renaming, so it is whole
        except ValueError:
            return "its manifest is unreadable"
        found = self._sums(step)
        wrong = [name for name, value in expected.items() if found.get(name) != value]
        return f"{wrong[0]} is {'changed' if wrong[0] in found else 'missing'}" if wrong else None


def _with_raw_key(state: TrainState) -> Any:
    return state.replace(key=jax.random.key_data(state.key))


def _with_typed_key(state: Any) -> TrainState:
    return state.replace(key=jax.random.wrap_key_data(state.key))
