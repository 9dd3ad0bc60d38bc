"""A corpus that needs no download: Python's manual and the docstrings of its library."""

import ast
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import tensorflow_datasets as tfds

from keras_llm.data.local_builder import LocalBuilder

NOT_PROSE = {"test", "tests", "idle_test", "pydoc_data"}
LONG_PARAGRAPH = 80


class PythonManual(LocalBuilder):
    """The language reference as `help()` shows it, and the docstrings of the standard library.

    About 2.5 MB of English prose and code. A document is a topic of the manual, or a module: its
    docstring, then the signature and docstring of everything in it. Modules are parsed and never
    imported. Which documents are held out depends on their names alone.

    The manual often repeats itself. A long paragraph is kept in the first document only, so that
    no held-out document contains text that was trained on.
    """

    # The text depends on the version of Python.
    VERSION = tfds.core.Version("{}.{}.{}".format(*sys.version_info))
    fields = ("text",)
    homepage = "https://docs.python.org"

    def rows(self):
        """Topics and modules."""
        for name, text in unrepeated(manual_topics() | module_docstrings()):
            yield name, name, (text,)


def manual_topics() -> dict[str, str]:
    """The topics of the manual by name, the longest first, since shorter ones repeat it."""
    names = sorted(topics, key=lambda name: (-len(topics[name]), name))
    return {f"topic {name}": topics[name].strip() for name in names}


def module_docstrings() -> dict[str, str]:
    """The docstrings of every module of the standard library that is written in Python."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names and not NOT_PROSE.intersection(parts):
            name = ".".join(parts).removesuffix(".__init__")
            with tokenize.open(path) as file:
                tree = ast.parse(file.read())
            entries = list(docstrings(tree, name))
            if entries:
                documents[f"module {name}"] = "\n\n".join(entries)
    return documents


def docstrings(node: ast.AST, name: str) -> Iterator[str]:
    """The docstring of a module, class or function under its signature, then those inside it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield f"{signature(node, name)}\n\n{docstring}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from docstrings(child, name)


def signature(node: ast.AST, name: str) -> str:
    """The heading as in `help()`: `module json`, `class json.JSONEncoder`, `json.loads(s, ...)`."""
    if isinstance(node, ast.Module):
        return f"module {name}"
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    return f"{name}({ast.unparse(node.args)})"


def unrepeated(documents: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The documents without the long paragraphs of earlier ones; mostly repeated ones left out."""
    seen = set()
    for name, text in documents.items():
        paragraphs = text.split("\n\n")
        kept = "\n\n".join(p for p in paragraphs if len(p) < LONG_PARAGRAPH or p not in seen)
        seen.update(paragraphs)
        if 2 * len(kept) > len(text):
            yield name, kept
