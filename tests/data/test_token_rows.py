import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_llm.data import token_rows
from keras_llm.data.token_rows import DocumentRows, StreamRows

pytestmark = pytest.mark.backend_free


class Parts:
    """Texts of these lengths, in parts."""

    def __init__(self, lengths):
        self.offsets = [np.cumsum([0, *each]) for each in lengths]
        self.parts = np.cumsum([0, *map(sum, lengths)]).tolist()
        self.num_tokens = self.parts.pop()

    def part_offsets(self, part, check=False):
        return self.offsets[part]


@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=4),
    seq_len=st.integers(1, 5),
    group=st.integers(1, 4),
)
def test_rows_of_documents(lengths, seq_len, group):
    expected, start = [], 0
    for length in [length for part in lengths for length in part]:
        for first in range(0, length - 1, seq_len):
            expected.append((start + first, min(seq_len, length - 1 - first)))
        start += length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_rows, "TEXTS_PER_GROUP", group)
        rows = DocumentRows(Parts(lengths), seq_len)
        assert len(rows) == len(expected)
        order = np.random.default_rng(0).permutation(len(expected))
        starts, counts = rows.locate(order)
    assert list(zip(starts, counts, strict=True)) == [expected[row] for row in order]


@given(num_tokens=st.integers(0, 40), seq_len=st.integers(1, 9))
def test_rows_of_the_stream(num_tokens, seq_len):
    rows = StreamRows(Parts([[num_tokens]]), seq_len)
    starts, counts = rows.locate(np.arange(len(rows)))
    expected = [
        (first, min(seq_len, num_tokens - 1 - first)) for first in range(0, num_tokens - 1, seq_len)
    ]
    assert list(zip(starts, counts, strict=True)) == expected
