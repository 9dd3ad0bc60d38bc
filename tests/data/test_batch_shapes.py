"""On backends that compile, batches of pairs have few shapes; everywhere with the argument None."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import data, losses, metrics, models
from keras_llm.data.batch_shapes import BATCHES_SAVED, MAX_SHAPES, choose_shapes, smallest_cover
from tests.logits import logits_of

COMPILES = keras.backend.backend() != "torch"
lengths = st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=60)


def padded_positions(lengths, shapes):
    """What a loop over rows and shapes says."""
    return sum(
        min(s + t for s, t in shapes if s >= source and t >= target) for source, target in lengths
    )


@given(lengths=lengths, batch_size=st.integers(1, 3))
@pytest.mark.backend_free
def test_shapes_cover_all_rows(lengths, batch_size):
    rows = np.array(lengths)
    shapes = choose_shapes(rows, batch_size)
    assert 1 <= len(shapes) <= MAX_SHAPES
    assert shapes[-1].tolist() == rows.max(axis=0).tolist()
    padded = smallest_cover(rows, shapes)
    assert (padded >= rows).all()
    assert padded.sum() == padded_positions(lengths, shapes.tolist())


@pytest.mark.backend_free
def test_two_clusters_get_a_shape_each():
    rows = np.array([(3, 4), (30, 40)] * 500)
    assert choose_shapes(rows, batch_size=4).tolist() == [[3, 4], [30, 40]]


@pytest.mark.backend_free
def test_the_second_shape_is_the_best_of_all():
    """By brute force, where one more shape is worth it."""
    random = np.random.default_rng(0)
    rows = random.integers(1, 10, (400, 2))
    shapes = choose_shapes(rows, batch_size=1).tolist()
    assert len(shapes) == 2
    longest = tuple(rows.max(axis=0))
    pairs = itertools.product(range(1, longest[0] + 1), range(1, longest[1] + 1))
    best = min(padded_positions(rows.tolist(), [longest, pair]) for pair in pairs)
    assert padded_positions(rows.tolist(), shapes) == best


@pytest.mark.backend_free
def test_a_shape_that_saves_little_is_not_worth_its_compilation():
    rows = np.array([(3, 4), (30, 40)] * 500)
    # Half of the rows save 63 of 70 positions; with the second shape a row has 38.5.
    saved_batches = 500 * 63 / 38.5
    assert len(choose_shapes(rows, batch_size=int(saved_batches / BATCHES_SAVED))) == 2
    assert len(choose_shapes(rows, batch_size=int(saved_batches / BATCHES_SAVED) + 1)) == 1


def shapes_of(loader):
    return {(x["encoder_ids"].numpy().shape, y.numpy().shape) for x, y in loader}


def test_batches_of_few_shapes(word_tokenizer):
    """3,000 pairs of 2 to 17 words: two shapes, as little padding as with multiples of 8."""
    random = np.random.default_rng(0)
    sizes = random.integers(2, 18, 3_000)
    pairs = [(" ".join(["5"] * n), " ".join(["6"] * m)) for n, m in zip(sizes, sizes, strict=True)]

    def loader(**options):
        return data.seq2seq(pairs[:-7], word_tokenizer, batch_size=16, shuffle=True, **options)

    def padding(loader):
        ids = [ids.numpy() for x, y in loader for ids in (x["encoder_ids"], y)]
        return sum((each == 0).sum() for each in ids) / sum(each.size for each in ids)

    few, rounded = loader(), loader(pad_to_multiple_of=8)
    seen = [shapes_of(few) for _ in range(3)]
    if COMPILES:
        assert len(set.union(*seen)) == 2
        assert padding(few) < padding(rounded) + 0.01
        assert len(shapes_of(rounded)) >= 4
    else:
        assert seen[0] == shapes_of(rounded)


@pytest.mark.not_torch
def test_an_incomplete_batch_is_filled_up_with_rows_that_do_not_count(word_tokenizer):
    pairs = [("1 2", "3"), ("4", "5 6 7"), ("8 9 10", "11")]
    x, labels = list(data.seq2seq(pairs, word_tokenizer, batch_size=2))[-1]
    assert x["encoder_ids"].shape == (2, 3) and labels.shape == (2, 4)
    assert x["encoder_ids"][0].tolist() == word_tokenizer.encode("8 9 10")
    assert labels[0].tolist() == [*word_tokenizer.encode("11"), 2, 0, 0]
    assert x["encoder_ids"][1].tolist() == x["encoder_ids"][0].tolist()
    assert labels[1].tolist() == [0] * 4
    whole = list(data.seq2seq(pairs, word_tokenizer, batch_size=8))
    assert [len(labels) for _, labels in whole] == [3], "rows of a single batch are not filled up"


@pytest.mark.parametrize("pad_to_multiple_of", [None, 8])
@pytest.mark.sampled(2)
def test_numbers_do_not_depend_on_the_shapes(word_tokenizer, pad_to_multiple_of):
    random = np.random.default_rng(0)
    # Few lengths: JAX compiles the operations of each pair of lengths.
    texts = [" ".join(map(str, random.integers(0, 100, n))) for n in random.choice([1, 11], 21)]
    pairs = list(itertools.pairwise(texts))
    size = word_tokenizer.vocab_size
    keras.utils.set_random_seed(0)
    model = models.Seq2SeqTransformer(size, d_model=8, num_layers=1, num_heads=2, dropout=0.0)
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)
    model.compile(
        "sgd", loss, metrics=[metrics.MaskedTokenAccuracy(ignore_index=0, name="accuracy")]
    )
    nll = tokens = correct = 0
    for source, target in pairs:
        ids = word_tokenizer.encode(target)
        inputs = {
            "encoder_ids": np.array([word_tokenizer.encode(source)]),
            "decoder_ids": np.array([[1, *ids]]),
        }
        logits = logits_of(model, inputs)[0].astype(np.float64)
        labels = np.array([*ids, 2])
        lse = np.log(np.exp(logits).sum(-1))
        nll += (lse - logits[np.arange(len(labels)), labels]).sum()
        correct += (logits.argmax(-1) == labels).sum()
        tokens += len(labels)
    loader = data.seq2seq(
        pairs, word_tokenizer, batch_size=8, pad_to_multiple_of=pad_to_multiple_of
    )
    logs = model.evaluate(loader, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert logs["accuracy"] == pytest.approx(correct / tokens)
