"""What a run reports while it trains: a progress bar, ``metrics.jsonl``, TensorBoard files (without TensorFlow)."""

import contextlib
import json
import os
import pathlib
import sys
import time
from typing import Any

from lagrangian_jax.config import NotFinite
from lagrangian_jax.progress import progress_bar


class Monitor:
    """Writes the metrics of a run; on resuming, those after the restored step are removed first."""

    def __init__(self, workdir: pathlib.Path, steps: int, start: int, steps_per_epoch: int, active: bool = True):
        self._active = active
        self._steps_per_epoch = steps_per_epoch
        if not active:  # another process writes
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        path = workdir / "metrics.jsonl"
        if path.exists():
            _truncate(path, start)
        self._lines = path.open("a", buffering=1)
        # Not tensorboardX's SummaryWriter: on a full disk its thread dies, and the run waits for it for ever.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._board = EventsWriter(str(workdir / "tensorboard" / "events"), f".{os.getpid()}")
        if start:  # voids what an earlier process wrote about later steps
            restarted = SessionLog(status=SessionLog.START)
            self._board.write_event(Event(wall_time=time.time(), step=start + 1, session_log=restarted))
        self._bar = progress_bar(steps, "step", initial=start)

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of the steps up to and including ``step``, averaged since the last call."""
        if not self._active:
            return
        self._write("train", step, metrics)
        shown = {"epoch": f"{step / self._steps_per_epoch:.1f}", "img/s": f"{metrics['images_per_second']:.0f}"}
        shown["loss"] = f"{metrics['loss']:.3f}"
        if metrics.get("clean_accuracy") is not None:
            shown["clean"] = f"{100 * metrics['clean_accuracy']:.1f}%"
        shown["adv"] = f"{100 * metrics['adversarial_accuracy']:.1f}%"
        shown["l2"] = f"{metrics['perturbation_l2']:.2f}"
        shown["sat"] = f"{100 * metrics['saturated']:.0f}%"
        self._bar.set_postfix(shown, refresh=False)

    def validation(self, step: int, metrics: dict[str, Any]) -> None:
        """Accuracies on the held-out images after an epoch."""
        if self._active:
            self._write("validation", step, metrics)

    def progress(self, step: int) -> None:
        if self._active:
            self._bar.update(step - self._bar.n)

    def say(self, message: str) -> None:
        if self._active:
            self._bar.write(message, file=sys.stderr)

    def sync(self) -> None:
        """Brings the lines to disk, so that they are there before the checkpoint that follows them."""
        if self._active:
            os.fsync(self._lines.fileno())

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not self._active:
            return
        if isinstance(error, NotFinite):  # for the report
            self._write("failure", self._bar.n, {"message": str(error)})
        self._bar.close()
        for file in (self._board, self._lines):
            with contextlib.suppress(OSError):  # everything is written; on a full disk, closing fails again
                file.close()

    def _write(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        line = {"kind": kind, "step": step, "epoch": step / self._steps_per_epoch, **metrics}
        self._lines.write(json.dumps(line) + "\n")
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (bool, int, float))}
        values = [Summary.Value(tag=f"{kind}/{name}", simple_value=float(value)) for name, value in numbers.items()]
        self._board.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._board.flush()


def _truncate(path: pathlib.Path, step: int) -> None:
    """Keeps the lines up to ``step``; the steps after it will be taken again."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # the last line of a killed run may be cut short
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    temporary.replace(path)
