"""Rows of chats, of prompts and completions, and of texts: from dictionaries to `Row`."""

import codecs
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2

from keras_llm.data.chat_template import Chat, Row
from keras_llm.data.unicode_text import check_unicode
from keras_llm.json_files import parse_json

FIELDS = "'messages', 'prompt' and 'completion', or 'text'"


def read_rows(rows: Iterable[Mapping] | str | os.PathLike, tokenizer) -> Iterator[Row]:
    """Every row as a text and its answers; errors name the row.

    Args:
        rows: Dictionaries, a `datasets.Dataset`, or the path of a file with one JSON object a line.
        tokenizer: The tokenizer of the user, whose template writes chats.

    Raises:
        TypeError: `rows` are no dictionaries, or a field has another type than text or messages.
        ValueError: a row has none of the fields, or its answers cannot be found.
    """
    for position, row in enumerate(dictionaries(rows)):
        try:
            written = to_row(row, tokenizer)
        except Exception as error:
            error.add_note(f"That is row {position} of rows.")
            raise
        check_unicode(written.text, f"row {position} of rows")
        yield written


def dictionaries(rows: Iterable[Mapping] | str | os.PathLike) -> Iterator[Mapping]:
    """The rows one after another, from wherever they are."""
    if isinstance(rows, str | os.PathLike):
        yield from json_lines(rows)
        return
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        keys = f" with the keys {list(rows)}" if isinstance(rows, Mapping) else ""
        raise TypeError(
            "rows must be a list of dictionaries, one split of a data set, or the path of a JSON "
            f"lines file. Received: a {type(rows).__name__}{keys}"
        )
    if hasattr(rows, "with_format"):
        rows = rows.with_format(None)  # a data set may be set to return arrays
    yield from rows


def json_lines(path: str | os.PathLike, name: str = "rows") -> Iterator[Mapping]:
    """The objects of a file with one JSON object a line.

    Errors call the file by the `name` that it has as the caller's argument.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            what = (
                f"{name} must be the path of a file with one JSON object a line. "
                f"Received: {os.fspath(path)}, whose line {number} is"
            )
            yield parse_json(line, what)


def to_row(row: Mapping, tokenizer) -> Row:
    """The text of a row, and its answers."""
    if not isinstance(row, Mapping):
        raise TypeError(
            f"Every row of rows must be a dictionary with {FIELDS}. "
            f"Received: {row!r:.80} (of type {type(row).__name__})"
        )
    messages, prompt, completion, text = (
        row.get(name) for name in ("messages", "prompt", "completion", "text")
    )
    if messages is not None:
        return chat(messages, 0, row, tokenizer)
    if prompt is not None and completion is not None:
        if isinstance(prompt, str) and isinstance(completion, str):
            whole = prompt + completion
            return Row(whole, [(len(prompt), len(whole))], is_chat=False)
        check_messages(prompt, "prompt")
        check_messages(completion, "completion")
        return chat([*prompt, *completion], len(prompt), row, tokenizer)
    if isinstance(text, str):
        return Row(text, [(0, len(text))], is_chat=False)
    if text is not None:
        raise TypeError(f"text must be a string. Received: text={text!r:.80}")
    raise ValueError(f"Every row of rows must have {FIELDS}. Received: a row with {list(row)}")


def chat(messages: list, first: int, row: Mapping[str, Any], tokenizer) -> Row:
    """A chat as the tokenizer's template writes it; answers count from message `first` on."""
    check_messages(messages, "messages")
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "tokenizer must have a chat template, which writes messages as text: give a tokenizer "
            "of transformers and set its tokenizer.chat_template, or rows of text. Received: a "
            f"{type(tokenizer).__name__} without one"
        )
    settings = {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}
    try:
        return Chat(messages, tokenizer, settings).row(first)
    except (jinja2.TemplateError, TypeError) as error:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        raise ValueError(
            f"The chat template of the tokenizer {name!r} cannot write messages={messages!r:.200}: "
            f"{type(error).__name__}: {error}"
        ) from error


def check_messages(messages, name: str):
    """Raises `TypeError` unless they are messages."""
    if not isinstance(messages, list | tuple) or not all(
        isinstance(message, Mapping) and "role" in message for message in messages
    ):
        raise TypeError(
            f"{name} must be a list of dictionaries with 'role' and 'content'"
            f"{'' if name == 'messages' else ', or prompt and completion both strings'}. "
            f"Received: {name}={messages!r:.80}"
        )
