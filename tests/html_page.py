"""A page as tests look at it."""

from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}


class Page(HTMLParser):
    """Reads HTML, and refuses it where an element is not closed, or not in order.

    Attributes:
        attributes: `(tag, name, value)` of every element.
        texts: Each piece of text, with the tags that it is in.
        tables: Of each table, its rows of cells, as texts.
    """

    def __init__(self, source: str):
        super().__init__()
        self.source = source
        self.open, self.attributes, self.texts, self.tables = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def text(self, tag: str) -> list[str]:
        """The text in each tag of that name."""
        return [text for path, text in self.texts if path and path[-1] == tag]

    def words(self) -> str:
        """All text but styles."""
        return " ".join(text for path, text in self.texts if "style" not in path)

    def values(self, name: str) -> list[str]:
        """Of each attribute of that name."""
        return [value for _, attribute, value in self.attributes if attribute == name]
