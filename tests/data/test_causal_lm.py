import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import data

pytestmark = pytest.mark.backend_free

documents = st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=12)
sizes = st.integers(1, 9)


def text_of(document):
    return " ".join(map(str, document))


def batches_of(loader):
    return [(ids.numpy(), labels.numpy()) for ids, labels in loader]


def labelled(batches, pad_id):
    """(id, label) of every position with a label, a list a row."""
    rows = (row for ids, labels in batches for row in zip(ids, labels, strict=True))
    return [
        [(int(i), int(j)) for i, j in zip(ids, labels, strict=True) if j != pad_id]
        for ids, labels in rows
    ]


@given(documents=documents, seq_len=sizes, batch_size=sizes)
def test_packed_every_token_but_the_first_is_a_label_once(
    word_tokenizer, documents, seq_len, batch_size
):
    tokenizer = word_tokenizer
    stream = [i for d in documents for i in [*tokenizer.encode(text_of(d)), tokenizer.end_id]]
    if len(stream) == 1:
        return
    loader = data.causal_lm(map(text_of, documents), tokenizer, seq_len, batch_size)
    batches = batches_of(loader)
    positions = itertools.chain.from_iterable(labelled(batches, tokenizer.pad_id))
    assert list(positions) == list(itertools.pairwise(stream))
    assert len(loader) == len(batches)
    assert [len(ids) for ids, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for ids, labels in batches:
        assert ids.shape == labels.shape == (len(ids), seq_len)
        assert ids.dtype == labels.dtype == np.int64
        np.testing.assert_array_equal(ids[labels == 0], 0)


@given(documents=documents, seq_len=sizes, batch_size=sizes)
def test_unpacked_rows_keep_documents_apart(word_tokenizer, documents, seq_len, batch_size):
    tokenizer = word_tokenizer
    encoded = [[*tokenizer.encode(text_of(d)), tokenizer.end_id] for d in documents]
    expected = []
    for ids in encoded:
        pairs = list(itertools.pairwise(ids))
        expected += [pairs[i : i + seq_len] for i in range(0, len(pairs), seq_len)]
    if not expected:
        return
    loader = data.causal_lm(map(text_of, documents), tokenizer, seq_len, batch_size, pack=False)
    assert labelled(batches_of(loader), tokenizer.pad_id) == expected


@given(documents=documents, batch_size=sizes, seed=st.integers(0, 5), pack=st.booleans())
def test_shuffling_is_a_permutation_of_the_rows(word_tokenizer, documents, batch_size, seed, pack):
    texts = [text_of(d) for d in documents] + ["1 2 3"]

    def rows(**options):
        loader = data.causal_lm(texts, word_tokenizer, 4, batch_size, pack=pack, **options)
        return [labelled(batches_of(loader), 0) for _ in range(2)]

    plain, again = rows()
    first, second = rows(shuffle=True, seed=seed)
    assert plain == again
    assert sorted(first) == sorted(second) == sorted(plain)
    assert rows(shuffle=True, seed=seed) == [first, second]


def test_epochs_and_seeds_have_orders_of_their_own(word_tokenizer):
    def epochs(seed):
        loader = data.causal_lm(
            [text_of(range(100))], word_tokenizer, 2, 3, shuffle=True, seed=seed
        )
        return [labelled(batches_of(loader), 0) for _ in range(3)]

    orders = epochs(0) + epochs(1)
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_fields_are_joined_by_a_newline(tiny_pairs):
    split = tiny_pairs["test"]
    tokenizer = data.train_tokenizer(split, 300)
    ids, labels = next(iter(data.causal_lm(split, tokenizer, 512, 10, pack=False)))
    whole = [
        [int(row[0]), *(int(i) for i in label)] for row, label in zip(ids, labels, strict=True)
    ]
    assert [tokenizer.decode(row) for row in whole] == ["\n".join(row) for row in split]


def test_large_ids_survive(word_tokenizer):
    """Past the 65536 that two bytes hold."""

    class Wide:
        vocab_size, pad_id, end_id = 200_000, 0, 2

        def encode_each(self, texts):
            return ([int(word) for word in text.split()] for text in texts)

    ids, labels = next(iter(data.causal_lm(["65535 65536 199999"], Wide(), 3, 1)))
    assert ids.tolist() == [[65535, 65536, 199999]]
    assert labels.tolist() == [[65536, 199999, 2]]


def test_errors(word_tokenizer, tiny_pairs):
    with pytest.raises(ValueError, match=r"at least one token to predict.*2 texts of 0 tokens"):
        data.causal_lm(["", ""], word_tokenizer, 4, 1, pack=False)
    with pytest.raises(ValueError, match=r"0 texts of 0 tokens"):
        data.causal_lm([], word_tokenizer, 4, 1)
    with pytest.raises(ValueError, match=r"seq_len must be a positive integer.*seq_len=0"):
        data.causal_lm(["1 2"], word_tokenizer, 0, 1)
    with pytest.raises(ValueError, match=r"batch_size must be a positive integer.*2.0"):
        data.causal_lm(["1 2"], word_tokenizer, 4, 2.0)
    with pytest.raises(ValueError, match=r"seed must be a non-negative integer"):
        data.causal_lm(["1 2"], word_tokenizer, 4, 2, seed=-1)
    with pytest.raises(TypeError, match=r"texts must be one split"):
        data.causal_lm(tiny_pairs, word_tokenizer, 4, 2)
