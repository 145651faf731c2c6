"""What a request may ask for, without a server."""

from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="pip install 'layerroute[serve]'")

from layerroute.serving.requests import Refused, check_request


def test_what_is_nested_too_deep_is_refused() -> None:
    """The reader of JSON has a limit, too: how deep it reads depends on who calls it."""
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(Refused, match="user: nested too deep"):
        check_request({"user": value}, {"user"}, 10)
