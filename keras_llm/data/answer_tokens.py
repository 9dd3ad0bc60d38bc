"""From texts with answers to ids, and to which of them belong to an answer."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from keras_llm.data.chat_template import Row, common_length
from keras_llm.data.hugging_face_tokenizer import HuggingFaceTokenizer
from keras_llm.data.tokenizer import Tokenizer


def answer_tokens(
    rows: Iterable[Row], tokenizer: Tokenizer | HuggingFaceTokenizer
) -> Iterator[tuple[Row, np.ndarray, np.ndarray]]:
    """Each row with its ids `[length]`, and booleans `[length]`: which belong to an answer."""
    rows, with_texts, with_beginnings = itertools.tee(rows, 3)
    wholes = tokenizer.encode_with_ends(row.text for row in with_texts)
    beginnings = tokenizer.encode_each(
        row.text[:place] for row in with_beginnings for place in itertools.chain(*row.answers)
    )
    for row, (ids, ends) in zip(rows, wholes, strict=True):
        is_answer = np.zeros(len(ids), bool)
        behind = []
        for start, end in row.answers:
            first = tokens_before(start, next(beginnings), ids, ends)
            behind.append(tokens_before(end, next(beginnings), ids, ends))
            is_answer[first : behind[-1]] = True
        ids = np.array(ids, np.int32)
        if row.is_chat:
            # A template that marks no more than an answer's content ends its turn behind the mark.
            behind = [token for token in behind if token < len(ids)]
            is_answer[behind] |= ids[behind] == tokenizer.end_id
        else:
            ids, is_answer = with_first_and_last(ids, is_answer, tokenizer)
        yield row, ids, is_answer


def tokens_before(place: int, beginning: list[int], ids: list[int], ends: list[int] | None) -> int:
    """How many tokens of a text stand before a place in it.

    Where the ids of the text up to there are the first ids of the whole text, as a model reads them
    that is asked to go on, it is their number. Otherwise a token stands on the place, and belongs
    to what follows: it is the number of tokens that end by there, or, where ends are not known,
    with which both begin.

    Args:
        place: The number of characters before it.
        beginning: The ids of these characters alone.
        ids: The ids of the whole text.
        ends: Where each of them ends, or None.

    Example:

    >>> tokens_before(4, [5, 6], [5, 6, 7], [1, 4, 6])
    2
    >>> tokens_before(4, [5, 8, 9], [5, 6, 7], [1, 3, 6])
    2
    """
    if ids[: len(beginning)] == beginning:
        return len(beginning)
    if ends is None:
        return common_length(beginning, ids)
    return int(np.searchsorted(np.maximum.accumulate(ends), place, side="right"))


def with_first_and_last(
    ids: np.ndarray, is_answer: np.ndarray, tokenizer: Tokenizer | HuggingFaceTokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a plain text after the id that texts begin with, and before the one of an end."""
    first = np.array(getattr(tokenizer, "begin_ids", ()), np.int32)
    if np.array_equal(ids[: len(first)], first):
        first = first[:0]
    last = np.array([tokenizer.end_id], np.int32)
    if np.array_equal(ids[-1:], last):
        last = last[:0]
    ids = np.concatenate([first, ids, last])
    return ids, np.concatenate([np.zeros(len(first), bool), is_answer, np.ones(len(last), bool)])
