"""Sums that stay exact over long epochs."""

from keras import ops

from keras_llm.backend import SUM_DTYPE


class ExactSums:
    """A few running sums in a metric's variables, which do not drop what is small.

    A float32 counter stops at 2^24: adding 1 changes nothing. So sums are kept in float64, which
    counts to 2^53. Where the backend has none, what each addition rounds off is kept beside the sum
    and added back at the end (the two-sum of Knuth, The Art of Computer Programming 2, section
    4.2.2, theorem B), which makes a float32 pair as good as 48 bits.

    Args:
        metric: The `keras.metrics.Metric` that owns the variables.
        count: How many sums.
    """

    def __init__(self, metric, count):
        self.total = metric.add_variable((count,), "zeros", dtype=SUM_DTYPE, name="total")
        self.lost = None
        if SUM_DTYPE == "float32":
            self.lost = metric.add_variable((count,), "zeros", dtype=SUM_DTYPE, name="lost")

    @property
    def variables(self) -> list:
        """The variables that hold the sums."""
        return [self.total] if self.lost is None else [self.total, self.lost]

    def add(self, *terms):
        """Adds one scalar to each sum."""
        terms = ops.cast(ops.stack(terms), SUM_DTYPE)
        if self.lost is None:
            self.total.assign_add(terms)
            return
        old = ops.convert_to_tensor(self.total)
        new = old + terms
        kept = new - old
        self.lost.assign_add((old - (new - kept)) + (terms - kept))
        self.total.assign(new)

    def values(self):
        """The sums, as a list of scalars."""
        sums = ops.convert_to_tensor(self.total)
        return ops.unstack(sums if self.lost is None else sums + ops.convert_to_tensor(self.lost))
