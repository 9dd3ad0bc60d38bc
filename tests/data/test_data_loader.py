import json
import random

import keras
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import data

pytestmark = pytest.mark.backend_free

RUNS_AHEAD = keras.backend.backend() == "tensorflow"
WORDS = " ".join(map(str, range(100)))
PAIRS = [(" ".join(["5"] * (i % 23 + 1)), " ".join(["6"] * (i % 17 + 1))) for i in range(60)]


def causal(tokenizer, **options):
    return data.causal_lm([WORDS], tokenizer, 3, 4, **{"shuffle": True, "seed": 7, **options})


def paired(tokenizer, **options):
    return data.seq2seq(PAIRS, tokenizer, batch_size=4, **{"shuffle": True, "seed": 7, **options})


def as_lists(batches):
    return [keras.tree.map_structure(lambda tensor: tensor.numpy().tolist(), b) for b in batches]


def stream(loader, count):
    """The next `count` batches, over as many epochs as it takes."""
    batches = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
    return as_lists(batches)


@pytest.mark.parametrize("make", [causal, paired])
@given(done=st.integers(0, 40))
def test_resumes_with_the_very_next_batch(word_tokenizer, make, done):
    whole = make(word_tokenizer)
    expected = stream(whole, 50)
    interrupted = make(word_tokenizer)
    assert stream(interrupted, done) == expected[:done]
    state = interrupted.state_dict()
    assert state == {"seed": 7, "epoch": done // len(whole), "step": done % len(whole)}
    resumed = make(word_tokenizer, seed=123)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert stream(resumed, 50 - done) == expected[done:]


def test_a_look_at_the_first_batch_changes_nothing(word_tokenizer):
    loader = causal(word_tokenizer)
    loader.load_state_dict({"seed": 7, "epoch": 3, "step": 2})
    expected = as_lists(loader)
    loader.load_state_dict({"seed": 7, "epoch": 3, "step": 2})
    unused = iter(loader)
    for _ in range(2):
        assert as_lists([next(iter(loader))]) == expected[:1]
    assert as_lists(loader) == expected
    assert loader.state_dict() == {"seed": 7, "epoch": 4, "step": 0}
    assert as_lists(unused) != expected, "an iterator begins where its first batch is asked for"


def test_an_epoch_of_one_batch_is_the_same_each_time(word_tokenizer):
    loader = data.causal_lm([WORDS], word_tokenizer, 3, 1000, shuffle=True)
    assert len(loader) == 1
    assert stream(loader, 1) == stream(loader, 1)


def test_workers_give_the_same_batches(word_tokenizer):
    alone, helped = paired(word_tokenizer), paired(word_tokenizer, num_workers=2)
    # A forked process crashes once array records have been read in this one.
    assert helped.multiprocessing_context.get_start_method() != "fork"
    assert stream(helped, 3) == stream(alone, 3)  # broken off
    assert stream(helped, 20) == stream(alone, 20)
    helped.load_state_dict({"seed": 1, "epoch": 5, "step": 11})
    alone.load_state_dict({"seed": 1, "epoch": 5, "step": 11})
    assert stream(helped, 8) == stream(alone, 8)
    assert helped.state_dict() == alone.state_dict() == {"seed": 1, "epoch": 6, "step": 4}


def test_wrong_states(word_tokenizer):
    loader = causal(word_tokenizer)
    with pytest.raises(ValueError, match=r"seed, epoch and step"):
        loader.load_state_dict({"epoch": 1})
    with pytest.raises(ValueError, match=r"state\['epoch'\] must be a non-negative integer"):
        loader.load_state_dict({"seed": 0, "epoch": -1, "step": 0})
    with pytest.raises(ValueError, match=f"has {len(loader)} steps"):
        loader.load_state_dict({"seed": 0, "epoch": 0, "step": len(loader)})


class Pairs(keras.Model):
    """The least model that reads pairs."""

    def __init__(self, vocab_size):
        super().__init__()
        self.embedding = keras.layers.Embedding(vocab_size, 4)
        self.head = keras.layers.Dense(vocab_size)

    def call(self, x):
        source = keras.ops.mean(self.embedding(x["encoder_ids"]), axis=1, keepdims=True)
        return self.head(self.embedding(x["decoder_ids"]) + source)


class Positions(keras.callbacks.Callback):
    def __init__(self, loader):
        super().__init__()
        self.loader = loader
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        state = self.loader.state_dict()
        self.seen.append((state["epoch"], state["step"]))


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=loss)
    return model


@pytest.mark.every_backend
def test_fit_reads_blocks(word_tokenizer):
    vocab_size = word_tokenizer.vocab_size
    model = compiled(
        keras.Sequential([keras.layers.Embedding(vocab_size, 4), keras.layers.Dense(vocab_size)])
    )
    train, valid = causal(word_tokenizer), causal(word_tokenizer, shuffle=False)
    positions = Positions(train)
    model.fit(
        train, validation_data=valid, epochs=2, verbose=0, shuffle=False, callbacks=[positions]
    )
    assert train.state_dict() == {"seed": 7, "epoch": 2, "step": 0}
    if not RUNS_AHEAD:
        steps = len(train)
        assert positions.seen == [divmod(done, steps) for done in range(1, 2 * steps + 1)]
    weights = [len(ids) for ids, _ in valid]
    losses = [model.test_on_batch(ids.numpy(), labels.numpy()) for ids, labels in valid]
    expected = np.average(losses, weights=weights)
    assert model.evaluate(valid, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lengths", [(3, 3, 20, 9, 30), (30, 30, 3, 9, 3), (3, 20, 3, 9, 30)])
@pytest.mark.every_backend
def test_fit_reads_batches_of_any_lengths(word_tokenizer, lengths):
    """Also where the first batches, from which TensorFlow infers the shapes, are as long."""
    pairs = [(" ".join(["5"] * length),) * 2 for length in lengths for _ in range(2)]
    loader = data.seq2seq(pairs, word_tokenizer, batch_size=2, pad_to_multiple_of=8)
    assert len({labels.size(1) for _, labels in loader}) > 2
    model = compiled(Pairs(word_tokenizer.vocab_size))
    model.fit(loader, epochs=2, verbose=0, shuffle=False)
    before = model.get_weights()
    model.fit(loader, validation_data=loader, epochs=1, verbose=0, shuffle=False)
    assert any((b != a).any() for b, a in zip(before, model.get_weights(), strict=True))


@pytest.mark.every_backend
def test_fit_resumes(word_tokenizer):
    """Weights after a run which is broken off and resumed equal those of a run in one go."""

    def model():
        keras.utils.set_random_seed(0)
        vocab_size = word_tokenizer.vocab_size
        layers = [keras.layers.Embedding(vocab_size, 4), keras.layers.Dense(vocab_size)]
        return compiled(keras.Sequential(layers))

    whole = model()
    whole.fit(causal(word_tokenizer), epochs=2, verbose=0, shuffle=False)

    parts, loader = model(), causal(word_tokenizer)
    parts.fit(loader, epochs=1, steps_per_epoch=4, verbose=0, shuffle=False)
    state = {"seed": 7, "epoch": 0, "step": 4}
    if not RUNS_AHEAD:
        assert loader.state_dict() == state
    loader = causal(word_tokenizer)
    loader.load_state_dict(state)
    with pytest.warns(UserWarning, match=r"ran out of data"):
        parts.fit(loader, epochs=2, verbose=0, shuffle=False)
    assert loader.state_dict() == {"seed": 7, "epoch": 2, "step": 0}
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_iteration_takes_no_global_random_number(word_tokenizer, num_workers):
    loader = causal(word_tokenizer, num_workers=num_workers)
    before = torch.get_rng_state()
    numpy_before, python_before = np.random.get_state()[1].copy(), random.getstate()
    stream(loader, len(loader) + 2)
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)
    assert random.getstate() == python_before


def test_fingerprints(word_tokenizer):
    """Two loaders of the same data have the same, those of other data another."""
    for make in (causal, paired):
        first = make(word_tokenizer).fingerprint()
        assert json.loads(json.dumps(first)) == first
        assert make(word_tokenizer, seed=1).fingerprint() == first
        assert make(word_tokenizer, shuffle=False).fingerprint()["shuffle"] is False
    first = paired(word_tokenizer).fingerprint()
    assert first["rows"] == 60 and first["batch_size"] == 4
    shorter = paired(word_tokenizer, max_length=5).fingerprint()
    other = data.seq2seq([*PAIRS[1:], PAIRS[0]], word_tokenizer, batch_size=4).fingerprint()
    assert len({first["tokens"], shorter["tokens"], other["tokens"]}) == 3
    rows = [{"text": "1 2 3"}, {"prompt": "4", "completion": "5 6"}]
    found = [
        data.instruction(some, word_tokenizer, max_length=8, batch_size=1).fingerprint()["tokens"]
        for some in (rows, rows, rows[::-1])
    ]
    assert found[0] == found[1] != found[2]
