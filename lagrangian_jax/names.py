"""Errors of usage: the one that doors answer with code 2, and one form for those about an unknown name."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Wrong input from the command line, which no second try mends: shown as one line, exit code 2."""


def unknown(what: str, given: str, valid: Iterable[str], like: str | None = None) -> ValueError:
    """The error for a name that is not among the valid ones; it suggests the nearest (to ``like``, if given) and lists
    all.

    >>> str(unknown("attack", "pgd_l3", ["fgsm", "pgd_l2"]))
    "unknown attack 'pgd_l3'; did you mean 'pgd_l2'? Valid: fgsm, pgd_l2"
    """
    valid = list(valid)
    close = difflib.get_close_matches(like or given, valid, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return ValueError(f"unknown {what} {given!r}{hint} Valid: {', '.join(valid) or 'none'}")
