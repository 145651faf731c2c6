"""Types of arguments: what fits is read, what does not is told in words."""

from argparse import ArgumentTypeError

import pytest

from layerroute.argument_types import at_least, rate, share, size


def test_what_fits_is_read() -> None:
    assert (at_least(1)("1"), share("0.25"), rate("0"), rate("1")) == (1, 0.25, 0.0, 1.0)
    assert size("rows x tokens", "4x512")("12x7") == (12, 7)


@pytest.mark.parametrize(
    ("read", "word", "message"),
    [
        (at_least(3), "2", "2 is too few; it must be at least 3"),
        (at_least(0), "-1", "at least 0"),
        (at_least(1), "1.5", "'1.5' is not a whole number"),
        (share, "0", "0 is not a share between 0 and 1"),
        (share, "1", "between 0 and 1"),
        (share, "nan", "between 0 and 1"),
        (rate, "1.01", "1.01 is not a share from 0 to 1"),
        (rate, "half", "'half' is not a number"),
        (size("rows x tokens", "4x512"), "4x0", "'4x0' is not rows x tokens, all above 0, as 4x512"),
        (size("rows x tokens", "4x512"), "4x5x6", "is not rows x tokens"),
        (size("rows x tokens", "4x512"), "x4", "is not rows x tokens"),
    ],
)
def test_what_does_not_fit_is_told(read: object, word: str, message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        read(word)  # type: ignore[operator]
