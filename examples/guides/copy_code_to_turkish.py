"""Copies the code cells of the English guides into the Turkish ones.

Code is written once, in the English guides. A Turkish guide has prose cells of its own; whatever
stands in its code cells is replaced by the English guide's. The two must have the same kinds of
cells in the same order.
"""

import re
from pathlib import Path

GUIDES = Path(__file__).parent
CODE = "# %%"


def cells(source: str) -> list[tuple[str, str]]:
    """The cells of a script in percent format, each as its marker and all text after it."""
    parts = re.split(r"^(# %%(?: \[markdown\])?)\n", source, flags=re.MULTILINE)
    if parts[0]:
        raise ValueError(f"a guide starts with '# %%'. Received: {parts[0][:60]!r}")
    return list(zip(parts[1::2], parts[2::2], strict=True))


def with_code_of(english: str, turkish: str) -> str:
    """The Turkish guide with the English guide's code."""
    pairs = list(zip(cells(english), cells(turkish), strict=True))
    for number, ((marker, _), (other, _)) in enumerate(pairs):
        if marker != other:
            raise ValueError(f"cell {number} is {marker!r} in English and {other!r} in Turkish")
    return "".join(
        f"{marker}\n{text if marker == CODE else translated.rstrip() + space_after(text)}"
        for (marker, text), (_, translated) in pairs
    )


def space_after(text: str) -> str:
    """The empty lines at the end of a cell; a function needs two after it."""
    return text[len(text.rstrip()) :]


if __name__ == "__main__":
    for path in sorted(GUIDES.glob("[0-9]_*.py")):
        translation = GUIDES / "tr" / path.name
        translation.write_text(with_code_of(path.read_text(), translation.read_text()))
        print(f"tr/{path.name}")
