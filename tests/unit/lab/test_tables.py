import pytest

from layerroute.capabilities.attention.settings import pattern_text
from layerroute.lab.table import Cell, Column, Row, Table, escape_cell, escape_text


def table() -> Table:
    return Table(
        name="Table 9",
        title="Things",
        columns=(Column(label="Thing"), Column(label="Size", numeric=True)),
        rows=(Row(cells=(Cell("a|b_c"), Cell("1.0", 1.0))), Row(cells=(Cell("<d>"), Cell("–")))),
        notes=("A *note*.",),
    )


def test_cells_must_fit_columns() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table(name="T", title="", columns=table().columns, rows=(Row(cells=(Cell("a"),)),))


def test_markdown() -> None:
    lines = table().to_markdown().splitlines()
    assert lines[:2] == ["| Thing | Size |", "| --- | ---: |"]
    assert lines[2] == "| a\\|b_c | 1.0 |"
    assert lines[3] == "| \\<d\\> | – |"
    assert lines[-1] == "*Table 9: Things.* A \\*note\\*."


def test_transposed() -> None:
    turned = table().transposed()
    assert [column.label for column in turned.columns] == ["Thing", "a|b_c", "<d>"]
    assert [cell.text for cell in turned.rows[0].cells] == ["Size", "1.0", "–"]


def test_dict_has_numbers_where_there_are_numbers() -> None:
    assert table().to_dict()["rows"] == [
        {"kind": "arm", "Thing": "a|b_c", "Size": 1.0},
        {"kind": "arm", "Thing": "<d>", "Size": "–"},
    ]


def test_escapes() -> None:
    assert escape_text("a_b _c_ `d` [e]") == "a_b \\_c\\_ \\`d\\` \\[e\\]"
    assert escape_cell("two\nlines | three") == "two lines \\| three"


def test_pattern() -> None:
    assert pattern_text(["gdn", "gdn", "routed", "softmax"]) == "2 × gdn, routed, softmax"
