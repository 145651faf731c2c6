"""Errors that are the user's to mend, told in one line."""

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterable


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


def expect(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with this message unless the condition holds."""
    if not condition:
        raise UserError(message)


LIMITS: dict[str, Callable[[float], bool]] = {
    "must be at least 1": lambda value: value >= 1,
    "must not be negative": lambda value: math.isfinite(value) and value >= 0.0,
    "must be a positive number": lambda value: math.isfinite(value) and value > 0.0,
    "must be above 0": lambda value: value > 0.0,
    "must be in [0, 1)": lambda value: 0.0 <= value < 1.0,
    "is a share from 0 to 1": lambda value: 0.0 <= value <= 1.0,
    "is a share, 0 <= share < 1": lambda value: 0.0 <= value < 1.0,
    "is a share of the run, 0 <= share < 1": lambda value: 0.0 <= value < 1.0,
}
"""What numbers of configurations may be held to, in the words of the message."""


def expect_limits(config: object, section: str, limit: str, *names: str) -> None:
    """Hold attributes of a configuration to one of :data:`LIMITS`.

    Raises:
        UserError: naming the key, its ``section`` and the value.
    """
    for name in names:
        value = getattr(config, name)
        expect(LIMITS[limit](value), f"{section}.{name} {limit}, got {value}")


def require(*modules: str, extra: str) -> None:
    """Ask for modules of packages that come with an extra; none is imported here.

    Raises:
        UserError: one is not installed; the message holds the command that installs them all.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UserError(f"this needs {module}, which is not installed: pip install 'layerroute[{extra}]'")
