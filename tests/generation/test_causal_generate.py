"""`CausalTransformer.generate`: the cache against whole passes, prompts, seeds, errors."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm.models import CausalTransformer
from tests.logits import logits_of
from tests.models.weights import randomize

SIZES = dict(vocab_size=23, d_model=16, num_layers=2, num_heads=4, max_length=24)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5], [7]]
MODELS = {}

# About what numpy does with logits, which is the same on every backend: one is enough.
ON_THE_HOST = pytest.mark.torch_only


def build(**options):
    """Models are not changed by these tests, so each is made once."""
    key = repr(options)
    if key not in MODELS:
        MODELS[key] = randomize(CausalTransformer(**SIZES, **options))
    return MODELS[key]


def whole_pass_greedy(model, prompt, steps):
    """The most probable token of a pass over everything so far, again and again."""
    # What stands after a token does not matter to it, and one length compiles once.
    ids = np.zeros((1, 12), int)
    ids[0, : len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + steps):
        ids[0, length] = logits_of(model, ids)[0, length - 1].argmax()
    return ids[0, : len(prompt) + steps].tolist()


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(num_key_value_heads=2, tie_embeddings=False, dropout=0.5),
    ],
)
@pytest.mark.sampled(2)
@pytest.mark.quick(2)
def test_the_cache_changes_nothing(options):
    model = build(**options)
    expected = whole_pass_greedy(model, PROMPTS[1], steps=6)
    assert len(set(expected[6:])) > 2
    got = model.generate(PROMPTS[1], max_new_tokens=6)
    assert got.tolist() == expected and got.ndim == 1


@pytest.mark.torch_only
def test_without_a_number_of_tokens_it_takes_what_there_is_room_for():
    model = build()
    whole = model.generate(PROMPTS[1], max_new_tokens=18)
    np.testing.assert_array_equal(model.generate(PROMPTS[1]), whole)
    assert len(model.generate(PROMPTS)[1]) == 24
    with pytest.raises(ValueError, match="at most 0: the longest prompt has 24 tokens"):
        model.generate([1] * 24)


def test_logits_with_the_cache_equal_those_of_a_whole_pass():
    model = build()
    ids = np.random.default_rng(0).integers(0, 23, (3, 9))
    expected = ops.convert_to_numpy(model.backbone(ids))
    state = model.backbone.start(np.zeros(3, int), capacity=12)
    pieces = []
    for piece in np.split(ids, [4, 5], axis=1):
        hidden, state = model.backbone.extend(piece, state)
        pieces.append(ops.convert_to_numpy(hidden))
    got = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.torch_only
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_a_model_that_is_compiled_generates_batches_of_any_size(rows):
    model = MODELS.setdefault("wide", randomize(CausalTransformer(4096, 64, 1, 4, max_length=80)))
    model.compile(jit_compile=True)
    prompts = np.random.default_rng(rows).integers(0, 4096, (rows, 5))
    got = model.generate(prompts, max_new_tokens=70)
    expected = logits_of(model, got[:, :-1]).argmax(-1)
    np.testing.assert_array_equal(got[:, 5:], expected[:, 4:])


def test_prompts_of_different_lengths_go_on_as_if_alone():
    model = build()
    together = model.generate(PROMPTS, max_new_tokens=6)
    assert isinstance(together, list)
    for row, prompt in zip(together, PROMPTS, strict=True):
        np.testing.assert_array_equal(row, model.generate(prompt, max_new_tokens=6))


@ON_THE_HOST
@pytest.mark.parametrize("side", [[0, 2], [2, 0]])
def test_the_padding_of_a_batch_is_no_part_of_a_prompt(side):
    model = build(pad_id=0)
    batch = np.pad([[3, 1, 4, 1], [9, 2, 6, 5]], [(0, 0), side])
    got = model.generate(batch, max_new_tokens=5)
    assert got.shape == (2, 9)
    for row, prompt in zip(got, batch, strict=True):
        np.testing.assert_array_equal(row, model.generate(prompt[prompt > 0], max_new_tokens=5))


@ON_THE_HOST
def test_padding_is_never_generated_unless_it_is_the_end():
    model = build(pad_id=0)
    likes_padding = CausalTransformer.from_config(model.get_config())
    likes_padding.set_weights(model.get_weights())
    # Tied: the first hidden vector's own direction scores highest, for the id of padding.
    hidden = ops.convert_to_numpy(model.backbone(np.array([PROMPTS[0]])))[0, -1]
    table = model.backbone.token_embedding.embeddings.numpy().copy()
    table[0] = 10 * hidden
    likes_padding.backbone.token_embedding.embeddings.assign(table)
    assert 0 not in likes_padding.generate(PROMPTS[0], max_new_tokens=8)
    ended = likes_padding.generate(PROMPTS[0], max_new_tokens=8, end_id=0)
    assert ended.tolist() == [*PROMPTS[0], 0]


@ON_THE_HOST
def test_rows_end_at_the_end_id():
    model = build()
    free = model.generate(PROMPTS, max_new_tokens=8)
    end_id = int(free[0][5])
    ended = model.generate(PROMPTS, max_new_tokens=8, end_id=end_id)
    for row, whole, prompt in zip(ended, free, PROMPTS, strict=True):
        new = whole[len(prompt) :].tolist()
        length = new.index(end_id) + 1 if end_id in new else 8
        assert row.tolist() == [*prompt, *new[:length]]
    assert len(ended[0]) <= 6


@ON_THE_HOST
def test_a_batch_is_filled_up_with_the_end_id():
    model = build()
    prompts = np.array([[3, 1, 4], [7, 7, 7]])
    free = model.generate(prompts, max_new_tokens=8)
    end_id = next(i for i in free[0, 3:] if i not in free[1, 3:])
    got = model.generate(prompts, max_new_tokens=8, end_id=int(end_id))
    stop = free[0].tolist().index(end_id, 3) + 1
    assert got.shape == free.shape
    assert got[0].tolist() == free[0, :stop].tolist() + [end_id] * (11 - stop)
    np.testing.assert_array_equal(got[1], free[1])


@ON_THE_HOST
def test_seeds():
    model, options = build(), dict(max_new_tokens=8, temperature=1.5, top_k=20, top_p=0.99)
    first = model.generate(PROMPTS, seed=1, **options)
    for row, again in zip(first, model.generate(PROMPTS, seed=1, **options), strict=True):
        np.testing.assert_array_equal(row, again)
    alone = model.generate(PROMPTS[0], seed=1, **options)
    np.testing.assert_array_equal(alone, first[0])
    assert any(
        model.generate(PROMPTS[0], seed=s, **options).tolist() != alone.tolist() for s in (2, 3)
    )


@ON_THE_HOST
def test_top_k_of_one_and_a_cold_temperature_are_greedy():
    model = build()
    greedy = model.generate(PROMPTS[0], max_new_tokens=6)
    for options in (dict(top_k=1), dict(temperature=1e-4), dict(top_p=1e-6)):
        got = model.generate(PROMPTS[0], max_new_tokens=6, **options)
        np.testing.assert_array_equal(got, greedy)


def test_the_model_stays_as_it_was():
    model = build(dropout=0.5)
    before = [w.numpy().copy() for w in model.weights]
    state = [v.numpy().copy() for v in model.non_trainable_variables]
    model.generate(PROMPTS[0], max_new_tokens=4, temperature=1.0)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.torch_only
def test_nothing_is_recorded_for_a_gradient(monkeypatch):
    import torch

    model, enabled = build(), []
    extend = model.backbone.extend

    def spy(ids, state):
        hidden, state = extend(ids, state)
        enabled.append(torch.is_grad_enabled() or hidden.requires_grad)
        return hidden, state

    monkeypatch.setattr(model.backbone, "extend", spy)
    model.generate(PROMPTS[0], max_new_tokens=3)
    assert enabled == [False] * 3 and torch.is_grad_enabled()


@ON_THE_HOST
def test_one_token_a_step(monkeypatch):
    model, lengths = build(), []
    extend = model.backbone.extend

    def spy(ids, state):
        lengths.append(ids.shape[1])
        return extend(ids, state)

    monkeypatch.setattr(model.backbone, "extend", spy)
    model.generate(PROMPTS[1], max_new_tokens=4)
    assert lengths == [6, 1, 1, 1]


def test_mixed_precision():
    model = build(dtype="mixed_bfloat16")
    got = model.generate(PROMPTS, max_new_tokens=4)
    for row, prompt in zip(got, PROMPTS, strict=True):
        assert row[: len(prompt)].tolist() == prompt and len(row) == len(prompt) + 4
    state = model.backbone.start(np.zeros(1, int), capacity=3)
    _, state = model.backbone.extend(np.array([PROMPTS[0]]), state)
    assert keras.backend.standardize_dtype(state.caches[0].key.dtype) == "bfloat16"


@pytest.mark.parametrize(
    "ids, options, message",
    [
        ([], {}, r"at least one token in every row. Received lengths \(without padding\): \[0\]"),
        ([[1], []], {}, r"Received lengths \(without padding\): \[1, 0\]"),
        (np.zeros((0, 3), int), {}, r"Received lengths \(without padding\): \[\]"),
        (np.zeros((1, 3), int), dict(pad_id=0), r"Received lengths \(without padding\): \[0\]"),
        (np.array([[1, 0, 1]]), dict(pad_id=0), r"only before or after the tokens .* \[1, 0, 1\]"),
        (np.ones((1, 1, 3), int), {}, r"a batch \[batch, length\] or a list of rows"),
        ([1, [2]], {}, r"a list of rows. Received: rows of shape \[\(\), \(1,\)\]"),
        ([[[1]]], {}, r"a list of rows. Received: rows of shape \[\(1, 1\)\]"),
        (5, {}, r"a list of rows. Received: rows of shape \[\(\)\]"),
        ([1, 23], {}, r"ids must be in \[0, 23\), the vocabulary. Received: 23"),
        (
            [1],
            dict(max_new_tokens=24),
            "at most 23: the longest prompt has 1 tokens, .* max_length is 24. Received: "
            "max_new_tokens=24",
        ),
        ([1], dict(max_new_tokens=0), "max_new_tokens must be a positive integer"),
        ([1], dict(max_new_tokens=2.5), "max_new_tokens must be a positive integer"),
        ([1] * 25, {}, "max_new_tokens must be at most 0: the longest prompt has 25 tokens"),
        ([1], dict(end_id=1.0), r"end_id must be in \[0, 23\)"),
        ([1], dict(end_id=23), r"end_id must be in \[0, 23\)"),
        ([1], dict(temperature=0.0), "temperature must be greater than 0"),
        ([1], dict(top_k=24), "top_k must be at most 23, the size of the vocabulary"),
        ([1], dict(top_p=2.0), r"top_p must be a number in \(0, 1\]"),
    ],
)
@pytest.mark.torch_only
def test_wrong_arguments_are_errors(ids, options, message):
    options = dict(options)
    model = build(**({"pad_id": options.pop("pad_id")} if "pad_id" in options else {}))
    with pytest.raises(ValueError, match=message):
        model.generate(ids, **{"max_new_tokens": 3, **options})


@pytest.mark.torch_only
def test_prompts_that_are_not_integers_are_an_error():
    with pytest.raises(TypeError, match="ids must be integers"):
        build().generate([1.0, 2.0])


def test_a_model_that_diverged_says_so():
    model = randomize(CausalTransformer(**SIZES))
    model.backbone.norm.scale.assign(np.full(16, np.nan))
    with pytest.raises(ValueError, match="logits are NaN"):
        model.generate([1, 2], max_new_tokens=2)
