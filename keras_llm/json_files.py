"""JSON that somebody else wrote."""

import json
import os
from pathlib import Path
from typing import Any


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The dictionary that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no JSON, or no dictionary.
    """
    value = parse_json(read_file(path), f"{path} is")
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a dictionary. Received: {str(value)[:200]}")
    return value


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a file; raises `FileNotFoundError` for a folder, a device and the like."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}")
    return Path(path).read_bytes()


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a JSON text; raises `ValueError` for anything else.

    Args:
        text: The text, or its UTF-8 bytes.
        what: How the message begins, up to "not JSON", such as `"my.json is"`.

    Example:

    >>> parse_json('{"a": 1}', "it is")
    {'a': 1}
    >>> parse_json("[" * 100_000, "it is")
    Traceback (most recent call last):
    ...
    ValueError: it is not JSON: it is nested too deeply
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{what} not JSON: it is nested too deeply") from None
    except ValueError as error:  # also for bytes that are not UTF-8, and numbers of many digits
        raise ValueError(f"{what} not JSON: {error}") from error
