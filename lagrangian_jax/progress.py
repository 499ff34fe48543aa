"""How far a long loop has come: a bar on a terminal; in a log (of Slurm, Kubernetes, a file), a line now and then."""

import sys

from tqdm import tqdm

LOG_EVERY = 30.0  # seconds between the lines in a log


def progress_bar(total: int, unit: str, description: str = "", initial: int = 0) -> "tqdm[None]":
    """A tqdm bar on stderr, which the caller updates and closes.

    Where stderr is not a terminal, each state is a line of its own, since what collects logs shows a line when it ends.

    >>> with progress_bar(4560, "step", initial=3771) as bar:
    ...     bar.update(10)
    """
    terminal = sys.stderr.isatty()
    line = "{desc}{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    return tqdm(
        total=total,
        unit=unit,
        desc=description and f"{description}: ",
        initial=initial,
        file=sys.stderr if terminal else _Lines(),
        dynamic_ncols=terminal,
        mininterval=1.0 if terminal else LOG_EVERY,
        miniters=None if terminal else 1,  # None: tqdm guesses how many updates take that long
        bar_format=None if terminal else line,
    )


class _Lines:
    """A file for tqdm, which writes a state as a carriage return and a text without an end of line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass
