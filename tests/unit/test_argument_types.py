"""Types of arguments: what fits is read, what does not is told in words."""

from argparse import ArgumentTypeError

import pytest

from layerroute.argument_types import at_least, port, rate, seed, share, size, temperature


def test_what_fits_is_read() -> None:
    assert (at_least(1)("1"), share("0.25"), rate("0"), rate("1")) == (1, 0.25, 0.0, 1.0)
    assert (temperature("0"), temperature("1e-40")) == (0.0, 1e-40)
    assert (port("8000"), seed("-5"), seed(str(2**63 - 1))) == (8000, -5, 2**63 - 1)
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
        (temperature, "-0.1", "-0.1 is not a temperature; give 0 or more"),
        (temperature, "nan", "nan is not a temperature"),
        (temperature, "inf", "inf is not a temperature"),
        (port, "70000", "70000 is not a port from 1 to 65535"),
        (port, "0", "not a port"),
        (port, "80.5", "'80.5' is not a whole number"),
        (seed, "-99999999999999999999", "is not a seed of 64 bits"),
        (seed, str(2**63), "is not a seed of 64 bits"),
        (seed, "one", "'one' is not a whole number"),
        (size("rows x tokens", "4x512"), "4x0", "'4x0' is not rows x tokens, all above 0, as 4x512"),
        (size("rows x tokens", "4x512"), "4x5x6", "is not rows x tokens"),
        (size("rows x tokens", "4x512"), "x4", "is not rows x tokens"),
    ],
)
def test_what_does_not_fit_is_told(read: object, word: str, message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        read(word)  # type: ignore[operator]
