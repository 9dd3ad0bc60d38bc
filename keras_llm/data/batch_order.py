"""Which rows make which batch: a pure function of (seed, epoch)."""

from collections.abc import Iterator

import numpy as np

from keras_llm.arguments import check_non_negative_int, check_positive_int
from keras_llm.data.permutation import KeyedPermutation

BATCHES_PER_POOL = 64
# Up to so many rows, an epoch's order is an array, 8 MB at most. For more it is computed.
ROWS_IN_MEMORY = 2**20


class BatchOrder:
    """Cuts the rows of a data set into batches: each row exactly once an epoch.

    The order depends on the seed and the number of the epoch only. So it can be reproduced from
    any step on, on any machine and with any number of workers, and these numbers are the whole
    state.

    A batch is padded to its longest row. With `lengths`, shuffling therefore puts rows of similar
    length in one batch: a random pool of rows is sorted by length and cut into batches, and then
    the batches of all pools are shuffled.

    Args:
        num_rows: The number of rows.
        batch_size: Rows a batch; the last rows may make a smaller one.
        shuffle: Whether every epoch has another order; otherwise the rows stay in order.
        seed: A non-negative integer.
        lengths: Integers `[num_rows]`, the keys to sort a pool by; or None.

    Example:

    >>> order = BatchOrder(num_rows=5, batch_size=2, shuffle=False, seed=0)
    >>> len(order), [batch.tolist() for batch in order.batches(epoch=0)]
    (3, [[0, 1], [2, 3], [4]])
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        lengths: np.ndarray | None = None,
    ):
        self.num_rows = num_rows
        self.batch_size = check_positive_int(batch_size, "batch_size")
        self.shuffle = shuffle
        self.seed = check_non_negative_int(seed, "seed")
        self.lengths = lengths

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def batches(self, epoch: int, first: int = 0) -> Iterator[np.ndarray]:
        """The row numbers of every batch of that epoch, from the batch `first` on."""
        rows, batches = self._order(epoch) if self.shuffle else (_same, _same)
        for step in range(first, len(self)):
            start = int(batches(np.array(step))) * self.batch_size
            places = np.arange(start, min(start + self.batch_size, self.num_rows))
            # Sorted, so that rows are read in the order in which they are stored, and an epoch of
            # a single batch has the same batch every time.
            yield np.sort(rows(places))

    def fingerprint(self) -> dict:
        """What a position in an epoch depends on, besides the seed."""
        return {"rows": self.num_rows, "batch_size": self.batch_size, "shuffle": self.shuffle}

    def _order(self, epoch):
        """Two functions: which row is at a place, and which of the batches comes at a step."""
        if self.lengths is None and self.num_rows > ROWS_IN_MEMORY:
            return KeyedPermutation(self.num_rows, (self.seed, epoch)), _same
        random = np.random.default_rng((self.seed, epoch))
        rows = random.permutation(self.num_rows)
        if self.lengths is None:
            return rows.__getitem__, _same
        size = self.batch_size * BATCHES_PER_POOL
        pools = (rows[start : start + size] for start in range(0, len(rows), size))
        by_length = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        return np.concatenate(by_length).__getitem__, random.permutation(len(self)).__getitem__


def _same(places: np.ndarray) -> np.ndarray:
    return places
