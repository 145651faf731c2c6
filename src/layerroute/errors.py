"""Errors that are the user's to mend, told in one line."""

import difflib
import importlib.util
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


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error of somebody else's says, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def check_keys(given: Iterable[str], valid: Iterable[str], where: str) -> None:
    """Refuse a key that is not one of ``valid``.

    Raises:
        UserError: naming it, ``where`` it stands, and the nearest that is.
    """
    known = set(valid)
    for key in given:
        if key not in known:
            raise UserError(f"{where}.{key} is not known.{nearest(str(key), known)}")


def require(*modules: str, extra: str) -> None:
    """Ask for modules of packages that come with an extra; none is imported here.

    Raises:
        UserError: one is not installed; the message holds the command that installs them all.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UserError(f"this needs {module}, which is not installed: pip install 'layerroute[{extra}]'")
