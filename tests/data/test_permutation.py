import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm.data.permutation import KeyedPermutation

pytestmark = pytest.mark.backend_free


@given(size=st.integers(1, 3000), key=st.tuples(st.integers(0, 2**64), st.integers(0, 5)))
def test_each_number_once_and_each_place_by_itself(size, key):
    order = KeyedPermutation(size, key)
    numbers = order(np.arange(size))
    assert sorted(numbers.tolist()) == list(range(size))
    places = np.random.default_rng(0).integers(size, size=5)
    np.testing.assert_array_equal(order(places), numbers[places])


def test_more_numbers_than_any_memory_holds():
    numbers = KeyedPermutation(10**15, (3,))(np.arange(100_000))
    assert len(set(numbers.tolist())) == 100_000
    assert numbers.min() >= 0 and numbers.max() < 10**15
    # Uniform: each tenth of the range has a tenth, with a standard deviation of 95.
    counts = np.bincount(numbers * 10 // 10**15, minlength=10)
    assert counts == pytest.approx(10_000, abs=500)


def test_as_random_as_a_shuffle():
    """Fixed points, ascents and the correlation with the place, against their known values."""
    size = 50_000
    places = np.arange(size)
    found = [KeyedPermutation(size, (0, epoch))(places) for epoch in range(20)]
    fixed = [np.count_nonzero(numbers == places) for numbers in found]
    assert 5 <= sum(fixed) <= 40, "one is expected in each"
    for numbers in found:
        assert np.mean(np.diff(numbers) > 0) == pytest.approx(0.5, abs=0.01)
        assert abs(np.corrcoef(numbers, places)[0, 1]) < 0.025
        steps = np.diff(numbers)
        assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.025
    for one, other in itertools.pairwise(found):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.025
