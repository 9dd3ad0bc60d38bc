"""An explanation as lines of text: coloured in a terminal, plain elsewhere."""

import io

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from keras_llm.explanation.facts import Curve, Fact, Section, Table
from keras_llm.value_text import value_text

# Widths of a line's columns: the name, the value, the usual values; the note has the rest.
INDENT, NAME, VALUE, USUAL = 2, 21, 8, 18
# Rows of a curve. Each is eight eighths high.
ROWS = 3
EIGHTHS = " ▁▂▃▄▅▆▇█"
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"
# The flag's colour is readable on white and on black.
DIM, FLAG, HEADING = "dim", "dark_orange3", "bold"


def plain_text(explanation, width: int) -> str:
    """The explanation without colours, no line longer than `width`."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
    )
    console.print(screen(explanation, width))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def screen(explanation, width: int) -> Group:
    """The explanation as something that rich prints."""
    sources = explanation.sources
    letters = dict(zip(sources, LETTERS, strict=False))
    lines = [Text(explanation.title, HEADING)]
    if explanation.verdict:
        lines.append(Text(explanation.verdict, FLAG))
    for section in explanation.sections:
        lines += ["", *section_lines(section, letters, width)]
    if letters:
        named = [f"{letter} {source.name}" for source, letter in letters.items()]
        lines += ["", Text("[ ] has the usual values: " + "; ".join(named), DIM)]
    return Group(*lines)


def section_lines(section: Section, letters, width: int):
    """The heading, the curve, the table and the facts."""
    yield Text.assemble((section.title, HEADING), f"  {section.subject}".rstrip())
    if section.curve:
        yield curve_lines(section.curve, width)
    if section.table:
        yield table_lines(section.table)
    for fact in section.facts:
        yield from fact_lines(fact, letters, width)


def fact_lines(fact: Fact, letters, width: int):
    """A fact: in four columns where there are usual values, else in two; then its flag."""
    # In a `Text` rich does not look for markup.
    name = Text(fact.name)
    if len(name) > NAME:
        yield Padding(name, (0, 0, 0, INDENT))
        name = Text()
    if fact.usual:
        marks = "".join(letters.get(source, "") for source in fact.usual.sources)
        usual = Text(f"[{fact.usual}]{marks}", DIM)
        cells = {NAME: name, VALUE: Text(fact.text), USUAL: usual}
        yield columns(cells, Text(fact.note, DIM))
    else:
        room = width - INDENT - NAME - 1
        fits = len(fact.text) + 2 + len(fact.note) <= room
        between = ("  " if fits else "\n") if fact.note else ""
        yield columns({NAME: name}, Text.assemble(fact.text, between, (fact.note, DIM)))
    if fact.flag:
        yield columns({NAME: Text()}, Text(f"▲ {fact.flag}", FLAG))


def columns(cells: dict[int, Text], rest: Text) -> Padding:
    """Cells of some widths, and what has the rest of the line."""
    grid = RichTable.grid(padding=(0, 1, 0, 0), expand=True)
    for width in cells:
        grid.add_column(width=width)
    grid.add_column(ratio=1)
    grid.add_row(*cells.values(), rest)
    return Padding(grid, (0, 0, 0, INDENT))


def curve_lines(curve: Curve, width: int) -> Padding:
    """The curve in blocks, above a line of updates on which the next one is marked."""
    columns = min(width - INDENT - NAME - 2, 60)
    end, peak = max(curve.steps[-1], 1), max(curve.values)
    values = np.interp(np.linspace(0, end, columns), curve.steps, curve.values)
    eighths = np.round(values / (peak or 1) * 8 * ROWS).astype(int)
    now = round(curve.step / end * (columns - 1))
    axis = ["─"] * columns
    axis[now] = "▲"
    lines = Text()
    for row in reversed(range(ROWS)):
        label = value_text(peak) if row == ROWS - 1 else ""
        blocks = "".join(EIGHTHS[min(max(e - 8 * row, 0), 8)] for e in eighths)
        lines.append(f"{label:>{NAME}} ", DIM).append(f"│{blocks}\n")
    lines.append(f"{0:>{NAME}} ", DIM).append("└" + "".join(axis) + "\n")
    lines.append(" " * (NAME + 2) + "0" + f"{end:,} updates".rjust(columns - 1), DIM)
    return Padding(lines, (0, 0, 0, INDENT))


def table_lines(table: Table) -> Padding:
    """The table as something that rich prints; texts that are too long end in an ellipsis."""
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in table.columns:
        grid.add_column(
            Text(column.name, DIM),
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in table.rows:
        cells = table.cells(row)
        # Tildes, since not every screen can draw a line through letters.
        grid.add_row(*(Text(f"~~{t}~~", "strike dim") if s else Text(t) for _, t, s in cells))
    return Padding(grid, (0, 0, 0, INDENT))
