import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import data
from keras_llm.data.mixture import MixtureOrder

pytestmark = pytest.mark.backend_free

# Ids of the words tell the source and the row.
TEXTS = {
    "a": [f"{i} {i}" for i in range(30)],
    "b": [f"{i} {i}" for i in range(30, 37)],
    "c": [f"{i} {i}" for i in range(40, 43)],
}
WEIGHTS = {"c": 2.0, "a": 1.0, "b": 1.0}


def mixture(tokenizer, texts=TEXTS, weights=WEIGHTS, **options):
    options = {"shuffle": True, "seed": 4, "pack": False, **options}
    return data.causal_lm(texts, tokenizer, 2, 8, weights=weights, **options)


def words(tokenizer, batches):
    return [[int(tokenizer.decode(row[:1])) for row in ids] for ids, _ in batches]


def source(word):
    return "a" if word < 30 else "b" if word < 40 else "c"


def test_an_epoch(word_tokenizer):
    """40 rows: 10 of a, 10 of b, 20 of c; each source goes on where it stopped."""
    loader = mixture(word_tokenizer)
    assert len(loader) == 5
    epochs = [list(itertools.chain(*words(word_tokenizer, loader))) for _ in range(3)]
    for found in epochs:
        counts = {name: sum(source(word) == name for word in found) for name in TEXTS}
        assert counts == {"a": 10, "b": 10, "c": 20}
        # Those of c, of which there are three, 6 or 7 times each.
        repeats = np.bincount([word - 40 for word in found if source(word) == "c"])
        assert sorted(repeats) == [6, 7, 7]
    of_a = [word for found in epochs for word in found if source(word) == "a"]
    assert sorted(of_a) == list(range(30)), "three epochs of ten rows are all thirty"
    assert len(set(map(tuple, epochs))) == 3


@given(done=st.integers(0, 20))
@settings(max_examples=15)
def test_resumes_with_the_very_next_batch(word_tokenizer, done):
    whole = mixture(word_tokenizer)
    expected = [found for _ in range(4) for found in words(word_tokenizer, whole)]
    again = mixture(word_tokenizer, seed=99)
    again.load_state_dict({"seed": 4, "epoch": done // 5, "step": done % 5})
    found = [batch for _ in range(5) for batch in words(word_tokenizer, again)]
    assert found[: 20 - done] == expected[done:]


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    parts=st.lists(st.floats(0.2, 1), min_size=5, max_size=5),
    seed=st.integers(0, 9),
)
@settings(max_examples=30)
def test_shares_are_the_weights(sizes, parts, seed):
    sizes = {str(k): size + 30 for k, size in enumerate(sizes)}
    weights = dict(zip(sizes, parts, strict=False))
    order = MixtureOrder(sizes, weights, 7, seed)
    rows = np.concatenate(list(order.batches(1)))
    assert len(rows) == sum(sizes.values())
    ends = np.cumsum(list(sizes.values()))
    counts = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(sizes))
    shares = np.array(list(weights.values())) / sum(weights.values())
    np.testing.assert_allclose(counts, shares * len(rows), atol=1)


def test_shares_hold_in_every_stretch():
    """As a sample without replacement: here within five standard deviations."""
    order = MixtureOrder({"a": 60_000, "b": 40_000}, {"a": 0.7, "b": 0.3}, 64, 0)
    of_a = [np.count_nonzero(rows < 60_000) for rows in order.batches(0)]
    for start in range(0, len(of_a) - 25, 25):
        share = sum(of_a[start : start + 25]) / 1600
        assert share == pytest.approx(0.7, abs=5 * (0.21 / 1600) ** 0.5)


def test_the_order_of_names_in_weights_does_not_matter(word_tokenizer):
    orders = [
        WEIGHTS,
        dict(reversed(WEIGHTS.items())),
        {name: 10 * w for name, w in WEIGHTS.items()},
    ]
    found = [words(word_tokenizer, mixture(word_tokenizer, weights=weights)) for weights in orders]
    assert found[0] == found[1] == found[2]


def test_errors(word_tokenizer):
    for weights in ({"a": 1}, {**WEIGHTS, "d": 1}, [1, 2, 3]):
        with pytest.raises(ValueError, match=r"a number for each source, \['a', 'b', 'c'\]"):
            mixture(word_tokenizer, weights=weights)
    for wrong in (0, -1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match=r"weights\['b'\] must be a number in \(0, inf\)"):
            mixture(word_tokenizer, weights={**WEIGHTS, "b": wrong})
    with pytest.raises(ValueError, match=r"at least one row of an epoch.*40"):
        mixture(word_tokenizer, weights={**WEIGHTS, "b": 1e-9})
    with pytest.raises(ValueError, match=r"shuffle=True.*shuffle=False"):
        mixture(word_tokenizer, shuffle=False)
    with pytest.raises(ValueError, match=r"must be a dictionary of sources.*list"):
        mixture(word_tokenizer, texts=TEXTS["a"])
    with pytest.raises(ValueError, match=r"texts\['b'\] must hold at least one token"):
        mixture(word_tokenizer, texts={**TEXTS, "b": [""]})
    with pytest.raises(TypeError, match=r"dictionary of sources with weights.*'a', 'b', 'c'"):
        mixture(word_tokenizer, weights=None)
    with pytest.raises(TypeError, match=r"no argument probabilities; write weights"):
        mixture(word_tokenizer, probabilities=[1])
