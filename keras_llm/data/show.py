"""A batch as text: what a model reads, and which of it counts."""

import io
import sys
from collections.abc import Mapping
from itertools import groupby, pairwise

import keras
import numpy as np
from rich.console import Console
from rich.text import Text

from keras_llm.arguments import check_positive_int
from keras_llm.data.hugging_face_tokenizer import HuggingFaceTokenizer, as_tokenizer
from keras_llm.data.token_array import IGNORED_LABEL
from keras_llm.data.tokenizer import Tokenizer
from keras_llm.distribution import world

# The colour is readable on white and on black.
COUNTS, DIM = "bold dark_cyan", "dim"
INPUTS = ("input_ids", "decoder_ids", "decoder_input_ids", "token_ids")


class ShownBatch:
    """What `show` returns: `str()` is the text, and a notebook shows it in colours.

    Attributes:
        text: The rows, a `rich.text.Text`.
        counts: For each row, how many of its tokens count, and how many it has.
    """

    def __init__(self, text: Text, counts: list[tuple[int, int]]):
        self.text, self.counts = text, counts

    def __str__(self):
        return self.text.plain

    def __repr__(self):
        counted, tokens = map(sum, zip(*self.counts, strict=True))
        return f"<{len(self.counts)} rows, {counted:,} of {tokens:,} tokens count>"

    def _repr_html_(self):
        console = Console(file=io.StringIO(), record=True, force_jupyter=False)
        console.print(self.text, soft_wrap=True)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def print(self):
        """Prints the text: coloured in a terminal, plain elsewhere.

        Of several processes the first does. Nothing is printed in a notebook, which shows the
        object itself.
        """
        console = Console(file=sys.stdout)
        if not world().is_first:
            return
        if console.is_terminal:
            console.print(self.text, soft_wrap=True)
        elif not console.is_jupyter:
            # Not every encoding has the marks.
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print(str(self).encode(encoding, "replace").decode(encoding))


def show(batch, tokenizer: Tokenizer, rows: int = 4) -> ShownBatch:
    """Prints the first rows of a batch, with what counts between `«` and `»`.

    What counts is what the loss is made of: the tokens that are labels. Line ends are also written
    as `⏎`, and documents that are packed in one row are separated by a line. Look at a batch before
    training: the answers should count, each with its end of turn, and nothing else.

    Args:
        batch: What a DataLoader yields, `(ids, labels)` or `({"input_ids": ...}, labels)`, of which
            label t is the token after id t; or a dictionary of transformers with `"input_ids"` and
            `"labels"`, of which label t is the token t. Labels of -100 do not count, nor, with a
            tokenizer of ours, those of its `pad_id`.
        tokenizer: What decodes the ids: one of ours, or of transformers.
        rows: How many rows are printed.

    Returns:
        The same text, as an object that a notebook shows.

    Raises:
        TypeError: `batch` is no batch of ids and labels, or `tokenizer` no tokenizer.
        ValueError: an id is not the tokenizer's, or `rows` is no positive integer.

    Example:

    >>> from keras_llm import data
    >>> tokenizer = data.train_tokenizer(["2 + 2 = 4"], vocab_size=300)
    >>> rows = [{"prompt": "2 + 2 =", "completion": " 4"}]
    >>> batch = next(iter(data.instruction(rows, tokenizer, max_length=32)))
    >>> data.show(batch, tokenizer)
    row 0: 2 of 6 tokens count
    2 + 2 =« 4<| end |>»
    <1 rows, 2 of 6 tokens count>
    """
    check_positive_int(rows, "rows")
    ours = as_tokenizer(tokenizer)
    ids, labels, positions = parts(batch)
    is_label = (labels != IGNORED_LABEL) & (labels != ours.pad_id)
    check_tokens(np.concatenate([ids.ravel(), labels[is_label]]), ours.vocab_size)
    fillers = {ours.end_id, as_tokenizer(tokenizer, is_source=True).pad_id}
    text, counts = Text(), []
    for row in range(min(rows, len(ids))):
        documents = split(ids[row], labels[row], is_label[row], positions[row], fillers)
        counted, total = int(is_label[row].sum()), sum(len(tokens) for tokens, _ in documents)
        counts.append((counted, total))
        text.append(f"row {row}: {counted:,} of {total:,} tokens count\n", DIM)
        for number, (tokens, flags) in enumerate(documents):
            if number:
                text.append("─── packed with\n", DIM)
            text.append_text(marked(tokens, flags, ours)).append("\n")
    text.rstrip()
    shown = ShownBatch(text, counts)
    shown.print()
    return shown


def parts(batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, the label after each of them, and their positions, each `[rows, length]`."""
    if isinstance(batch, Mapping) and "labels" in batch:
        x, labels = batch, keras.ops.convert_to_numpy(batch["labels"])
        labels = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED_LABEL)
    elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
        x, labels = batch[0], keras.ops.convert_to_numpy(batch[1])
    else:
        raise TypeError(f"batch must be (ids, labels). Received: a {type(batch).__name__}")
    fields = x if isinstance(x, Mapping) else {INPUTS[0]: x}
    ids = next((keras.ops.convert_to_numpy(fields[k]) for k in INPUTS if k in fields), None)
    if ids is None or ids.ndim != 2 or ids.shape != labels.shape:
        received = "none" if ids is None else f"ids {ids.shape}"
        raise TypeError(
            f"batch must have ids, one of {INPUTS} where it has several inputs, and labels, both "
            f"[rows, length]. Received: {received}, labels {labels.shape}"
        )
    positions = fields.get("position_ids")
    if positions is None:
        return ids, labels, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return ids, labels, keras.ops.convert_to_numpy(positions)


def check_tokens(ids: np.ndarray, vocab_size: int) -> None:
    """Raises an error unless the ids and labels of a batch are ids of the tokenizer."""
    if ids.dtype.kind not in "iu":
        raise TypeError(f"batch must have integers. Received: dtype={ids.dtype}")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise ValueError(
            f"batch must have ids in [0, {vocab_size}), the tokenizer's. Received: {outside[0]}"
        )


def split(ids, labels, is_label, positions, fillers: set) -> list[tuple[np.ndarray, np.ndarray]]:
    """The documents of a row: the tokens of each, without padding, and which of them count."""
    stop = len(ids)
    while stop and not is_label[stop - 1] and ids[stop - 1] == ids[-1] and ids[-1] in fillers:
        stop -= 1
    documents = []
    starts = np.flatnonzero(positions[:stop] == 0)
    for start, end in pairwise([*starts, stop]):
        inside = slice(start, end)
        # Behind the last id there is a token only where it is a label.
        following = np.where(is_label[inside], labels[inside], [*ids[start + 1 : end], -1])
        tokens, counts = np.r_[ids[start], following], np.r_[False, is_label[inside]]
        documents.append((tokens[tokens >= 0], counts[tokens >= 0]))
    return documents


def marked(tokens, counts, tokenizer: Tokenizer | HuggingFaceTokenizer) -> Text:
    """Tokens as text, with marks around those that count."""
    text, before, end = Text(), "", 0
    for is_counted, group in groupby(counts.tolist()):
        end += len(list(group))
        # Decoded from the beginning: some tokenizers leave out the space that a text begins with.
        whole = tokenizer.spelled(tokens[:end].tolist())
        piece = whole[len(before) :].replace("\n", "⏎\n")
        text.append(f"«{piece}»" if is_counted else piece, COUNTS if is_counted else None)
        before = whole
    return text
