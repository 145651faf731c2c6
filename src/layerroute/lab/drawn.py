"""Benchmark records: reading them, and which are drawn; apart, so that nobody needs a plotting library for that."""

import json
from pathlib import Path
from typing import Any

from layerroute.errors import UserError

DRAWN = ("prefill", "decode", "train-skipping", "attention", "hybrid")
"""Cases whose records can be drawn as speed-up against the share left out."""


def read_benchmark(path: Path) -> dict[str, Any]:
    """A record that ``layerroute bench CASE --out`` wrote.

    Raises:
        UserError: a file that cannot be read, or is none.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(
            f"{path} is not JSON; give a file that `layerroute bench CASE --out` wrote."
        ) from None
    rows = record.get("rows") if isinstance(record, dict) else None
    if not isinstance(rows, list) or record.get("kind") != "benchmark":
        raise UserError(f"{path} is not a record of `layerroute bench`.")
    return dict(record)
