"""Errors that are the user's to mend, told in one line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, and what would be right.

    The command line prints it as one line on stderr and exits with code 2; it never shows a traceback.
    """


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``valid``, or the list of them all if none is close.

    The result starts with a space, so that it can be appended to any message.
    """
    candidates = sorted(valid)
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Valid: {', '.join(candidates)}." if candidates else ""
