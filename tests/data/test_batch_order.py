import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm.data import batch_order
from keras_llm.data.batch_order import BatchOrder

pytestmark = pytest.mark.backend_free


def lists(batches):
    return [batch.tolist() for batch in batches]


@given(
    num_rows=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    by_length=st.booleans(),
    in_memory=st.booleans(),
)
def test_from_any_batch_on(num_rows, batch_size, shuffle, by_length, in_memory):
    lengths = np.arange(num_rows) % 7 if by_length else None
    order = BatchOrder(num_rows, batch_size, shuffle, 3, lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_order, "ROWS_IN_MEMORY", 2**20 if in_memory else 0)
        for epoch in range(2):
            whole = lists(order.batches(epoch))
            assert sorted(itertools.chain(*whole)) == list(range(num_rows))
            assert len(whole) == len(order)
            for first in range(len(order) + 1):
                assert lists(order.batches(epoch, first)) == whole[first:]


def test_the_order_of_few_rows_is_numpys():
    """It has been the same since the first version: results of earlier runs can be repeated."""
    rows = np.random.default_rng((5, 2)).permutation(np.arange(10))
    expected = [sorted(rows[start : start + 4].tolist()) for start in (0, 4, 8)]
    assert lists(BatchOrder(10, 4, True, 5).batches(2)) == expected


def test_the_first_batch_of_any_number_of_rows_needs_no_list_of_them():
    tracemalloc.start()
    order = BatchOrder(10**12, 16, True, 0)
    first = lists(itertools.islice(order.batches(0), 3))
    late = next(order.batches(1, len(order) - 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert len(set(itertools.chain(*first, late.tolist()))) == 64
