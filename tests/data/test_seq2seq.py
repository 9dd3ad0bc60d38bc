import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import data

pytestmark = pytest.mark.backend_free

numbers = st.lists(st.integers(0, 99), max_size=11).map(lambda n: " ".join(map(str, n)))
pairs_strategy = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def target_tokenizer():
    return data.train_tokenizer([" ".join(map(str, range(99, -1, -1)))], unit="word")


def rows_of(loader):
    """(source, decoder input, labels) of every row with labels, without padding."""
    rows = []
    for x, labels in loader:
        batch = [each.numpy() for each in (x["encoder_ids"], x["decoder_ids"], labels)]
        assert all(array.dtype == np.int64 for array in batch)
        for row in zip(*batch, strict=True):
            rows.append(tuple(tuple(int(i) for i in ids if i != 0) for ids in row))
    return [row for row in rows if row[2]]


def expected_rows(pairs, tokenizer, target_tokenizer, cut=None):
    encoded = [(tokenizer.encode(s), target_tokenizer.encode(t)) for s, t in pairs if s]
    return [
        (tuple(source[:cut]), (1, *target)[:cut], (*target, 2)[:cut]) for source, target in encoded
    ]


@given(pairs=pairs_strategy, batch_size=st.integers(1, 7), multiple=st.integers(1, 9))
def test_rows_and_padding(word_tokenizer, target_tokenizer, pairs, batch_size, multiple):
    expected = expected_rows(pairs, word_tokenizer, target_tokenizer)
    if not expected:
        return
    loader = data.seq2seq(
        pairs,
        word_tokenizer,
        target_tokenizer,
        batch_size=batch_size,
        pad_to_multiple_of=multiple,
    )
    assert rows_of(loader) == expected
    for step, (x, labels) in enumerate(loader):
        rows = expected[step * batch_size : (step + 1) * batch_size]
        for ids, part in ((x["encoder_ids"], 0), (x["decoder_ids"], 1), (labels, 2)):
            longest = max(len(row[part]) for row in rows)
            assert ids.size(0) == len(rows)
            assert ids.size(1) % multiple == 0
            assert longest <= ids.size(1) < longest + multiple


@given(pairs=pairs_strategy, max_length=st.integers(1, 8))
def test_max_length(word_tokenizer, target_tokenizer, pairs, max_length):
    expected = expected_rows(pairs, word_tokenizer, target_tokenizer, max_length)
    if not expected:
        return
    loader = data.seq2seq(
        pairs, word_tokenizer, target_tokenizer, batch_size=3, max_length=max_length
    )
    assert rows_of(loader) == expected
    assert all(labels.size(1) <= max_length for _, labels in loader)


@given(pairs=pairs_strategy, batch_size=st.integers(1, 7), seed=st.integers(0, 3))
def test_shuffling_is_a_permutation(word_tokenizer, pairs, batch_size, seed):
    def epochs():
        loader = data.seq2seq(
            [("1", "2"), *pairs], word_tokenizer, batch_size=batch_size, shuffle=True, seed=seed
        )
        return [rows_of(loader) for _ in range(2)]

    expected = sorted(expected_rows([("1", "2"), *pairs], word_tokenizer, word_tokenizer))
    first, second = epochs()
    assert sorted(first) == sorted(second) == expected
    assert epochs() == [first, second]


def test_bucketing_saves_padding_and_epochs_differ(word_tokenizer):
    random = np.random.default_rng(0)
    texts = [" ".join(["7"] * length) for length in random.integers(1, 60, size=2000)]
    pairs = list(zip(texts, texts, strict=True))

    def padding(loader):
        labels = [labels for _, labels in loader]
        return sum(int((each == 0).sum()) for each in labels) / sum(e.numel() for e in labels)

    options = {"batch_size": 16, "pad_to_multiple_of": 8}
    plain = data.seq2seq(pairs, word_tokenizer, **options)
    shuffled = data.seq2seq(pairs, word_tokenizer, shuffle=True, **options)
    lengths = [[labels.size(1) for _, labels in shuffled] for _ in range(2)]
    assert len(shuffled) == len(plain) == 125
    assert padding(shuffled) < 0.15 < 0.4 < padding(plain)
    assert lengths[0] != lengths[1]
    assert sorted(lengths[0]) != lengths[0]


def test_splits_with_two_fields(tiny_pairs):
    split = tiny_pairs["test"]
    tokenizer = data.train_tokenizer(split, 300)
    x, labels = next(iter(data.seq2seq(split, tokenizer, batch_size=10)))
    assert [tokenizer.decode(ids) for ids in x["encoder_ids"].numpy()] == list(split["tr"])
    assert [tokenizer.decode(ids) for ids in labels.numpy()] == list(split["en"])


def test_errors(word_tokenizer, tiny_pairs):
    with pytest.raises(ValueError, match=r"at least one pair.*1 pairs"):
        data.seq2seq([("", "1")], word_tokenizer, batch_size=1)
    with pytest.raises(ValueError, match=r"\(source, target\).*1 fields at row 0"):
        data.seq2seq(tiny_pairs["test"]["en"], word_tokenizer, batch_size=1)
    with pytest.raises(ValueError, match=r"max_length must be a positive integer"):
        data.seq2seq([("1", "2")], word_tokenizer, batch_size=1, max_length=0)
    with pytest.raises(ValueError, match=r"batch_size must be a positive integer"):
        data.seq2seq([("1", "2")], word_tokenizer, batch_size=0)
