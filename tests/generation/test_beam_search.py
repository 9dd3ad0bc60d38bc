"""Beam search against every sequence that there is."""

import itertools

import numpy as np
import pytest

from keras_llm.generation import Sampler, beam_search, generate

pytestmark = pytest.mark.backend_free

VOCAB, LENGTH, END = 4, 4, 3


class Tables:
    """A model by table: the logits after a prefix are random numbers of the row and the prefix."""

    def __init__(self, seed, batch=3):
        self.seed, self.batch = seed, batch

    def logits(self, row, prefix):
        return 0.5 * np.random.default_rng([self.seed, row, *prefix]).standard_normal(VOCAB)

    def start(self, copies):
        """The logits of the first token, and as state each beam's row and prefix."""
        state = [(row, ()) for row in range(self.batch) for _ in range(copies)]
        return np.stack([self.logits(*beam) for beam in state]), state

    def step(self, ids, state, parents=None):
        beams = state if parents is None else [state[parent] for parent in parents]
        state = [
            (row, (*prefix, int(i))) for (row, prefix), i in zip(beams, ids[:, 0], strict=True)
        ]
        return np.stack([self.logits(*beam) for beam in state]), state

    def score(self, row, ids, length_penalty):
        total = 0.0
        for i, token in enumerate(ids):
            logits = self.logits(row, ids[:i])
            total += logits[token] - np.log(np.exp(logits).sum())
        return total / len(ids) ** length_penalty

    def best(self, row, length_penalty):
        """The best of all sequences that end, or are as long as may be."""
        others = range(VOCAB - 1)
        sequences = [
            (*prefix, END) for n in range(LENGTH) for prefix in itertools.product(others, repeat=n)
        ]
        sequences += itertools.product(others, repeat=LENGTH)
        return max(sequences, key=lambda ids: self.score(row, ids, length_penalty))


def search(tables, num_beams, length_penalty=1.0):
    logits, state = tables.start(num_beams)
    found = beam_search(logits, state, tables.step, num_beams, LENGTH, END, length_penalty)
    return [tuple(ids.tolist()) for ids in found]


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_with_beams_for_all_it_finds_the_best_of_all(seed, length_penalty):
    tables = Tables(seed)
    expected = [tables.best(row, length_penalty) for row in range(3)]
    assert search(tables, num_beams=150, length_penalty=length_penalty) == expected


def test_the_length_penalty_matters():
    lengths = [
        np.mean([len(ids) for seed in range(5) for ids in search(Tables(seed), 150, penalty)])
        for penalty in (0.0, 1.0, 2.0)
    ]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@pytest.mark.parametrize("seed", range(10))
def test_one_beam_is_greedy(seed):
    tables = Tables(seed)
    logits, state = tables.start(1)
    greedy = generate(logits, state, tables.step, Sampler(), LENGTH, END)
    assert search(tables, num_beams=1) == [tuple(ids.tolist()) for ids in greedy]


@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_rows_do_not_depend_on_each_other(num_beams):
    tables = Tables(0)
    assert search(Tables(0, batch=1), num_beams) == search(tables, num_beams)[:1]


def test_more_beams_find_better_sequences_on_the_whole():
    def mean_score(num_beams):
        return np.mean(
            [
                tables.score(row, ids, 1.0)
                for tables in map(Tables, range(30))
                for row, ids in enumerate(search(tables, num_beams))
            ]
        )

    scores = [mean_score(n) for n in (1, 2, 4, 150)]
    assert scores == sorted(scores) and len(set(scores)) == 4


def test_a_token_that_is_ruled_out_is_never_chosen():
    tables = Tables(1)
    step = tables.step

    def never_two(ids, state, parents=None):
        logits, state = step(ids, state, parents)
        return np.where(np.arange(VOCAB) == 2, -np.inf, logits), state

    tables.step = never_two
    logits, state = tables.start(4)
    logits[:, 2] = -np.inf
    found = beam_search(logits, state, tables.step, 4, LENGTH, END)
    assert not any(2 in ids for ids in found)
