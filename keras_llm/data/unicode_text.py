"""Texts that UTF-8 can hold, which the library of tokenizers reads."""

from collections.abc import Iterable, Iterator


def check_unicode(text: str, where: str) -> bytes:
    r"""The text in UTF-8; one half of a surrogate pair is no character, and a `ValueError`.

    Python has it from JSON that was cut within a character, `"\ud83d"`, for example.

    Args:
        text: The text.
        where: What the error calls the text.

    Example:

    >>> check_unicode("ab\ud83d", "text")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: Every text must be valid Unicode. Received: '\ud83d', ... at character 2 of text
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Every text must be valid Unicode. Received: {text[error.start]!r}, one half of a "
            f"surrogate pair, at character {error.start} of {where}"
        ) from None


def valid_texts(texts: Iterable[str], name: str) -> Iterator[str]:
    """The texts, of which each is checked; errors call them by their `name` as an argument."""
    for position, text in enumerate(texts):
        check_unicode(text, f"row {position} of {name}")
        yield text
