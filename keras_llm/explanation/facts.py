"""What an explanation is made of, before it is rendered: sections of facts, curves and tables."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from keras_llm.usual_range import UsualRange
from keras_llm.value_text import value_text


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line of an explanation.

    Attributes:
        name: What it is about: an argument's name, or a few words.
        value: The value, of a type that JSON has.
        text: The value as people read it; made from `value` where it is not given.
        note: What it means.
        usual: Its usual values.
        flag: What is unusual or wrong about it; empty where nothing is.
        details: What is too long for a screen, such as the paths of variables.
    """

    name: str
    value: Any
    text: str = ""
    note: str = ""
    usual: UsualRange | None = None
    flag: str = ""
    details: Sequence[str] = ()

    def __post_init__(self):
        object.__setattr__(self, "text", self.text or value_text(self.value))

    def to_dict(self) -> dict:
        """The fact as JSON has it."""
        usual = self.usual and {
            "low": self.usual.low,
            "high": self.usual.high,
            "sources": [source.name for source in self.usual.sources],
        }
        return vars(self) | {"usual": usual, "details": list(self.details)}


def setting(name: str, value, note: str, usual: UsualRange | None) -> Fact:
    """A setting beside its usual values, flagged where it is not one of them."""
    return Fact(name, value, note=note, usual=usual, flag=usual.warning(value) if usual else "")


@dataclasses.dataclass(frozen=True)
class Curve:
    """A learning rate over the updates, and where training is now.

    Attributes:
        steps, values: The learning rate of some updates, in order.
        step, value: The next update, and its learning rate.
    """

    steps: list[int]
    values: list[float]
    step: int
    value: float


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        text: How people read one of its values; None makes an empty cell.
        is_number: Whether it is aligned to the right.
    """

    name: str
    text: Callable[[Any], str] = str
    is_number: bool = True


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        values: Of each column, of types that JSON has; None where there is no value.
        struck: Columns whose text is struck through.
    """

    values: tuple
    struck: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def cells(self, row: Row) -> list[tuple[Column, str, bool]]:
        """Of each cell of a row: its column, its text, and whether that is struck through."""
        return [
            (column, "" if value is None else column.text(value), i in row.struck)
            for i, (column, value) in enumerate(zip(self.columns, row.values, strict=True))
        ]

    def to_dict(self) -> list[dict]:
        """The rows as JSON has them, each by its columns' names."""
        names = [column.name for column in self.columns]
        return [
            dict(zip(names, row.values, strict=True)) | {"struck": [names[i] for i in row.struck]}
            for row in self.rows
        ]


@dataclasses.dataclass(frozen=True)
class Section:
    """What one argument of `compile` decided, or one stage of a step.

    Attributes:
        title: What the section is about.
        subject: The class that was chosen, or the line of code that the stage is.
        facts: Its lines.
        curve: A picture above the lines.
        table: A table above the lines.
    """

    title: str
    subject: str
    facts: tuple[Fact, ...]
    curve: Curve | None = None
    table: Table | None = None

    def __getitem__(self, name: str) -> Fact:
        """The fact of that name."""
        for fact in self.facts:
            if fact.name == name:
                return fact
        raise KeyError(f"{self.title!r} has no fact {name!r}: {[f.name for f in self.facts]}")

    def to_dict(self) -> dict:
        """The section as JSON has it."""
        return {
            "title": self.title,
            "subject": self.subject,
            "facts": [fact.to_dict() for fact in self.facts],
            "curve": self.curve and dict(vars(self.curve)),
            "table": self.table and self.table.to_dict(),
        }
