"""An explanation: its sections, and the four ways to look at them."""

import dataclasses
import shutil

from rich.console import Console

from keras_llm.distribution import world
from keras_llm.explanation.facts import Section
from keras_llm.explanation.render_text import plain_text, screen
from keras_llm.html_template import render_html
from keras_llm.usual_range import Source

# Longer lines are hard to read.
MAX_WIDTH = 120


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` and `trace` return.

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
        lines = "line deserves" if count == 1 else "lines deserve"
        return f"▲ {count} {lines} a look" if count else ""

    @property
    def sources(self) -> list[Source]:
        """The publications that the usual values are from, each once."""
        facts = [fact for section in self.sections for fact in section.facts if fact.usual]
        return list(dict.fromkeys(source for fact in facts for source in fact.usual.sources))

    def to_dict(self) -> dict:
        """The explanation as JSON has it."""
        return {
            "title": self.title,
            "sections": [section.to_dict() for section in self.sections],
            "sources": dict(self.sources),
        }

    def to_text(self, width: int = 80) -> str:
        """The explanation as plain text, no line longer than `width`."""
        return plain_text(self, width)

    def to_html(self) -> str:
        """The explanation as one `<div>` of an HTML page, readable on light and on dark pages."""
        return render_html("explanation/explanation.html", explanation=self)

    def show(self, file):
        """Prints the explanation: coloured in a terminal, plain elsewhere.

        Of several processes the first does. Nothing is printed in a notebook, which shows the
        object itself.

        Args:
            file: A stream of text, such as `sys.stdout`.
        """
        console = Console(file=file)
        if console.is_jupyter or not world().is_first:
            return
        width = min(console.width, MAX_WIDTH)
        if console.is_terminal:
            console.print(screen(self, width), width=width)
        else:
            # Not every encoding has the characters of a curve.
            encoding = getattr(file, "encoding", None) or "utf-8"
            print(self.to_text(width).encode(encoding, "replace").decode(encoding), file=file)

    def __str__(self):
        return self.to_text(min(shutil.get_terminal_size().columns, MAX_WIDTH))

    def __repr__(self):
        return f"<Explanation of {self.title}>"

    def _repr_html_(self):
        return self.to_html()
