"""How numbers are written, in the terminal and in every report: one home, so that they agree everywhere."""

import math
from collections.abc import Sequence

MISSING = "–"
MINUS = "−"
PATH_NAMES = {"gdn": "GDN", "softmax": "softmax", "run": "run", "skip": "skip"}


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` decimals, a typographic minus, thousands separated; ``–`` where it is missing."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """Like `number`, with an explicit plus."""
    text = number(value, digits)
    return f"+{text}" if value is not None and text not in (MISSING,) and not text.startswith(MINUS) else text


def plus_minus(mean: float | None, half_width: float | None, digits: int = 3) -> str:
    """``mean ± half width``; the mean alone where no interval exists (one seed)."""
    if mean is None or half_width is None:
        return number(mean, digits)
    return f"{number(mean, digits)} ± {number(half_width, digits)}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A share of one as a percentage."""
    text = number(None if fraction is None else 100 * fraction, digits)
    return text if text == MISSING else f"{text}%"


def signed_percent(fraction: float | None, digits: int = 1) -> str:
    """A relative change as a percentage with its sign."""
    text = signed(None if fraction is None else 100 * fraction, digits)
    return text if text == MISSING else f"{text}%"


def points(fraction: float | None) -> str:
    """A difference of two shares of one in percentage points, with its sign."""
    return signed(None if fraction is None else 100 * fraction, 1)


def count(value: float | None, unit: str = "") -> str:
    """A large number in three significant digits with k, M, G or T; ``unit`` follows the prefix."""
    if value is None or not math.isfinite(value):
        return MISSING
    prefixes = ("", "k", "M", "G", "T", "P")
    scaled, index = float(value), 0
    while abs(float(f"{scaled:.3g}")) >= 1000 and index < len(prefixes) - 1:
        scaled, index = scaled / 1000, index + 1
    if index == 0 and float(value).is_integer():
        text = str(int(value))
    else:
        magnitude = abs(float(f"{scaled:.3g}"))
        text = f"{scaled:.{0 if magnitude >= 100 else 1 if magnitude >= 10 else 2}f}"
    tail = f"{prefixes[index]}{unit}"
    return f"{text} {tail}".rstrip().replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def learning_rate(value: float | None) -> str:
    """A learning rate as people write it: ``1e-3``, ``3e-4``, ``2.5e-4``."""
    if value is None or not math.isfinite(value):
        return MISSING
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def probability(p: float | None) -> str:
    """A p value, ``<0.001`` where three decimals would show nothing."""
    return MISSING if p is None else "<0.001" if p < 0.001 else number(p)


def plural(amount: int, word: str, words: str | None = None) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{amount} {word if amount == 1 else words or word + 's'}"


def listing(words: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def path_name(path: str) -> str:
    """A path's name as a reader writes it: ``GDN``, ``softmax``."""
    return PATH_NAMES.get(path, path)
