"""An explanation as lines of text: coloured in a terminal, plain elsewhere."""

import io

import numpy as np
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from keras_llm.teaching.facts import Curve, Fact, Section, shown
from keras_llm.teaching.table import table_lines

# Columns of a line: what it is about, its value, where that usually lies; the rest is its meaning.
INDENT, NAME, VALUE, USUAL = 2, 21, 8, 18
# Rows of a curve. Each is eight eighths high.
ROWS = 3
EIGHTHS = " ▁▂▃▄▅▆▇█"
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"
# The flag is as readable on white as on black.
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
    letters = dict(zip(explanation.sources, LETTERS, strict=False))
    lines = [Text(explanation.title, HEADING)]
    if explanation.verdict:
        lines.append(Text(explanation.verdict, FLAG))
    for section in explanation.sections:
        lines += ["", *section_lines(section, letters, width)]
    if letters:
        named = [f"{letter} {explanation.sources[key][0]}" for key, letter in letters.items()]
        lines += ["", Text("[ ] is where a setting usually lies: " + "; ".join(named), DIM)]
    return Group(*lines)


def section_lines(section: Section, letters, width: int):
    """The heading, the curve, the table and the facts."""
    yield Text.assemble((section.title, HEADING), f"  {section.subject}".rstrip())
    if section.curve:
        yield curve_lines(section.curve, width)
    if section.table:
        yield table_lines(section.table, INDENT)
    for fact in section.facts:
        yield from fact_lines(fact, letters, width)


def fact_lines(fact: Fact, letters, width: int):
    """A fact: in columns where there is something to compare, else in words; then its flag."""
    # Of `Text`, in which rich looks for no markup.
    name = Text(fact.name)
    if len(name) > NAME:
        yield Padding(name, (0, 0, 0, INDENT))
        name = Text()
    if fact.typical:
        marks = "".join(letters[key] for key in fact.typical.sources)
        usual = Text(f"[{fact.typical}]{marks}", DIM)
        yield columns(name, Text(fact.text), usual, Text(fact.note, DIM))
    else:
        room = width - INDENT - NAME - 1
        fits = len(fact.text) + 2 + len(fact.note) <= room
        between = ("  " if fits else "\n") if fact.note else ""
        yield statement(name, Text.assemble(fact.text, between, (fact.note, DIM)))
    if fact.flag:
        yield statement(Text(), Text(f"▲ {fact.flag}", FLAG))


def columns(name: Text, value: Text, usual: Text, note: Text) -> Padding:
    """A line of four columns."""
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    for width in (NAME, VALUE, USUAL):
        grid.add_column(width=width)
    grid.add_column(ratio=1)
    grid.add_row(name, value, usual, note)
    return Padding(grid, (0, 0, 0, INDENT))


def statement(name: Text, text: Text) -> Padding:
    """A line of two columns."""
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(width=NAME)
    grid.add_column(ratio=1)
    grid.add_row(name, text)
    return Padding(grid, (0, 0, 0, INDENT))


def curve_lines(curve: Curve, width: int) -> Padding:
    """The curve in blocks, over a line of updates on which today is marked."""
    columns = min(width - INDENT - NAME - 2, 60)
    end, peak = max(curve.steps[-1], 1), max(curve.values)
    values = curve.at(np.linspace(0, end, columns))
    eighths = np.round(values / (peak or 1) * 8 * ROWS).astype(int)
    today = round(curve.step / end * (columns - 1))
    axis = ["─"] * columns
    axis[today] = "▲"
    last = f"{end:,} updates"
    lines = Text()
    for row in reversed(range(ROWS)):
        label = shown(peak) if row == ROWS - 1 else ""
        blocks = "".join(EIGHTHS[min(max(e - 8 * row, 0), 8)] for e in eighths)
        lines.append(f"{label:>{NAME}} ", DIM).append(f"│{blocks}\n")
    lines.append(f"{0:>{NAME}} ", DIM).append("└" + "".join(axis) + "\n")
    lines.append(" " * (NAME + 2) + "0" + last.rjust(columns - 1), DIM)
    return Padding(lines, (0, 0, 0, INDENT))
