"""Batches of chats and texts: what is cut, left out, packed and padded; the sources of rows."""

import itertools
import json

import datasets
import numpy as np
import pytest

from keras_llm import data, losses, models
from tests.data.chat_tokenizer import CHAT, MARKED, PLAIN, SKY, SYSTEM, chat_tokenizer, rows_of

pytestmark = pytest.mark.backend_free

BOS, CHATS, MARKS = chat_tokenizer(), chat_tokenizer(PLAIN), chat_tokenizer(MARKED)


def test_the_end_is_learnt_where_it_is_also_padding():
    tokenizer = chat_tokenizer(pad_token="</s>")
    rows = [{"prompt": "sky", "completion": " is blue."}, {"prompt": "sky", "completion": " is"}]
    ids, labels = next(iter(data.instruction(rows, tokenizer, 64)))
    ends = (labels == tokenizer.eos_token_id).sum(axis=1)
    assert ends.tolist() == [1, 1]
    assert (ids[1] == tokenizer.pad_token_id).sum() > 1


def test_what_is_cut_and_what_is_left_out():
    tokenizer = CHATS
    rows = [{"messages": CHAT}, {"messages": SKY}, {"messages": [SYSTEM]}]
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True)["input_ids"]
    with pytest.warns(UserWarning, match=rf"1 of 3 rows.*max_length={len(prompt)} and") as record:
        loader = data.instruction(rows, tokenizer, len(prompt))
    assert record[0].filename == __file__
    assert loader.dataset.dropped == 1
    (ids, labels), *_ = loader
    assert ids.shape == (2, len(prompt)) and ids[0].tolist() == prompt
    assert (labels[0] != -100).sum() == 1 and tokenizer.decode(labels[0, -1:].tolist()) == "The"
    with pytest.raises(ValueError, match=r"at least one answer.*2 rows without.*max_length=5"):
        data.instruction(rows[:2], tokenizer, 5)


def test_rows_from_everywhere(tmp_path):
    rows = [{"messages": CHAT}, {"messages": SKY}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    tokenizer = MARKS
    expected = rows_of(rows, tokenizer)
    assert rows_of(path, tokenizer) == rows_of(str(path), tokenizer) == expected
    table = datasets.Dataset.from_list(rows)
    assert rows_of(table, tokenizer) == rows_of(table.with_format("numpy"), tokenizer) == expected
    assert rows_of(table.to_iterable_dataset(), tokenizer) == expected
    path.write_text('{"text": "a"}\n{"text"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.jsonl, whose line 2 is not JSON"):
        data.instruction(path, tokenizer, 8)


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_has_every_row_and_can_be_resumed(packing):
    texts = [" ".join(["sky"] * (1 + i % 7)) for i in range(30)]
    kwargs = dict(packing=packing, batch_size=3, shuffle=True, seed=1)

    def batches(loader):
        return [(keras_ids(x), labels.tolist()) for x, labels in loader]

    def keras_ids(x):
        return (x["input_ids"] if packing else x).tolist()

    def loader():
        return data.instruction([{"text": text} for text in texts], BOS, 20, **kwargs)

    first = loader()
    epochs = [batches(first), batches(first)]
    assert epochs[0] != epochs[1]
    found = sorted(i for _, labels in epochs[1] for row in labels for i in row if i != -100)
    assert found == sorted(
        i for text in texts for i in [*BOS(text, add_special_tokens=False)["input_ids"], 1]
    )
    resumed = loader()
    resumed.load_state_dict({"seed": 1, "epoch": 1, "step": 2})
    assert batches(resumed) == epochs[1][2:]


def test_packed_rows_hold_whole_documents():
    rows = [{"text": " ".join(["sky"] * n)} for n in (9, 3, 5, 2, 8, 1, 1)]
    alone = rows_of(rows, BOS, batch_size=7)
    found = []
    loader = data.instruction(rows, BOS, 12, packing=True, pad_to_multiple_of=4)
    assert len(loader.dataset) == -(-sum(len(ids) for ids, _ in alone) // 12)
    for x, labels in loader:
        assert set(x) == {"input_ids", "position_ids"}
        for ids, positions, row in zip(x["input_ids"], x["position_ids"], labels, strict=True):
            starts = [*np.flatnonzero(positions == 0), len(ids)]
            for start, end in itertools.pairwise(starts):
                np.testing.assert_array_equal(positions[start:end], np.arange(end - start))
                found.append((ids[start:end].tolist(), row[start:end].tolist()))
    padding = [labels for _, labels in found if set(labels) == {-100}]
    assert sorted(each for each in found if each[1] not in padding) == sorted(alone)


@pytest.mark.not_torch
@pytest.mark.every_backend
def test_few_shapes_where_each_is_compiled():
    rows = [{"text": " ".join(["sky"] * (1 + i % 9))} for i in range(10)]
    loader = data.instruction(rows, BOS, 16, batch_size=4)
    assert len({tuple(labels.size()) for _, labels in loader}) == 1
    *_, (_, labels) = loader
    assert (labels[2:] == -100).all() and labels.size(0) == 4


def test_our_own_model_is_evaluated_per_token():
    model = models.CausalTransformer(400, d_model=8, num_layers=1, num_heads=2, max_length=64)
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    rows = [{"messages": CHAT}, {"messages": SKY}, {"text": "The sky"}]
    whole, *parts = (
        model.evaluate(data.instruction(some, MARKS, 64), verbose=0)
        for some in (rows, *([row] for row in rows))
    )
    tokens = [sum(label != -100 for label in labels) for _, labels in rows_of(rows, MARKS)]
    assert whole == pytest.approx(np.average(parts, weights=tokens), rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        ("nowhere.jsonl", FileNotFoundError, "nowhere"),
        ({"train": []}, TypeError, r"one split.*keys \['train'\]"),
        (["a"], TypeError, r"a dictionary with 'messages'.*'a' \(of type str\)"),
        (
            [{"instruction": "a", "output": "b"}],
            ValueError,
            r"a row with \['instruction', 'output'",
        ),
        ([{"text": ["sky"]}], TypeError, r"text must be a string. Received: text=\['sky'\]"),
        ([{"messages": "a"}], TypeError, r"messages must be a list of dict.*messages='a'"),
        (
            [{"prompt": SKY[:1], "completion": "a"}],
            TypeError,
            r"completion must.*both strings",
        ),
        ([{"messages": [{"from": "human"}]}], TypeError, "'role' and 'content'"),
        ([], ValueError, "at least one answer"),
    ],
)
def test_errors_of_rows(rows, error, match):
    with pytest.raises(error, match=match):
        data.instruction(rows, CHATS, 8)


def test_errors_of_arguments():
    rows = [{"text": "sky"}]
    with pytest.raises(ValueError, match="max_length must be a positive integer"):
        data.instruction(rows, BOS, 0)
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        data.instruction(rows, BOS, 8, batch_size=0)
    with pytest.raises(TypeError, match=r"tokenizer must come from.*a str"):
        data.instruction(rows, "gpt2", 8)
    with pytest.raises(TypeError, match="has no argument max_seq_length; write max_length"):
        data.instruction(rows, BOS, max_seq_length=8)
    without = chat_tokenizer(None)
    with pytest.raises(ValueError, match=r"set its tokenizer\.chat_template.*a \w+ without one"):
        data.instruction([{"messages": SKY}], without, 8)
    without.eos_token = None
    with pytest.raises(ValueError, match=r"tokenizer\.eos_token"):
        data.instruction(rows, without, 8)
