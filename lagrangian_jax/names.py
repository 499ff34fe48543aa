"""Usage errors: the exception that commands answer with exit code 2, and the message for an unknown name."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Invalid input from the command line, which a retry cannot fix: shown as one line, with exit code 2."""


# What other libraries call a parameter, and its name here.
SYNONYMS = {
    **dict.fromkeys(("eps", "epsilon"), "bound"),
    **dict.fromkeys(("alpha", "eps_iter", "eps_step"), "step_size"),
    **dict.fromkeys(("num_steps", "nb_iter", "iterations", "iters", "max_iter"), "steps"),
}


def unknown(what: str, given: str, valid: Iterable[str], like: str | None = None) -> ValueError:
    """The error for an invalid name; it suggests the nearest valid name (to ``like``, if given) and lists all of them.

    >>> str(unknown("attack", "pgd_l3", ["fgsm", "pgd_l2"]))
    "unknown attack 'pgd_l3'; did you mean 'pgd_l2'? Valid: fgsm, pgd_l2"
    """
    valid = list(valid)
    close = [repr(name) for name in _nearest(like or given, valid)]
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return ValueError(f"unknown {what} {given!r}{hint} Valid: {', '.join(valid) or 'none'}")


def _nearest(given: str, valid: list[str]) -> list[str]:
    """The same name in another case, our name for a synonym, up to three that begin with it, or the most similar."""
    given, cased = given.lower(), {name.lower(): name for name in valid}
    if given in cased:
        return [cased[given]]
    ours = SYNONYMS.get(given, given)
    if ours in valid:
        return [ours]
    begun = [cased[name] for name in cased if given and name.startswith((given, ours))]
    alike = [] if given in SYNONYMS else difflib.get_close_matches(given, cased, n=1)
    return begun[:3] or [cased[name] for name in alike]
