"""Batches for instruction tuning: a model reads the whole chat, and learns the answers."""

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from keras_llm.arguments import check_bool, check_positive_int
from keras_llm.data.answer_tokens import answer_tokens
from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.batch_shapes import BatchShapes
from keras_llm.data.data_loader import LOADER_NAMES, DataLoader, check_batches
from keras_llm.data.hugging_face_tokenizer import as_tokenizer
from keras_llm.data.instruction_rows import read_rows
from keras_llm.data.packing import best_fit
from keras_llm.data.token_array import IGNORED_LABEL, hash_of, padded_rows
from keras_llm.data.tokenizer import Tokenizer
from keras_llm.names_elsewhere import names_elsewhere


@names_elsewhere(
    {
        **LOADER_NAMES,
        "dataset": "the rows as the first argument",
        "train_dataset": "the rows as the first argument",
        "texts": "the rows as the first argument",
        "seq_len": "max_length=...",
        "max_seq_length": "max_length=...",
        "block_size": "max_length=...",
        "pack": "packing=...",
        "processing_class": "tokenizer=...",
        "assistant_only_loss": "nothing: only answers count",
        "completion_only_loss": "nothing: only completions count",
        "response_template": "nothing: the chat template tells which tokens are answers",
        "padding_free": "packing=True",
    }
)
def instruction(
    rows: Iterable[Mapping] | str | os.PathLike,
    tokenizer: Tokenizer,
    max_length: int,
    packing: bool = False,
    *,
    batch_size: int = 8,
    pad_to_multiple_of: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Batches `(ids, labels)` of chats, in which only the tokens of answers are labels.

    A label is the token after the id of the same position, or -100 where that token is no answer:

        tokens:  <user> 2 + 2 ? <end> <assistant> 4 <end>
        ids:     <user> 2 + 2 ? <end> <assistant> 4
        labels:  -100 ...         -100            4 <end>

    A row is a dictionary with

    - `"messages"`: a chat, a list of `{"role": ..., "content": ...}`, which the tokenizer's chat
      template writes as text (with the row's `"tools"` and `"chat_template_kwargs"`, if any). The
      ids are those of `tokenizer.apply_chat_template(messages)`. What the assistant wrote counts.
    - `"prompt"` and `"completion"`: two strings, which are joined as they are, and of which the
      second counts; or two lists of messages, of which the answers in the second count.
    - `"text"`: all of it counts.

    Other fields are ignored. Which tokens of a chat are answers is found by the first of these
    rules that applies:

    1. The template marks them, by `{% generation %}` and `{% endgeneration %}`.
    2. The prefix rule, for every answer: the messages before it, written with
       `add_generation_prompt=True`, are the beginning of the whole text. What the template writes
       from there to the end of that message is the answer.
    3. The prefix rule, for the last answer only. A warning says for how many rows.

    The end of a turn counts, so that the model learns to stop: what the template writes behind an
    answer, by rules 2 and 3, and by rule 1 an `end_id` that follows what is marked. After a
    completion and a text, `end_id` is added, and before them the tokenizer's `bos_token`, if
    `tokenizer(text)` begins with it: neither twice. The tokens before an answer are those of the
    prompt alone. Where they are not, since a token begins in the prompt and ends in the answer,
    that token counts.

    Padding stands at the end of a row, where causal attention hides it from every token that
    counts. So neither our own decoders nor those of transformers need an attention mask, and the
    end of a turn may have the id of padding.

    With `packing=True`, several whole rows share one of up to `max_length` positions, and batches
    are `({"input_ids", "position_ids"}, labels)`, whose positions start again at 0 in each row that
    was packed. Models of transformers by which `position_ids` keep them apart, without an
    attention mask and with `use_cache=False`, are given exactly the numbers of separate rows.

    Args:
        rows: A list of dictionaries, a `datasets.Dataset`, or the path of a file with one JSON
            object a line.
        tokenizer: A tokenizer of transformers, fast or slow; for rows without messages, also one
            of ours.
        max_length: The largest number of positions. The tokens of a row beyond `max_length` + 1,
            the last of which is only a label, are cut off.
        packing: Whether rows share the positions of one.
        batch_size: Rows per batch, packed ones with packing; the last batch of an epoch may be
            smaller.
        pad_to_multiple_of: Lengths of batches are rounded up to a multiple of this, but not above
            `max_length`. None is 8 on PyTorch, and a few chosen shapes on JAX and TensorFlow, where
            an incomplete batch is also filled up, as by `seq2seq`.
        shuffle: Whether every epoch has another order of rows.
        seed: Seed of that order.
        num_workers: Processes which prepare batches, as in `torch.utils.data.DataLoader`. The
            tokens are in memory, so 0 is fastest here.

    Returns:
        A `torch.utils.data.DataLoader`, which `fit` accepts on every backend, of int64 tensors
        `[batch, length]`. Give no `ignore_index` to the loss and the metrics: -100 is their
        default. Rows of which no label is left are left out, with a warning;
        `loader.dataset.dropped` is their number. `show` prints a batch and what counts in it.

    Raises:
        TypeError: `rows`, or a field of a row, is nothing of the above, or `packing` or `shuffle`
            no boolean.
        ValueError: a size is not a positive integer, a row has none of the fields, the tokenizer
            has no chat template, the template does not tell which tokens are answers, or no row has
            a label.

    Example:

    >>> from keras_llm import data
    >>> rows = [{"prompt": "a b", "completion": " c"}, {"text": "b"}]
    >>> tokenizer = data.train_tokenizer(["a b c"], unit="word")
    >>> loader = data.instruction(rows, tokenizer, max_length=8, pad_to_multiple_of=4)
    >>> ids, labels = next(iter(loader))
    >>> ids.tolist()
    [[4, 5, 6, 0], [5, 0, 0, 0]]
    >>> labels.tolist()
    [[-100, 6, 2, -100], [2, -100, -100, -100]]
    """
    check_positive_int(max_length, "max_length")
    check_batches(batch_size, shuffle, seed, num_workers)
    check_bool(packing, "packing")
    if pad_to_multiple_of is not None:
        check_positive_int(pad_to_multiple_of, "pad_to_multiple_of")
    ours = as_tokenizer(tokenizer)
    documents, only_last = [], 0
    for row, ids, is_answer in answer_tokens(read_rows(rows, tokenizer), ours):
        labels = np.where(is_answer, ids, np.int32(IGNORED_LABEL))
        documents.append(Document(ids[:-1][:max_length], labels[1:][:max_length]))
        only_last += row.only_last
    pad_id = ours.end_id if ours.pad_id is None else ours.pad_id
    batches = Instructions(documents, max_length, packing, batch_size, pad_to_multiple_of, pad_id)
    if batches.dropped:
        warn(
            f"{batches.dropped:,} of {len(documents):,} rows have no answer within max_length="
            f"{max_length} and are left out."
        )
    if only_last:
        warn(
            f"In {only_last:,} of {len(documents):,} rows only the last answer counts: the chat "
            "template writes the earlier ones differently once others follow. To count them all, "
            "write {% generation %} and {% endgeneration %} around answers in "
            "tokenizer.chat_template."
        )
    order = BatchOrder(len(batches), batch_size, shuffle, seed, batches.sort_keys())
    return DataLoader(batches, order, num_workers)


def warn(message: str):
    """A warning at the line that called `instruction`, which is decorated."""
    warnings.warn(message, stacklevel=4)


class Document(NamedTuple):
    """The ids of a row of the user, and the label after each: int32, of one length."""

    ids: np.ndarray
    labels: np.ndarray


class Instructions:
    """Chats and texts, one or several a row, in batches that are padded at the end.

    Args:
        documents: One for each row of the user; those without a label are left out.
        max_length: The largest number of positions.
        packing: Whether several documents share a row.
        batch_size: Rows per batch.
        pad_to_multiple_of: What lengths are rounded up to; None for the backend's default.
        pad_id: The id behind the end of a row.

    Attributes:
        dropped: The number of documents that are left out.
    """

    fixed_length = False

    def __init__(
        self,
        documents: list[Document],
        max_length: int,
        packing: bool,
        batch_size: int,
        pad_to_multiple_of: int | None,
        pad_id: int,
    ):
        kept = [each for each in documents if (each.labels != IGNORED_LABEL).any()]
        self.dropped = len(documents) - len(kept)
        if not kept:
            raise ValueError(
                "rows must hold at least one answer or text that begins within max_length. "
                f"Received: {self.dropped} rows without a label, max_length={max_length}"
            )
        lengths = np.array([len(each.ids) for each in kept])
        rows = best_fit(lengths, max_length) if packing else np.arange(len(kept))[:, None]
        in_order = [kept[document] for row in rows for document in row]
        self.ids = np.concatenate([each.ids for each in in_order])
        self.labels = np.concatenate([each.labels for each in in_order])
        self.positions = None
        if packing:
            counted = [np.arange(len(each.ids), dtype=np.int32) for each in in_order]
            self.positions = np.concatenate(counted)
        self.lengths = np.array([[lengths[row].sum()] for row in rows])
        self.starts = np.cumsum(self.lengths) - self.lengths[:, 0]
        self.shapes = BatchShapes(self.lengths, batch_size, max_length, pad_to_multiple_of)
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, rows: np.ndarray):
        num_rows, rows = len(rows), self.shapes.filled_up(rows)
        counts, starts = self.lengths[rows, 0], self.starts[rows]
        (length,) = self.shapes.padded(self.lengths[rows].max(axis=0))
        x = padded_rows(self.ids, starts, counts, length, self.pad_id)
        labels = padded_rows(self.labels, starts, counts, length, IGNORED_LABEL)
        labels[num_rows:] = IGNORED_LABEL
        if self.positions is not None:
            positions = padded_rows(self.positions, starts, counts, length, 0)
            # Padding is one more document, so that attention has few of them to keep apart.
            behind = np.arange(length) - counts[:, None]
            x = {"input_ids": x, "position_ids": np.where(behind < 0, positions, behind)}
        return x, labels

    def fingerprint(self) -> dict:
        """A hash of the ids and labels, and of the rows that they are put into."""
        return {"tokens": hash_of(self.ids, self.labels, self.lengths)}

    def sort_keys(self) -> np.ndarray:
        """The length to which each row is padded: rows of similar length are neighbours."""
        return self.shapes.padded(self.lengths)[:, 0]
