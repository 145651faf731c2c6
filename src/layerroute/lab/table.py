"""A table as data: text for the reader, numbers for sorting, the same in terminal, Markdown and HTML."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

from layerroute.lab.format import MISSING, number

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column; ``numeric`` ones are right-aligned and sorted by value."""

    label: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number behind it (None for text and for what is missing)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Field(Generic[T]):
    """A column, and what it shows of each item of a table: see ``words``, ``figures`` and ``cells``."""

    label: str
    numeric: bool
    cell: Callable[[T], Cell]


def words(label: str, of: Callable[[T], str]) -> Field[T]:
    """A column of text."""
    return Field(label, False, lambda item: Cell(of(item)))


def figures(
    label: str, of: Callable[[T], float | None], show: Callable[[float | None], str] = number
) -> Field[T]:
    """A column of numbers; ``show`` writes one, and what is missing."""

    def cell(item: T) -> Cell:
        value = of(item)
        return Cell(show(value), value)

    return Field(label, True, cell)


def cells(label: str, of: Callable[[T], Cell | str]) -> Field[T]:
    """A right-aligned column of which each cell says itself how its number is written, or is text alone."""

    def cell(item: T) -> Cell:
        found = of(item)
        return found if isinstance(found, Cell) else Cell(found)

    return Field(label, True, cell)


def interval(low: float | None, high: float | None, show: Callable[[float | None], str]) -> str:
    """``low to high``; missing where there is none."""
    return MISSING if low is None or high is None else f"{show(low)} to {show(high)}"


def plain(value: float | None) -> str:
    """A whole number as it is."""
    return MISSING if value is None else str(value)


def whole(value: float | None) -> str:
    """A number without decimals."""
    return number(value, 0)


RowKind = Literal["arm", "improvement", "reference", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row.

    Its kind says what it is about: an arm's numbers, a change against the baseline, a yardstick that is no arm, or a
    run that did not complete and is in no mean.
    """

    cells: tuple[Cell, ...]
    kind: RowKind = "arm"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its notes. ``name`` is what texts call it (``Table 1``)."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def of(
        cls,
        name: str,
        title: str,
        fields: Sequence[Field[T]],
        items: Iterable[T],
        *,
        more: Iterable[Row] = (),
        notes: Iterable[str] = (),
        kind: Callable[[T], RowKind] = lambda item: "arm",
    ) -> "Table":
        """A row an item, then ``more`` rows."""
        rows = [Row(cells=tuple(one.cell(item) for one in fields), kind=kind(item)) for item in items]
        columns = tuple(Column(label=one.label, numeric=one.numeric) for one in fields)
        return cls(name=name, title=title, columns=columns, rows=(*rows, *more), notes=tuple(notes))

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{self.name}: {len(row.cells)} cells for {len(self.columns)} columns")

    def transposed(self) -> "Table":
        """The same table with its first column as header: for few rows and many columns."""
        arms = (Column(label=row.cells[0].text, numeric=True) for row in self.rows)
        columns = (Column(label=self.columns[0].label), *arms)
        rows = tuple(
            Row(cells=(Cell(column.label), *(row.cells[index] for row in self.rows)))
            for index, column in enumerate(self.columns)
            if index
        )
        return Table(name=self.name, title=self.title, columns=columns, rows=rows, notes=self.notes)

    def without(self, labels: Collection[str]) -> "Table":
        """The same table without the columns of these labels."""
        kept = [index for index, column in enumerate(self.columns) if column.label not in labels]
        return replace(
            self,
            columns=tuple(self.columns[index] for index in kept),
            rows=tuple(replace(row, cells=tuple(row.cells[index] for index in kept)) for row in self.rows),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: numbers where there are numbers, text elsewhere."""
        labels = [column.label for column in self.columns]
        rows = [
            {
                "kind": row.kind,
                **{
                    label: cell.text if cell.value is None else cell.value
                    for label, cell in zip(labels, row.cells, strict=True)
                },
            }
            for row in self.rows
        ]
        return {"name": self.name, "title": self.title, "rows": rows, "notes": list(self.notes)}

    def to_markdown(self) -> str:
        """A pipe table with its title and notes below it."""
        rule = ["---:" if column.numeric else "---" for column in self.columns]
        lines = [[escape_cell(column.label) for column in self.columns], rule]
        lines += [[escape_cell(cell.text) for cell in row.cells] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = [escape_text(note) for note in self.notes]
        caption = " ".join([f"*{self.name}: {escape_text(self.title)}.*", *notes])
        return f"{table}\n\n{caption}"


_SPECIAL = re.compile(r"[\\`*<>\[\]]|(?<!\w)_|_(?!\w)")


def escape_text(text: str) -> str:
    """Text that stands in Markdown as itself (an underscore within a word needs no escape)."""
    return _SPECIAL.sub(lambda match: f"\\{match.group()}", text)


def escape_cell(text: str) -> str:
    """Text that stands in a cell of a Markdown table as itself."""
    return " ".join(escape_text(text).replace("|", "\\|").split())


def text_cells(values: Sequence[str]) -> tuple[Cell, ...]:
    """Cells without numbers behind them."""
    return tuple(Cell(value) for value in values)
