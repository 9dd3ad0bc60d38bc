"""A table in an explanation: its numbers for programs, its lines for a screen and for a page."""

import dataclasses
from collections.abc import Callable
from html import escape
from typing import Any

from rich import box
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        text: How people read one of its values; None makes an empty cell.
        is_number: Whether it stands to the right.
    """

    name: str
    text: Callable[[Any], str] = str
    is_number: bool = True

    def shown(self, value) -> str:
        """A value as people read it."""
        return "" if value is None else self.text(value)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        values: Of each column, of types that JSON has; None where there is nothing to say.
        struck: Columns whose text is struck out.
    """

    values: tuple
    struck: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def to_dict(self) -> list[dict]:
        """The rows as JSON has them, each by its columns' names."""
        names = [column.name for column in self.columns]
        return [
            dict(zip(names, row.values, strict=True)) | {"struck": [names[i] for i in row.struck]}
            for row in self.rows
        ]


def table_lines(table: Table, indent: int) -> Padding:
    """The table as something that rich prints; texts that are too long end in an ellipsis."""
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in table.columns:
        grid.add_column(
            Text(column.name, "dim"),
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in table.rows:
        cells = [
            column.shown(value) for column, value in zip(table.columns, row.values, strict=True)
        ]
        # Tildes strike where a screen has no lines through letters.
        texts = [
            Text(f"~~{cell}~~", "strike dim") if i in row.struck else Text(cell)
            for i, cell in enumerate(cells)
        ]
        grid.add_row(*texts)
    return Padding(grid, (0, 0, 0, indent))


def table_html(table: Table) -> str:
    """The table as a piece of a page."""
    head = "".join(f"<td{side(c)}><small>{escape(c.name)}</small></td>" for c in table.columns)
    rows = "".join(row_html(table, row) for row in table.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="rows">{table}</div>'


def row_html(table: Table, row: Row) -> str:
    """One row."""
    cells = []
    for i, (column, value) in enumerate(zip(table.columns, row.values, strict=True)):
        cell = escape(column.shown(value))
        cell = f"<s>{cell}</s>" if i in row.struck else cell
        cells.append(f"<td{side(column)}>{cell}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def side(column: Column) -> str:
    """The attribute that puts numbers to the right."""
    return f' style="text-align: {"right" if column.is_number else "left"}"'
