"""`generate` against `reference`: the same tokens, chosen, drawn and searched, on every backend."""

import pytest

from keras_llm.models import CausalTransformer, Seq2SeqTransformer
from tests.generation import reference
from tests.models.weights import randomize

SIZES = dict(vocab_size=37, d_model=16, num_layers=2, num_heads=4, max_length=64)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6], [7]]
SOURCES = [[3, 4, 5, 6], [7], [4, 4, 8, 9, 10, 2, 2]]
START, END = 1, 2
MODELS = {}


def build(make, scale=0.2, **options):
    """Models are not changed by these tests, so each is made once."""
    key = make, scale, repr(options)
    if key not in MODELS:
        MODELS[key] = randomize(make(**{**SIZES, **options}), scale=scale)
    return MODELS[key]


def expected_rows(model, max_new_tokens, **options):
    logits = reference.causal_logits(model, len(PROMPTS), 64)
    if model.backbone.config.pad_id is not None:
        logits = reference.without(logits, model.backbone.config.pad_id)
    new = reference.continuations(logits, PROMPTS, max_new_tokens, **options)
    return [prompt + row for prompt, row in zip(PROMPTS, new, strict=True)]


def tokens(rows):
    return [row.tolist() for row in rows]


@pytest.mark.parametrize(
    "options",
    [dict(), dict(num_key_value_heads=2, tie_embeddings=False), dict(pad_id=0, document_end_id=5)],
    ids=["plain", "grouped", "documents"],
)
@pytest.mark.sampled(2)
@pytest.mark.quick(3)
def test_the_most_probable(options):
    model = build(CausalTransformer, **options)
    expected = expected_rows(model, 40)
    assert len({i for row in expected for i in row}) > 8
    for _ in range(2):
        assert tokens(model.generate(PROMPTS, max_new_tokens=40)) == expected


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=1.0),
        dict(temperature=0.7, top_k=5),
        dict(temperature=1.3, top_p=0.8),
        dict(top_k=12, top_p=0.9),
    ],
    ids=repr,
)
@pytest.mark.sampled(4)
@pytest.mark.quick(4)
def test_drawn(options):
    model = build(CausalTransformer)
    for seed in range(2):
        got = model.generate(PROMPTS, max_new_tokens=30, seed=seed, **options)
        assert tokens(got) == expected_rows(model, 30, seed=seed, **options)


@pytest.mark.slow
@pytest.mark.torch_only
def test_rows_that_end_at_different_times():
    model, options = build(CausalTransformer), dict(temperature=1.0, seed=3)
    free = expected_rows(model, 40, **options)
    for row, place in ((0, 10), (1, 30), (2, 20)):
        options["end_id"] = free[row][len(PROMPTS[row]) + place]
        expected = expected_rows(model, 40, **options)
        assert len({len(row) - len(p) for row, p in zip(expected, PROMPTS, strict=True)}) > 1
        assert tokens(model.generate(PROMPTS, max_new_tokens=40, **options)) == expected


@pytest.mark.parametrize("options", [{}, dict(temperature=1.5, seed=0)], ids=repr)
@pytest.mark.sampled(2)
@pytest.mark.slow
def test_targets(options):
    model, drawn = build(Seq2SeqTransformer), bool(options)
    got = model.generate(SOURCES, START, END, max_new_tokens=20, **options)
    for i, source in enumerate(SOURCES):
        logits = reference.seq2seq_logits(model, source, START, len(SOURCES), 24)
        logits = reference.without(logits, 0)
        # All rows have this source: of those only the one of its own number counts.
        rows = reference.continuations(logits, [[]] * len(SOURCES), 20, END, **options)
        assert got[i].tolist() == rows[i if drawn else 0]


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(2, 0.0), (5, 1.0), (2, 1.5)])
@pytest.mark.sampled(3)
@pytest.mark.slow
def test_beams(num_beams, length_penalty):
    model, lengths = build(Seq2SeqTransformer, scale=0.1), []
    # An end that comes.
    end_id = int(model.generate(SOURCES[0], START, END, max_new_tokens=6)[-1])
    got = model.generate(
        SOURCES, START, end_id, 20, num_beams=num_beams, length_penalty=length_penalty
    )
    for row, source in zip(got, SOURCES, strict=True):
        logits = reference.seq2seq_logits(model, source, START, num_beams, 24)
        logits = reference.without(logits, 0)
        expected = reference.beam_search(logits, num_beams, 20, end_id, length_penalty)
        assert row.tolist() == expected
        lengths.append(len(expected))
    assert min(lengths) < 20 or length_penalty > 0
