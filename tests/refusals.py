"""The tables of refusals in `docs/outside_models.md`, and what is raised."""

import ast
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "outside_models.md").read_text()


def table(heading):
    """What is refused, in the section of this heading: the error and the message of each."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    return {what: (error.strip("`"), message.strip("`")) for what, error, message in cells}


def raised(call):
    """An error's class, and its message without what Keras writes around that of a layer."""
    with pytest.raises(Exception) as error:
        call()
    framed = re.match(r"Exception encountered.*?\x1b\[1m(.*)\x1b\[0m", str(error.value), re.DOTALL)
    return type(error.value).__name__, framed[1] if framed else str(error.value)


def assert_raised(row, call):
    """A row of a table is what a call raises; "..." stands for any text."""
    error, message = row
    pattern = re.escape(message).replace(re.escape("..."), ".*")
    name, text = raised(call)
    assert name == error
    assert re.fullmatch(pattern, text, flags=re.DOTALL), text


def assert_complete(table, files, at_least):
    """A table has a message with the longest piece of text of each error that files raise."""
    calls = [
        node.exc
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    ]
    assert len(calls) >= at_least
    messages = "\n".join(message for _, message in table.values())
    for call in calls:
        texts = [str(node.value) for node in ast.walk(call) if isinstance(node, ast.Constant)]
        # Without a text of its own it raises what was put together before.
        assert max(texts, key=len, default="") in messages
