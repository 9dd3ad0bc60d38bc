"""A text with one half of a surrogate pair: every reader of texts names its row and its place."""

import json

import pytest

from keras_llm import data
from tests.data.chat_tokenizer import chat_tokenizer

pytestmark = pytest.mark.backend_free

BAD = "ab\ud800c"
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": BAD}]
ROW = "2 of row 1 of"


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_tokenizer(["a b c"], unit="word")


def json_lines(folder):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ["a", BAD]))
    return path


# From a tokenizer and a folder; then how the error goes on after "at character".
READERS = {
    "encode": (lambda t, f: t.encode(BAD), "2 of text"),
    "encode_each": (lambda t, f: list(t.encode_each(["a", BAD])), f"{ROW} texts"),
    "encode_with_ends": (lambda t, f: list(t.encode_with_ends(["a", BAD])), f"{ROW} texts"),
    "train_tokenizer": (lambda t, f: data.train_tokenizer(["a", BAD]), f"{ROW} texts"),
    "train_tokenizer, words": (
        lambda t, f: data.train_tokenizer([("a", "b"), ("a", BAD)], unit="word"),
        f"{ROW} texts",
    ),
    "causal_lm": (
        lambda t, f: data.causal_lm(["a", BAD], t, seq_len=2, batch_size=1),
        f"{ROW} texts",
    ),
    "causal_lm, transformers": (
        lambda t, f: data.causal_lm(["a", BAD], chat_tokenizer(), seq_len=2, batch_size=1),
        f"{ROW} texts",
    ),
    "seq2seq": (
        lambda t, f: data.seq2seq([("a", "b"), ("a", BAD)], t, batch_size=1),
        f"{ROW} pairs",
    ),
    "instruction": (
        lambda t, f: data.instruction(
            [{"text": "a"}, {"text": BAD}], t, max_length=8, batch_size=1
        ),
        f"{ROW} rows",
    ),
    "instruction, file": (
        lambda t, f: data.instruction(json_lines(f), t, max_length=8, batch_size=1),
        f"{ROW} rows",
    ),
    "instruction, chat": (
        lambda t, f: data.instruction(
            [{"messages": CHAT}], chat_tokenizer(), max_length=8, batch_size=1
        ),
        r"\d+ of row 0 of rows",
    ),
    "tokens": (lambda t, f: data.tokens(["a", BAD], t, f / "one", verbose=0), f"{ROW} source"),
    "tokens, file": (
        lambda t, f: data.tokens(json_lines(f), t, f / "two", verbose=0),
        "2 of document 1 of source",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_half_of_a_pair_is_named(reader, tokenizer, tmp_path):
    read, place = READERS[reader]
    match = rf"valid Unicode\. Received: '\\ud800', one half .* at character {place}$"
    with pytest.raises(ValueError, match=match):
        read(tokenizer, tmp_path)


def test_whole_pairs_and_nothing_else_pass():
    """Characters beyond 16 bits are one character each in Python."""
    text = "\U0001f600 \uffff \0"
    tokenizer = data.train_tokenizer([text], vocab_size=259)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_each([text])] == [text]
    assert len(tokenizer.encode(text)) == len(text.encode())
