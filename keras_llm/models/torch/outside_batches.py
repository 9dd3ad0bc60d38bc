"""Batches as Hugging Face's users have them: dictionaries with labels inside, rows of lists."""

import inspect
from collections.abc import Mapping

import keras
import numpy as np
import torch

from keras_llm.backend.ids import check_ids, check_integers
from keras_llm.models.torch.labels_rule import IGNORED, shifted_left
from keras_llm.training.arrays import as_arrays

# What the other models' batches call the same things.
OTHER_NAMES = {
    "token_ids": "input_ids",
    "padding_mask": "attention_mask",
    "encoder_ids": "input_ids",
}


class BatchReader:
    """From a batch to `(inputs, labels)` as the step takes them.

    Args:
        accepted: The names of the model's inputs; columns of other names are left out.
        vocab_sizes: By the name of ids, what they must be below.
        pad_id: The id that fills rows up.
        shifts_labels: Whether labels inside a dictionary are the inputs themselves.
        decoder_inputs: From labels to the decoder's ids; None for a model without a decoder of its
            own.
        packing: The `Packing`.
    """

    def __init__(self, accepted, vocab_sizes, pad_id, shifts_labels, decoder_inputs, packing):
        self.accepted = accepted
        self.vocab_sizes = vocab_sizes
        self.pad_id = pad_id
        self.shifts_labels = shifts_labels
        self.decoder_inputs = decoder_inputs
        self.packing = packing

    def read(self, x, y, ignore_index: int | None):
        """The inputs as a dictionary of tensors, and the label of each position.

        Args:
            x: Ids `[batch, length]`, or a dictionary of the model's inputs.
            y: The labels of the positions (for a decoder-only model: each the next token), or None
                where `x` has `labels`.
            ignore_index: What the loss ignores; it takes the place of -100.

        Raises:
            ValueError: labels are missing or there twice; an id is outside of the vocabulary.
            TypeError: ids that are not integers.
        """
        inputs = dict(x) if isinstance(x, Mapping) else {"input_ids": x}
        if "encoder_ids" in inputs:
            inputs = self.of_seq2seq(inputs, y)
        inputs = {OTHER_NAMES.get(name, name): value for name, value in inputs.items()}
        labels = inputs.pop("labels", None)
        if labels is not None and y is not None:
            raise ValueError(
                "Labels must be given once: in the dictionary, as 'labels', or as y. Received: both"
            )
        check_has_ids(inputs)
        inputs = {
            name: as_tensor(value)
            for name, value in inputs.items()
            if name in self.accepted and value is not None
        }
        for name, vocab_size in self.vocab_sizes.items():
            if name in inputs:
                check_integers(inputs[name], name)
                check_ids(inputs[name], vocab_size, name)
        check_masks(inputs)
        inputs = self.packing.inputs(inputs)
        if labels is not None:
            y = as_tensor(labels)
            if y.ndim != 2:
                raise ValueError(
                    "labels must be [batch, length], one for each position. "
                    f"Received: shape {tuple(y.shape)}"
                )
            y = shifted_left(y) if self.shifts_labels else y
            if ignore_index not in (None, IGNORED):
                y = torch.where(y == IGNORED, ignore_index, y)
        if self.decoder_inputs is not None and "decoder_input_ids" not in inputs:
            if y is None:
                raise ValueError(
                    "An encoder-decoder needs 'decoder_input_ids', or labels to make them of. "
                    f"Received: {sorted(inputs)}"
                )
            y = as_tensor(y)
            of_theirs = y if ignore_index is None else y.masked_fill(y == ignore_index, IGNORED)
            inputs["decoder_input_ids"] = self.decoder_inputs(of_theirs.long())
        return inputs, y

    def weights(self, x, sample_weight):
        """The weight of each position's label, of weights that lie where the labels in `x` lie."""
        is_of_tokens = np.ndim(sample_weight) == 2 and np.shape(sample_weight)[1] > 1
        if not is_of_tokens or not isinstance(x, Mapping) or x.get("labels") is None:
            return sample_weight
        return shifted_left(as_tensor(sample_weight), 0) if self.shifts_labels else sample_weight

    def read_parts(self, batch, ignore_index: int | None) -> tuple:
        """A generator's batch: the tuple of `(inputs, labels, sample_weight)` that it has of it."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        parts = *self.read(x, y, ignore_index), self.weights(x, sample_weight)
        return parts[: max(i for i, part in enumerate(parts) if part is not None) + 1]

    def of_seq2seq(self, inputs: dict, y) -> dict:
        """The inputs of `data.seq2seq`, padding masked, the decoder's start as this model's."""
        ids, decoder_ids = as_tensor(inputs["encoder_ids"]), inputs.pop("decoder_ids", None)
        if y is None and decoder_ids is not None:
            inputs["decoder_input_ids"] = decoder_ids
        return {"attention_mask": (ids != self.pad_id).long(), **inputs}

    def collate(self, rows):
        """A batch of rows, each a dictionary of lists; the shorter ones are filled up on the right.

        `input_ids` get `pad_id`, `labels` -100, the other columns 0; a missing `attention_mask` is
        made where rows have several lengths, unless `position_ids` show that they are packed. Rows
        of another kind are left to PyTorch.

        Raises:
            ValueError: a row has no ids, or more than one row of them.
        """
        if not isinstance(rows[0], Mapping):
            return torch.utils.data.default_collate(rows)
        names = [name for name, value in rows[0].items() if value is not None]
        check_has_ids([OTHER_NAMES.get(name, name) for name in names])
        columns = {
            OTHER_NAMES.get(name, name): [np.asarray(row[name]) for row in rows]
            for name in names
            if name in self.accepted or name == "labels" or name in OTHER_NAMES
        }
        ids = columns.get("input_ids", [np.zeros(1)])[0]
        if ids.ndim != 1:
            raise ValueError(
                "Each row of x must have input_ids [length]. Batches are given by a DataLoader or "
                f"a generator of them. Received: a row with input_ids of shape {ids.shape}"
            )
        lengths = {len(ids) for ids in columns.get("input_ids", [])}
        is_packed = any((row[1:] == 0).any() for row in columns.get("position_ids", []))
        if len(lengths) > 1 and "attention_mask" not in columns and not is_packed:
            columns["attention_mask"] = [np.ones_like(ids) for ids in columns["input_ids"]]
        fill = {"input_ids": self.pad_id, "decoder_input_ids": self.pad_id, "labels": IGNORED}
        return {name: filled_up(rows, fill.get(name, 0)) for name, rows in columns.items()}

    def data(self, x, y, ignore_index: int | None, batch_size: int | None, shuffle: bool):
        """`(x, y)` as Keras takes them, of what `fit` and its like are given.

        Args:
            x: Also rows of `datasets`, a data set of PyTorch or a list of dictionaries, which
                become a `DataLoader`; or a generator of dictionaries.
            y, ignore_index: As of `read`; it reads arrays with `labels` inside at once.
            batch_size, shuffle: Of rows.

        Raises:
            TypeError: `x` is several data sets.
            ValueError: it has no row.
        """
        if inspect.isgenerator(x):
            # Read here, because its batches are copied to a GPU before the step has them.
            return (self.read_parts(batch, ignore_index) for batch in x), y
        if isinstance(x, Mapping):
            if any(map(is_data_set, x.values())):
                raise TypeError(
                    f"x must be one split, such as x[{next(iter(x))!r}]. "
                    f"Received: a {type(x).__name__} with {sorted(x)}"
                )
            x = {name: as_arrays(column) for name, column in x.items()}
            return self.read(x, y, ignore_index) if "labels" in x else (x, y)
        is_list = isinstance(x, list | tuple) and x and isinstance(x[0], Mapping)
        if not is_list and not is_data_set(x):
            return x, y
        is_stream = isinstance(x, torch.utils.data.IterableDataset)
        if not is_stream and len(x) == 0:
            raise ValueError(f"x must have at least one row. Received: an empty {type(x).__name__}")
        loader = torch.utils.data.DataLoader(
            x,
            batch_size=batch_size or 32,
            shuffle=None if is_stream else shuffle,
            collate_fn=self.collate,
        )
        return loader, y


def is_data_set(x) -> bool:
    """Whether these are rows, of `datasets` or of PyTorch."""
    is_theirs = type(x).__module__.startswith("datasets.") and hasattr(x, "column_names")
    return is_theirs or isinstance(x, torch.utils.data.Dataset)


def check_has_ids(names):
    """Raises `ValueError` where the fields of a batch or a row lack what stands for tokens."""
    if "input_ids" not in names and "inputs_embeds" not in names:
        raise ValueError(
            "A batch must have 'input_ids'. Received: a dictionary with "
            f"{sorted(names) or 'nothing'}"
        )


def check_masks(inputs: dict):
    """Raises `ValueError` for a mask of tokens that are not those of the batch."""
    for name, of in (
        ("attention_mask", "input_ids"),
        ("attention_mask", "inputs_embeds"),
        ("decoder_attention_mask", "decoder_input_ids"),
    ):
        if name not in inputs or of not in inputs or inputs[name].ndim != 2:
            continue
        shape = tuple(inputs[of].shape[:2])
        if tuple(inputs[name].shape) != shape:
            raise ValueError(
                f"{name} must have the shape of {of}, {shape}. "
                f"Received: shape {tuple(inputs[name].shape)}"
            )


def as_tensor(value):
    """A column of a batch as a tensor, which stays where it is: on a GPU ids cannot be checked."""
    if isinstance(value, list) and value and torch.is_tensor(value[0]):
        return torch.stack(value)
    if torch.is_tensor(value):
        return value
    with keras.device("cpu"):
        return keras.ops.convert_to_tensor(value)


def filled_up(rows, value):
    """Rows `[length]` of several lengths as one array `[rows, longest]`."""
    if rows[0].ndim == 0:
        return torch.as_tensor(np.stack(rows))
    longest = max(len(row) for row in rows)
    filled = np.full((len(rows), longest, *rows[0].shape[1:]), value, rows[0].dtype)
    for target, row in zip(filled, rows, strict=True):
        target[: len(row)] = row
    return torch.as_tensor(filled)
