"""What an explanation is made of, before anybody has drawn it: sections of facts."""

import dataclasses
import math
from typing import Any

import numpy as np

from keras_llm.teaching.table import Table


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a setting usually lies, in published training runs.

    Attributes:
        low, high: The ends; both are usual.
        sources: Keys of `keras_llm.teaching.typical.SOURCES`.
        below, above: Why a value beyond that end deserves a look.
        none: Why None does; empty where leaving the setting out is usual too.
    """

    low: float
    high: float
    sources: tuple[str, ...]
    below: str = ""
    above: str = ""
    none: str = ""

    def flag(self, value) -> str:
        """Why `value` deserves a look; empty where it is usual."""
        if value is None:
            return self.none
        # What went through float32 is still the number that was written.
        if value < self.low and not math.isclose(value, self.low, rel_tol=1e-6):
            return self.below
        if value > self.high and not math.isclose(value, self.high, rel_tol=1e-6):
            return self.above
        return ""

    def __str__(self):
        if self.low == self.high:
            return shown(self.low)
        return f"{shown(self.low)} – {shown(self.high)}"


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line of an explanation.

    Attributes:
        name: What it is about: an argument's name, or a few words.
        value: The value, of a type that JSON has.
        text: The value as people read it; made from `value` where it is not given.
        note: What it means.
        typical: Where it usually lies.
        flag: Why it deserves a look; empty where it does not.
        details: What is too long for a screen, such as the paths of variables.
    """

    name: str
    value: Any
    text: str = ""
    note: str = ""
    typical: Range | None = None
    flag: str = ""
    details: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "text", self.text or shown(self.value))

    def to_dict(self) -> dict:
        """The fact as JSON has it."""
        typical = self.typical and {
            "low": self.typical.low,
            "high": self.typical.high,
            "sources": list(self.typical.sources),
        }
        return {
            "name": self.name,
            "value": self.value,
            "text": self.text,
            "note": self.note,
            "typical": typical,
            "flag": self.flag,
            "details": list(self.details),
        }


@dataclasses.dataclass(frozen=True)
class Curve:
    """A learning rate over the updates, and where training is today.

    Attributes:
        steps, values: The learning rate of some updates, in order.
        step, value: The next update, and its learning rate.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    step: int
    value: float

    def to_dict(self) -> dict:
        """The curve as JSON has it."""
        return {
            "steps": list(self.steps),
            "values": list(self.values),
            "step": self.step,
            "value": self.value,
        }

    def at(self, steps) -> np.ndarray:
        """The curve between its points."""
        return np.interp(steps, self.steps, self.values)


@dataclasses.dataclass(frozen=True)
class Section:
    """What one argument of `compile` decided.

    Attributes:
        title: What the section is about.
        subject: The class that was chosen.
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
            "curve": self.curve and self.curve.to_dict(),
            "table": self.table and self.table.to_dict(),
        }


def setting(name: str, value, note: str, typical: Range | None) -> Fact:
    """A setting beside its usual range, flagged where it lies outside."""
    return Fact(
        name, value, note=note, typical=typical, flag=typical.flag(value) if typical else ""
    )


def shown(value) -> str:
    """A value as people write it.

    >>> shown(30522), shown(0.0010000000474974513), shown(5e-5), shown(0.999), shown(None)
    ('30,522', '1e-3', '5e-5', '0.999', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    # Six digits: as many as float32 keeps of what was typed.
    if value == 0 or 0.01 <= abs(value) < 1e6 or not math.isfinite(value):
        return f"{value:,.6g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
