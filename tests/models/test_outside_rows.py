"""Batches that are unusual and right have the model's own loss; those that are wrong say so."""

import keras
import numpy as np
import pytest
import torch
import transformers

from keras_llm import losses, models

from . import transformers_zoo as zoo

pytestmark = pytest.mark.torch_only


def make(name="llama", rate=0.0):
    model = models.from_transformers(zoo.make(name))
    model.compile(keras.optimizers.SGD(rate), losses.MaskedSparseCategoricalCrossentropy())
    return model


def own_loss(batch, name="llama"):
    with torch.no_grad():
        return zoo.make(name)(**batch).loss.item()


def padded_on_the_left():
    """The zoo's batch, its short row with the padding first."""
    batch = zoo.batch("llama")
    for column in batch.values():
        column[-2] = column[-2].roll(4)
    return batch


@pytest.mark.parametrize("behind", [0, 1])
def test_positions_of_rows_that_are_padded_on_the_left(behind):
    """As transformers has them: padding has position 0 or 1. Nothing is packed."""
    batch = padded_on_the_left()
    mask = batch["attention_mask"]
    batch["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, behind)
    assert make().evaluate(batch, verbose=0) == pytest.approx(own_loss(batch), rel=1e-6)


def rows_with_positions(*lengths):
    """A list of rows, each of one or several documents of such lengths, and their sum of losses."""
    generator, rows, total, tokens = torch.Generator().manual_seed(1), [], 0.0, 0
    for documents in lengths:
        row = {"input_ids": [], "position_ids": [], "labels": []}
        for length in documents:
            ids = torch.randint(3, zoo.VOCAB, (length,), generator=generator)
            total += own_loss({"input_ids": ids[None], "labels": ids[None]}) * (length - 1)
            tokens += length - 1
            row["input_ids"] += ids.tolist()
            row["position_ids"] += range(length)
            row["labels"] += [-100, *ids[1:].tolist()]
        rows.append(row)
    return rows, total / tokens


@pytest.mark.parametrize("lengths", [[(9,), (5,)], [(4, 8), (5,)]], ids=["plain", "packed"])
def test_rows_with_positions_and_of_several_lengths(lengths):
    rows, wanted = rows_with_positions(*lengths)
    assert make().evaluate(rows, verbose=0) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_pairs_keeps_packed_documents_apart(dtype):
    (row,), wanted = rows_with_positions((4, 8))
    batch = {name: torch.tensor([column]) for name, column in row.items()}
    document = torch.tensor([0] * 4 + [1] * 8)
    allowed = (document == document[:, None]).tril()
    if dtype == torch.float32:
        allowed = torch.zeros(12, 12).masked_fill(~allowed, torch.finfo(dtype).min)
    batch["attention_mask"] = allowed[None, None]
    assert make().evaluate(batch, verbose=0) == pytest.approx(wanted, rel=1e-5)


class Rows(torch.utils.data.Dataset):
    """A data set of PyTorch."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_a_data_set_of_pytorch():
    batch = zoo.batch("llama")
    each = Rows([{name: column[i] for name, column in batch.items()} for i in range(4)])
    assert make().evaluate(each, verbose=0) == pytest.approx(own_loss(batch), rel=1e-6)
    ids, labels = batch["input_ids"], batch["labels"]
    y = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    pairs = torch.utils.data.TensorDataset(ids, y)
    wanted = own_loss({"input_ids": ids, "labels": labels})
    assert make().evaluate(pairs, verbose=0) == pytest.approx(wanted, rel=1e-6)


def test_columns_of_datasets():
    datasets = pytest.importorskip("datasets")
    batch = zoo.batch("llama")
    rows = datasets.Dataset.from_dict({name: column.tolist() for name, column in batch.items()})
    x = {name: rows[name] for name in batch}
    assert make().evaluate(x, verbose=0) == pytest.approx(own_loss(batch), rel=1e-6)


def test_a_call_takes_what_a_tokenizer_returns():
    batch = {k: v for k, v in zoo.batch("llama").items() if k != "labels"}
    with torch.no_grad():
        wanted = zoo.make("llama")(**batch).logits
    encoded = transformers.BatchEncoding(batch)
    lists = {name: column.tolist() for name, column in batch.items()}
    model = make()
    for x in (encoded, lists):
        torch.testing.assert_close(model(x).detach(), wanted)
        np.testing.assert_allclose(model.predict_on_batch(x), wanted, atol=1e-6)


IDS = np.full((2, 6), 5)
LABELLED = {"input_ids": IDS, "labels": IDS}


def empty(kind):
    datasets = pytest.importorskip("datasets")
    if kind == "data set":
        return datasets.Dataset.from_dict({"input_ids": [], "labels": []})
    rows = datasets.Dataset.from_dict({name: ids.tolist() for name, ids in LABELLED.items()})
    if kind == "splits":
        return datasets.DatasetDict(train=rows, test=rows)
    return datasets.Dataset.from_dict({"text": ["a", "b"]})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (lambda: empty("data set"), ValueError, "at least one row. Received: an empty Dataset"),
        (lambda: empty("splits"), TypeError, r"one split, such as x\['train'\].*a DatasetDict"),
        (lambda: empty("texts"), ValueError, r"must have 'input_ids'. Received: .*\['text'\]"),
        (lambda: [LABELLED], ValueError, r"input_ids \[length\].*shape \(2, 6\)"),
        (
            lambda: {**LABELLED, "attention_mask": IDS[:, :4]},
            ValueError,
            r"attention_mask must have the shape of input_ids, \(2, 6\). Received: shape \(2, 4\)",
        ),
        (
            lambda: {**LABELLED, "labels": IDS[:, 0]},
            ValueError,
            r"labels must be \[batch, length\].*shape \(2,\)",
        ),
    ],
)
def test_what_is_wrong_is_named(x, error, message):
    for call in ("fit", "evaluate"):
        with pytest.raises(error, match=message):
            getattr(make(), call)(x(), verbose=0)
