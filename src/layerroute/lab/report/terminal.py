"""Tables for the terminal: readable at 80 columns, and plain when piped."""

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from layerroute.lab.comparison import Comparison
from layerroute.lab.format import listing
from layerroute.lab.recall_length import rate_sentence
from layerroute.lab.skipping import SkippingComparison
from layerroute.lab.table import Column, Row, Table

_STYLES = {"improvement": "dim", "reference": "italic", "unfinished": "yellow"}
_SHORT = {"Seeds": "n", "Routing collapse?": "Collapse?"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Tables 1 to 3, differences and fairness, then what is missing, and the verdict last."""
    tables = comparison.tables
    for note in comparison.notes:
        console.print(Text(f"Note: {note}"))
    print_table(tables["main"], console)
    if comparison.bigram:
        console.print(Padding(Text(comparison.bigram), (0, 0, 1, 1), expand=False))
    if comparison.pairs:
        print_table(_without(tables["differences"], {"Detectable", "Not equal besides"}), console)
    for name in ("recall", "recall_differences"):
        if name in tables:
            print_table(_without(tables[name], {"Detectable", "Kind"}), console)
    for sentence in filter(None, map(rate_sentence, comparison.arms)):
        console.print(Padding(Text(sentence), (0, 0, 1, 1), expand=False))
    if tables["routing"].rows:
        print_table(tables["routing"], console)
    print_table(tables["efficiency"], console)
    print_transposed(tables["fairness"], console)
    if comparison.subject is not None and comparison.missing:
        console.print(Text(f"Missing controls: {listing(comparison.missing)}.", style="yellow"))
        console.print()
    console.print(Text(comparison.answer, style="bold"))
    if comparison.recall:
        console.print(Text(comparison.recall, style="bold"))
    for caveat in comparison.caveats:
        console.print(Text(caveat))


def print_skipping(comparison: SkippingComparison, console: Console) -> None:
    """Quality against compute, differences, and the verdict last."""
    for note in comparison.notes:
        console.print(Text(f"Note: {note}"))
    print_table(comparison.tables["main"], console)
    if comparison.tables["differences"].rows:
        print_table(comparison.tables["differences"], console)
    if "equal_cost" in comparison.tables:
        print_table(_without(comparison.tables["equal_cost"], {"Detectable"}), console)
    console.print(Text(comparison.verdict, style="bold"))


def print_table(table: Table, console: Console) -> None:
    """A table with its title above and its notes below."""
    console.print(Text(f"{table.name}. {table.title}", style="bold"))
    rich = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    widths = _widths(table, console.width)
    for column, width in zip(table.columns, widths, strict=True):
        label = Text(_SHORT.get(column.label, column.label))
        rich.add_column(label, justify="right" if column.numeric else "left", width=width, overflow="fold")
    for row in table.rows:
        rich.add_row(*(Text(cell.text) for cell in row.cells), style=_STYLES.get(row.kind, ""))
    console.print(rich)
    console.print()
    if table.notes:
        console.print(Padding(Text(" ".join(table.notes), style="dim"), (0, 0, 1, 1), expand=False))


def _widths(table: Table, room: int) -> list[int]:
    """Columns that fit ``room``: in full where they do; else texts, then numbers too, are broken between words."""
    texts = [
        [_SHORT.get(column.label, column.label), *(row.cells[index].text for row in table.rows)]
        for index, column in enumerate(table.columns)
    ]
    full = [max(map(len, column)) for column in texts]
    least = [max(len(word) for text in column for word in text.split() or [""]) for column in texts]
    room -= 2 * (len(full) - 1)
    for numbers_too in (False, True):
        may = [index for index, column in enumerate(table.columns) if numbers_too or not column.numeric]
        while sum(full) > room and any(full[index] > least[index] for index in may):
            full[max(may, key=lambda index: (full[index] > least[index], full[index] - least[index]))] -= 1
    # Not even word by word: the widest are cut within words.
    while sum(full) > room and max(full) > 6:
        full[full.index(max(full))] -= 1
    return full


def print_transposed(table: Table, console: Console) -> None:
    """A table of many columns turned round: its rows become columns, as many abreast as the width allows."""
    names = max(len(column.label) for column in table.columns)
    start = 0
    while start < len(table.rows):
        room, end = console.width - names, start
        while end < len(table.rows):
            room -= 3 + max(len(cell.text) for cell in table.rows[end].cells)
            if room < 0 and end > start:
                break
            end += 1
        part = Table(
            name=table.name,
            title=table.title if not start else f"{table.title} (continued)",
            columns=table.columns,
            rows=table.rows[start:end],
            notes=table.notes if end == len(table.rows) else (),
        )
        print_table(part.transposed(), console)
        start = end


def _without(table: Table, labels: set[str]) -> Table:
    kept = [index for index, column in enumerate(table.columns) if column.label not in labels]
    columns: tuple[Column, ...] = tuple(table.columns[index] for index in kept)
    rows = tuple(Row(cells=tuple(row.cells[index] for index in kept), kind=row.kind) for row in table.rows)
    return Table(name=table.name, title=table.title, columns=columns, rows=rows, notes=table.notes)
