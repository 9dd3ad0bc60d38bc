"""An explanation: its sections, and the four ways to look at them."""

import dataclasses
import shutil

from rich.console import Console

from keras_llm.teaching.facts import Section
from keras_llm.teaching.render_html import html
from keras_llm.teaching.render_text import plain_text, screen
from keras_llm.teaching.typical import SOURCES

# Wider than this, eyes lose the line.
WIDEST = 120


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` returns.

    Attributes:
        title: The model, and its size.
        sections: What was decided, argument by argument.
    """

    title: str
    sections: tuple[Section, ...]

    def __getitem__(self, title: str) -> Section:
        """The section of that title."""
        for section in self.sections:
            if section.title == title:
                return section
        raise KeyError(f"No section {title!r}: {[s.title for s in self.sections]}")

    @property
    def flags(self) -> dict[str, str]:
        """What deserves a look, by `"section: fact"`, and why."""
        return {
            f"{section.title}: {fact.name}": fact.flag
            for section in self.sections
            for fact in section.facts
            if fact.flag
        }

    @property
    def verdict(self) -> str:
        """How many lines deserve a look; empty where none does."""
        count = len(self.flags)
        if not count:
            return ""
        return f"▲ {count} {'line deserves' if count == 1 else 'lines deserve'} a look"

    @property
    def sources(self) -> dict[str, tuple[str, str]]:
        """Where the usual ranges are from: what and when, and where to read it."""
        keys = [
            key
            for section in self.sections
            for fact in section.facts
            if fact.typical
            for key in fact.typical.sources
        ]
        return {key: SOURCES[key] for key in dict.fromkeys(keys)}

    def to_dict(self) -> dict:
        """The explanation as JSON has it."""
        return {
            "title": self.title,
            "sections": [section.to_dict() for section in self.sections],
            "sources": {key: list(source) for key, source in self.sources.items()},
        }

    def to_text(self, width: int = 80) -> str:
        """The explanation as plain text, no line longer than `width`."""
        return plain_text(self, width)

    def to_html(self) -> str:
        """The explanation as a piece of an HTML page, readable on light and on dark ground."""
        return html(self)

    def show(self, file):
        """Prints the explanation: coloured in a terminal, plain elsewhere.

        Nothing is printed in a notebook, which shows the object itself.

        Args:
            file: A stream of text, such as `sys.stdout`.
        """
        console = Console(file=file)
        if console.is_jupyter:
            return
        width = min(console.width, WIDEST)
        if console.is_terminal:
            console.print(screen(self, width), width=width)
        else:
            # Not every pipe has the characters of a curve.
            encoding = getattr(file, "encoding", None) or "utf-8"
            print(self.to_text(width).encode(encoding, "replace").decode(encoding), file=file)

    def __str__(self):
        return self.to_text(min(shutil.get_terminal_size().columns, WIDEST))

    def __repr__(self):
        return f"<Explanation of {self.title}>"

    def _repr_html_(self):
        return self.to_html()
