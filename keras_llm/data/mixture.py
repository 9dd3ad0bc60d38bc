"""Several sources in one stream of batches, each with a share of the rows."""

from collections.abc import Iterator, Mapping

import numpy as np

from keras_llm.arguments import check_number
from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.permutation import KeyedPermutation


class MixtureOrder:
    """Cuts a mixture into batches: as a `BatchOrder`, of as many rows as all sources have together.

    In an epoch, source k gives w_k / sum(w) of these rows, rounded, in a random order. A source
    that has fewer begins again; one that has more goes on in the next epoch where it stopped, in an
    order of its own that depends on the seed. So the rows of a batch are a function of the seed,
    the epoch and the step.

    Args:
        sizes: The number of rows of each source. Row r of source k is r + sum(sizes[:k]).
        weights: The weight w_k of each source.
        batch_size: Rows per batch; the last rows may make a smaller one.
        seed: A non-negative integer.

    Example:

    >>> order = MixtureOrder({"a": 6, "b": 2}, {"a": 0.5, "b": 0.5}, batch_size=8, seed=0)
    >>> [batch.tolist() for batch in order.batches(epoch=0)]  # four of each: 6 and 7 are of b
    [[0, 2, 3, 5, 6, 6, 7, 7]]
    """

    def __init__(
        self, sizes: Mapping[str, int], weights: Mapping[str, float], batch_size: int, seed: int
    ):
        self.weights = check_mixture_weights(weights, sizes)
        self.sizes = np.array(list(sizes.values()))
        self._order = BatchOrder(int(self.sizes.sum()), batch_size, True, seed)
        shares = np.array([self.weights[name] for name in sizes])
        ends = np.cumsum(shares) / shares.sum() * self._order.num_rows
        # Of the rows of an epoch, those of source k are from ends[k - 1] to ends[k].
        self.ends = np.rint(ends).astype(np.int64)
        self.counts = np.diff(self.ends, prepend=0)
        if not self.counts.all():
            raise ValueError(
                "weights must give each source at least one row of an epoch, which has as many as "
                f"all sources together, {self._order.num_rows}. Received: weights={weights}"
            )

    def __len__(self) -> int:
        return len(self._order)

    @property
    def seed(self) -> int:
        """What the order of all epochs depends on."""
        return self._order.seed

    @seed.setter
    def seed(self, seed: int):
        self._order.seed = seed

    def batches(self, epoch: int, first: int = 0) -> Iterator[np.ndarray]:
        """The row numbers of every batch of that epoch, from the batch `first` on."""
        orders = [KeyedPermutation(int(n), (self.seed, k)) for k, n in enumerate(self.sizes)]
        first_rows = np.cumsum(self.sizes) - self.sizes
        for drawn in self._order.batches(epoch, first):
            sources = np.searchsorted(self.ends, drawn, side="right")
            rows = np.empty_like(drawn)
            for k in np.unique(sources):
                mine = sources == k
                place = epoch * self.counts[k] + drawn[mine] - (self.ends[k] - self.counts[k])
                rows[mine] = first_rows[k] + orders[k](place % self.sizes[k])
            yield np.sort(rows)

    def fingerprint(self) -> dict:
        """What a position in an epoch depends on, besides the seed."""
        return {**self._order.fingerprint(), "weights": self.weights}


class MixedBlocks:
    """The rows of several sources, one after another, all of one length.

    Args:
        sources: For each name, what gives its rows: `Blocks` of one `seq_len`.
    """

    fixed_length = True

    def __init__(self, sources: Mapping):
        self.sources = dict(sources)
        self.ends = np.cumsum([len(source) for source in self.sources.values()])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitems__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Rows are sorted, so those of a source are neighbours.
        cuts = np.searchsorted(rows, self.ends)
        found, start = [], 0
        for source, end, cut in zip(self.sources.values(), self.ends, cuts, strict=True):
            if start < cut:
                found.append(source.__getitems__(rows[start:cut] - (end - len(source))))
            start = cut
        ids, labels = zip(*found, strict=True)
        return np.concatenate(ids), np.concatenate(labels)

    def fingerprint(self) -> dict:
        """That of every source; what they have in common stands once."""
        each = {name: source.fingerprint() for name, source in self.sources.items()}
        common = next(iter(each.values()))
        return {**common, "tokens": {name: found["tokens"] for name, found in each.items()}}


def check_mixture_weights(weights: Mapping[str, float], sources: Mapping) -> dict[str, float]:
    """The weights as floats, in the order of the sources.

    Raises:
        ValueError: the names are others, or a weight is not positive.
    """
    if not isinstance(weights, Mapping) or set(weights) != set(sources):
        raise ValueError(
            f"weights must have a number for each source, {list(sources)}. "
            f"Received: weights={weights!r}"
        )
    return {name: check_number(weights[name], f"weights[{name!r}]", "(0, inf)") for name in sources}
