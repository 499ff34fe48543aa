"""Notes SIGTERM (preemption) and Ctrl-C, so that a loop can save and leave."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C); its state is saved."""


class Signals:
    """A context that notes SIGTERM and Ctrl-C instead of ending the process; Ctrl-C after either ends it at once.

    >>> with Signals() as signals:
    ...     before, _ = signals.received(), signal.raise_signal(signal.SIGTERM)
    ...     before, signals.received()
    (False, True)
    """

    def __enter__(self) -> "Signals":
        self._number = 0
        numbers = (signal.SIGTERM, signal.SIGINT) if _in_main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def received(self) -> bool:
        """Whether a signal has come."""
        return self._number != 0

    def _note(self, number: int, frame: Any) -> None:
        if self._number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._number = number


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """A context in which SIGTERM raises `Interrupted`, except where `Signals` notes it."""
    before = signal.signal(signal.SIGTERM, _leave) if _in_main_thread() else None
    try:
        yield
    finally:
        if _in_main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _leave(number: int, frame: Any) -> None:
    raise Interrupted("stopped by SIGTERM; the same command goes on from there")


def _in_main_thread() -> bool:
    """Only the main thread may handle signals; a run in another thread (of a notebook, say) does without."""
    return threading.current_thread() is threading.main_thread()
