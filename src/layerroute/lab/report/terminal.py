"""Tables for the terminal: readable at 80 columns, and plain when piped."""

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from layerroute.lab.compare import Comparison
from layerroute.lab.format import listing
from layerroute.lab.table import Table

_STYLES = {"improvement": "dim", "reference": "italic", "unfinished": "yellow"}
_SHORT = {"Seeds": "n", "Routing collapse?": "Collapse?"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The tables that the question shows in the terminal, then what is missing, and the verdict last."""
    question = comparison.question
    shown = [one for beside in comparison.beside for one in beside.terminal]
    # What is asked beside comes after the differences that it adds to.
    place = next((i + 1 for i, one in enumerate(question.terminal) if one.table == "differences"), 0)
    for note in comparison.notes:
        console.print(Text(f"Note: {note}"))
    for one in (*question.terminal[:place], *shown, *question.terminal[place:]):
        table = comparison.tables.get(one.table)
        if table is not None and (table.rows or one.table == "main"):
            (print_transposed if one.turned else print_table)(table.without(one.hide), console)
        for sentence in filter(None, one.below(comparison)):
            console.print(Padding(Text(sentence), (0, 0, 1, 1), expand=False))
    if question.against == "controls":
        console.print(Text(comparison.verdict, style="bold"))
        return
    if comparison.subject is not None and comparison.missing:
        console.print(Text(f"Missing controls: {listing(comparison.missing)}.", style="yellow"))
        console.print()
    for answer in (comparison.answer, *comparison.answers_beside):
        console.print(Text(answer, style="bold"))
    for caveat in comparison.caveats:
        console.print(Text(caveat))


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
