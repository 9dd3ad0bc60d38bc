"""Beam search against every sequence that there is."""

import itertools

import numpy as np
import pytest

from keras_llm.backend.host import to_numpy
from keras_llm.generation.beam_search import Beams, beam_search

pytestmark = pytest.mark.backend_free

VOCAB, LENGTH, END = 4, 4, 3


class Tables:
    """A model by table: the logits after a prefix are random numbers of the row and the prefix."""

    def __init__(self, seed, batch=3):
        self.seed, self.batch = seed, batch

    def logits(self, row, prefix):
        return 0.5 * np.random.default_rng([self.seed, row, *prefix]).standard_normal(VOCAB)

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


def search(tables, num_beams, length_penalty=1.0, ruled_out=None):
    step = beam_search(num_beams, ruled_out)
    beams = Beams.start(tables.batch, num_beams, LENGTH, LENGTH, END, length_penalty)
    # Each beam's row and prefix.
    prefixes = [(row, ()) for row in range(tables.batch) for _ in range(num_beams)]
    goes_on = True
    while goes_on:
        beams, parents, goes_on = step(np.stack([tables.logits(*p) for p in prefixes]), beams)
        last = to_numpy(beams.last)[:, 0].tolist()
        prefixes = [prefixes[parent] for parent in to_numpy(parents)]
        prefixes = [(row, (*prefix, i)) for (row, prefix), i in zip(prefixes, last, strict=True)]
    return [tuple(ids.tolist()) for ids in beams.rows()]


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.quick(3)
def test_with_beams_for_all_it_finds_the_best_of_all(seed, length_penalty):
    tables = Tables(seed)
    expected = [tables.best(row, length_penalty) for row in range(3)]
    assert search(tables, num_beams=150, length_penalty=length_penalty) == expected


@pytest.mark.slow
def test_the_length_penalty_matters():
    lengths = [
        np.mean([len(ids) for seed in range(5) for ids in search(Tables(seed), 150, penalty)])
        for penalty in (0.0, 1.0, 2.0)
    ]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@pytest.mark.parametrize("seed", range(10))
def test_one_beam_is_greedy(seed):
    tables = Tables(seed)
    for row, found in enumerate(search(tables, num_beams=1)):
        greedy = ()
        while len(greedy) < LENGTH and END not in greedy:
            greedy = (*greedy, int(tables.logits(row, greedy).argmax()))
        assert found == greedy


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.quick(3)
def test_rows_do_not_depend_on_each_other(num_beams):
    tables = Tables(0)
    assert search(Tables(0, batch=1), num_beams) == search(tables, num_beams)[:1]


@pytest.mark.slow
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
    assert any(2 in ids for ids in search(Tables(1), 4))
    assert not any(2 in ids for ids in search(Tables(1), 4, ruled_out=2))


def test_of_equal_sequences_the_first_is_found():
    class Equal(Tables):
        def logits(self, row, prefix):
            return np.zeros(VOCAB)

    # All have the same probability per token; the first of the highest score is found.
    assert search(Equal(0), 4, length_penalty=0.0) == [(END,)] * 3
    assert search(Equal(0), 4, length_penalty=2.0) == [(0, 0, 0, END)] * 3
