"""The samplers against distributions worked out by hand and against Hugging Face's filters."""

import keras
import numpy as np
import pytest
import torch
from transformers import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from keras_llm.backend.host import to_numpy
from keras_llm.generation import Sampler
from keras_llm.generation import probabilities as tensor_of_probabilities

pytestmark = pytest.mark.backend_free

P = np.array([[0.05, 0.4, 0.1, 0.25, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]])
LOGITS = np.log(P)


def probabilities(*arguments, **options):
    return to_numpy(tensor_of_probabilities(*arguments, **options))


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(), P[0]),
        (dict(temperature=0.5), P[0] ** 2 / (P[0] ** 2).sum()),
        (dict(top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (dict(top_k=5), P[0]),
        (dict(top_p=1.0), P[0]),
        (dict(top_p=0.39), [0, 1, 0, 0, 0]),
        (dict(top_p=0.41), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (dict(top_p=0.66), [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
        (dict(top_p=1e-9), [0, 1, 0, 0, 0]),
        # 0.4 is 0.47 of what top_k leaves, so 0.4 and 0.25 are needed for a share of one half.
        (dict(top_k=3, top_p=0.5), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    ],
)
def test_probabilities(options, expected):
    np.testing.assert_allclose(probabilities(LOGITS, **options)[0], expected, rtol=1e-12)


def test_equal_tokens_are_kept_by_their_id():
    assert np.flatnonzero(probabilities(LOGITS, top_k=2)[1]).tolist() == [0, 1]
    assert np.flatnonzero(probabilities(LOGITS, top_p=0.5)[1]).tolist() == [0, 1, 2]
    assert Sampler()(LOGITS).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize("top_k", [1, 7, 50])
@pytest.mark.parametrize("top_p", [0.2, 0.9])
def test_equals_hugging_face(temperature, top_k, top_p):
    logits = 3 * np.random.default_rng(0).standard_normal((4, 50))
    scores = torch.tensor(logits)
    for filter_ in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k),
        TopPLogitsWarper(top_p),
    ):
        scores = filter_(None, scores)
    got = probabilities(logits, temperature, top_k, top_p)
    np.testing.assert_allclose(got, scores.softmax(-1).numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [dict(temperature=1.0), dict(temperature=0.5), dict(top_k=3)])
@pytest.mark.quick(3)
def test_draws_follow_the_probabilities(options):
    draws = 20_000
    sampler = Sampler(seed=0, **options)
    chosen = sampler(np.tile(LOGITS[:1], (draws, 1)))
    expected = probabilities(LOGITS, **options)[0]
    frequencies = np.bincount(chosen, minlength=5) / draws
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(frequencies - expected) <= 5 * error).all()


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
def test_what_is_cut_is_never_drawn(draw):
    class Generator:
        def random(self, count):
            return np.full(count, draw)

    sampler = Sampler(top_k=2)
    sampler.generators = [Generator()]
    assert sampler(LOGITS[:1]).tolist() == [1 if draw == 0 else 3]


def test_a_row_draws_by_the_seed_and_its_number():
    def draws(rows, seed):
        sampler = Sampler(temperature=1.0, seed=seed)
        return np.array([sampler(np.zeros((rows, 1000))) for _ in range(8)])

    np.testing.assert_array_equal(draws(3, seed=7), draws(3, seed=7))
    np.testing.assert_array_equal(draws(3, seed=7)[:, :2], draws(2, seed=7))
    assert (draws(3, seed=7) != draws(3, seed=8)).any()
    assert len(np.unique(draws(3, seed=7), axis=1).T) == 3


def test_without_a_seed_keras_s_makes_it_repeatable():
    def draw():
        return Sampler(temperature=1.0)(np.zeros((4, 1000))).tolist()

    keras.utils.set_random_seed(5)
    first, second = draw(), draw()
    keras.utils.set_random_seed(5)
    assert draw() == first != second


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(temperature=0.0),
            "none of temperature, top_k and top_p. Received: temperature=0.0",
        ),
        (dict(temperature=-1.0), r"temperature must be a number in \(0, inf\)"),
        (dict(temperature=float("nan")), r"temperature must be a number in \(0, inf\)"),
        (dict(top_k=2.5), "top_k must be a positive integer. Received: top_k=2.5"),
        (dict(temperature="hot"), "temperature must be a number"),
        (dict(seed=-1), "seed must be a non-negative integer"),
        (dict(top_k=0), "top_k must be a positive integer. Received: top_k=0"),
        (dict(top_p=0.0), r"top_p must be a number in \(0, 1\]. Received: top_p=0.0"),
        (dict(top_p=1.1), r"top_p must be a number in \(0, 1\]. Received: top_p=1.1"),
    ],
)
def test_options_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


def test_more_than_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="top_k must be at most 5, the size of the vocabulary"):
        Sampler(top_k=6)(LOGITS)
