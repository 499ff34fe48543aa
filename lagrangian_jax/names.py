"""Errors of usage: the one that doors answer with code 2, and one form for those about an unknown name."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Wrong input from the command line, which no second try mends: shown as one line, exit code 2."""


# What other libraries call a parameter.
SYNONYMS = {
    **dict.fromkeys(("eps", "epsilon"), "bound"),
    **dict.fromkeys(("alpha", "eps_iter", "eps_step"), "step_size"),
    **dict.fromkeys(("num_steps", "nb_iter", "iterations", "iters", "max_iter"), "steps"),
}


def unknown(what: str, given: str, valid: Iterable[str], like: str | None = None) -> ValueError:
    """The error for a name that is not among the valid ones; it suggests the nearest (to ``like``, if given) and lists
    all.

    >>> str(unknown("attack", "pgd_l3", ["fgsm", "pgd_l2"]))
    "unknown attack 'pgd_l3'; did you mean 'pgd_l2'? Valid: fgsm, pgd_l2"
    """
    valid = list(valid)
    close = [repr(name) for name in _nearest(like or given, valid)]
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return ValueError(f"unknown {what} {given!r}{hint} Valid: {', '.join(valid) or 'none'}")


def _nearest(given: str, valid: list[str]) -> list[str]:
    """That of another case, what it is called here, up to three that begin so, or that of the most letters alike."""
    given, cased = given.lower(), {name.lower(): name for name in valid}
    if given in cased:
        return [cased[given]]
    if given in SYNONYMS:
        return [name for name in valid if name == SYNONYMS[given]]
    begun = [cased[name] for name in cased if given and name.startswith(given)]
    return begun[:3] or [cased[name] for name in difflib.get_close_matches(given, cased, n=1)]
