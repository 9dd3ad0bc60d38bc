"""`Seq2SeqTransformer.generate`: whole passes, brute force over all targets, forms, errors."""

import itertools

import numpy as np
import pytest

from keras_llm.models import Seq2SeqTransformer
from tests.logits import logits_of
from tests.models.weights import randomize

START, END, LENGTH = 1, 2, 3
SOURCES = [[3, 4, 5, 6], [7], [4, 4]]

# About what numpy does with logits, which is the same on every backend: one is enough.
ON_THE_HOST = pytest.mark.torch_only


def build(scale=0.3, **options):
    sizes = dict(vocab_size=9, target_vocab_size=5, d_model=16, num_layers=2, num_heads=4)
    return randomize(Seq2SeqTransformer(**{**sizes, **options}, max_length=12), scale=scale)


def log_probabilities(model, source, targets):
    """`[targets, length, vocab]` of a whole pass, never padding, in float64."""
    decoder_ids = np.concatenate([np.full((len(targets), 1), START), targets[:, :-1]], axis=1)
    encoder_ids = np.tile(source + [0] * (4 - len(source)), (len(targets), 1))
    logits = logits_of(model, {"encoder_ids": encoder_ids, "decoder_ids": decoder_ids})
    logits = logits.astype("float64")
    logits[..., 0] = -np.inf
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def best_target(model, source, length_penalty):
    """The best of all targets that end or are LENGTH long, by trying every one."""
    ids = np.array(list(itertools.product(range(1, 5), repeat=LENGTH)))
    log_p = np.take_along_axis(log_probabilities(model, source, ids), ids[..., None], -1)[..., 0]
    best, best_score = None, -np.inf
    for row, row_log_p in zip(ids.tolist(), log_p, strict=True):
        length = row.index(END) + 1 if END in row else LENGTH
        score = row_log_p[:length].sum() / length**length_penalty
        if score > best_score:
            best, best_score = row[:length], score
    return best


def greedy_target(model, source):
    ids = np.zeros((1, LENGTH), int)
    for i in range(LENGTH):
        ids[0, i] = log_probabilities(model, source, ids)[0, i].argmax()
        if ids[0, i] == END:
            break
    return ids[0, : i + 1].tolist()


def test_greedy_equals_whole_passes():
    model = build(num_key_value_heads=2)
    got = model.generate(SOURCES, START, END, max_new_tokens=LENGTH)
    assert [row.tolist() for row in got] == [greedy_target(model, s) for s in SOURCES]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.sampled(2)
@pytest.mark.quick(2)
def test_beams_for_all_find_the_best_target(length_penalty):
    model = build(scale=0.15)
    got = model.generate(
        SOURCES, START, END, max_new_tokens=LENGTH, num_beams=27, length_penalty=length_penalty
    )
    expected = [best_target(model, source, length_penalty) for source in SOURCES]
    assert [row.tolist() for row in got] == expected


@ON_THE_HOST
def test_a_few_beams_stay_with_their_source():
    model = build(scale=0.15)
    options = dict(start_id=START, end_id=END, max_new_tokens=LENGTH, num_beams=3)
    together = model.generate(SOURCES, **options)
    for row, source in zip(together, SOURCES, strict=True):
        np.testing.assert_array_equal(row, model.generate(source, **options))


@ON_THE_HOST
def test_forms():
    model = build()
    rows = model.generate(SOURCES, START, END, max_new_tokens=5)
    batch = np.array([[3, 4, 5, 6], [7, 0, 0, 0], [4, 4, 0, 0]])
    got = model.generate({"encoder_ids": batch}, START, END, max_new_tokens=5)
    assert got.shape == (3, max(map(len, rows)))
    for target, row in zip(got, rows, strict=True):
        assert target.tolist() == row.tolist() + [0] * (got.shape[1] - len(row))
    assert model.generate([7], START, END, max_new_tokens=5).tolist() == rows[1].tolist()


@ON_THE_HOST
def test_the_encoder_runs_once(monkeypatch):
    model, calls = build(), []
    encode = model.backbone.encode
    monkeypatch.setattr(
        model.backbone, "encode", lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs)
    )
    model.generate(SOURCES, START, END, max_new_tokens=4, num_beams=2)
    assert calls == [1]


@ON_THE_HOST
def test_sampling_is_seeded():
    model = build()
    options = dict(start_id=START, end_id=END, max_new_tokens=8, temperature=3.0)
    first = model.generate(SOURCES, seed=0, **options)
    for row, again in zip(first, model.generate(SOURCES, seed=0, **options), strict=True):
        np.testing.assert_array_equal(row, again)
    others = [model.generate(SOURCES, seed=s, **options) for s in (1, 2, 3)]
    assert any(o[0].tolist() != first[0].tolist() for o in others)


def test_mixed_precision():
    got = build(dtype="mixed_bfloat16").generate(SOURCES, START, END, max_new_tokens=4, num_beams=2)
    assert all(1 <= len(row) <= 4 for row in got)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(start_id=5), r"start_id must be in \[0, 5\)"),
        (dict(end_id=None), r"end_id must be in \[0, 5\)"),
        (dict(encoder_ids={"decoder_ids": [1]}), 'a dictionary with "encoder_ids"'),
        (dict(length_penalty="1"), "length_penalty must be a number"),
        (dict(end_id=-1), r"end_id must be in \[0, 5\)"),
        (dict(max_new_tokens=13), r"must be at most 12, the model's max_length"),
        (dict(num_beams=0), "num_beams must be a positive integer. Received: num_beams=0"),
        (dict(num_beams=2, top_k=2), "Beam search does not sample"),
        (dict(encoder_ids=[[1], []]), "encoder_ids must hold at least one token"),
        (dict(encoder_ids=[9]), r"encoder_ids must be in \[0, 9\)"),
        (dict(encoder_ids=np.ones((1, 13), int)), "encoder_ids must be at most max_length=12"),
    ],
)
@pytest.mark.torch_only
def test_wrong_arguments_are_errors(options, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        model.generate(**{"encoder_ids": SOURCES, "start_id": START, "end_id": END, **options})


def test_sources_of_different_lengths_need_a_padding_id():
    model = build(pad_id=None)
    with pytest.raises(
        ValueError, match=r"need a model with a pad_id. Received lengths: \[4, 1, 2\]"
    ):
        model.generate(SOURCES, START, END)
