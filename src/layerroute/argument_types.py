"""Types of command-line arguments: a value is checked while the line is read. No torch here."""

import math
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence

SEEDS = 2**63
"""Seeds are below it."""


def at_least(least: int) -> Callable[[str], int]:
    """Whole numbers from ``least`` on."""

    def whole(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            raise ArgumentTypeError(f"{word!r} is not a whole number") from None
        if number < least:
            raise ArgumentTypeError(f"{number} is too few; it must be at least {least}")
        return number

    return whole


def share(word: str) -> float:
    """A number between 0 and 1, and neither of them."""
    return _number(word, "a share between 0 and 1", lambda number: 0.0 < number < 1.0)


def rate(word: str) -> float:
    """A number from 0 to 1, both included."""
    return _number(word, "a share from 0 to 1", lambda number: 0.0 <= number <= 1.0)


def temperature(word: str) -> float:
    """A number from 0 on."""
    return _number(word, "a temperature; give 0 or more", lambda number: 0.0 <= number < math.inf)


def port(word: str) -> int:
    """A port to listen on. The system takes a larger number for another port."""
    return int(_number(word, "a port from 1 to 65535", lambda number: 1 <= number <= 65535, int))


def seed(word: str) -> int:
    """A seed, as PyTorch takes one."""
    return int(_number(word, "a seed of 64 bits", lambda number: abs(number) < SEEDS, int))


def _number(
    word: str, wanted: str, fits: Callable[[float], bool], kind: Callable[[str], float] = float
) -> float:
    try:
        number = kind(word)
    except ValueError:
        raise ArgumentTypeError(f"{word!r} is not a {'whole ' * (kind is int)}number") from None
    if not fits(number):
        raise ArgumentTypeError(f"{word} is not {wanted}")
    return number


def size(meaning: str, example: str) -> Callable[[str], tuple[int, ...]]:
    """Whole numbers above 0 with an x between them: ``size("rows x tokens", "4x512")`` reads two."""

    def read(word: str) -> tuple[int, ...]:
        numbers = word.split("x")
        if len(numbers) != len(example.split("x")) or not all(
            one.isdecimal() and int(one) for one in numbers
        ):
            raise ArgumentTypeError(f"{word!r} is not {meaning}, all above 0, as {example}")
        return tuple(map(int, numbers))

    return read


def add_choice(
    parser: ArgumentParser, option: str, choices: Sequence[str], default: str, what: str = ""
) -> None:
    """An option that is one of these words; its help is ``what`` and the default."""
    told = f"{what} (default: {default})" if what else f"default: {default}"
    parser.add_argument(option, choices=choices, default=default, help=told)


def add_number(
    parser: ArgumentParser, option: str, default: int | None, what: str, *, least: int = 1, metavar: str = "N"
) -> None:
    """An option that is a whole number from ``least`` on; its help is ``what``, and the default if there is one."""
    told = what if default is None else f"{what} (default: {default})".lstrip()
    parser.add_argument(option, type=at_least(least), default=default, metavar=metavar, help=told)
