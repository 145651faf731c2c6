"""The pages that people read: every table has a head, and its rows are as wide as that."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def cells(line: str) -> int:
    return len(re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))) - 2


def faults(text: str) -> list[str]:
    """Lines of tables that have no head, or are wider or narrower than it."""
    found = []
    for table, lines in itertools.groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if not table:
            continue
        head, *rest = lines
        if not rest or not re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", rest[0]):
            found.append(f"no head: {head}")
            continue
        found += [
            f"{cells(row)} cells, not {cells(head)}: {row}" for row in rest if cells(row) != cells(head)
        ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_heads_and_even_rows(page: Path) -> None:
    assert faults(page.read_text(encoding="utf-8")) == []


def test_a_headless_table_and_an_uneven_row_are_seen() -> None:
    assert faults("| a | b |\n|---|---|\n| `x|y` | 2 |\n") == []
    assert faults("| a | b |\n| 1 | 2 |\n") == ["no head: | a | b |"]
    assert faults("| a | b |\n|---|---|\n| 1 | 2 | 3 |\n") == ["3 cells, not 2: | 1 | 2 | 3 |"]
