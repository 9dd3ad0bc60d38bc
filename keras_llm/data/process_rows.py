"""The rows of one process, of batches that several processes train on."""

from collections import deque

from keras_llm.distribution import world


class RowsOfOneProcess(tuple):
    """A batch `(x, y)` or `(x, y, sample_weight)` of which the other processes have other rows.

    Any other batch is one of all processes, and the step cuts it.
    """


class ProcessRows:
    """A batch sampler: of each batch the rows of this process, where every process has some.

    Args:
        batches: A sampler of all rows.

    Attributes:
        is_on: Whether batches are cut; otherwise they are whole.
        are_cut: Of each batch that was handed out in this iteration and has not come back: whether
            it was cut. Workers are asked for batches ahead of time.
    """

    def __init__(self, batches):
        self.batches, self.is_on = batches, False
        self.are_cut = deque()

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.are_cut = deque()
        return self._iterate(self.are_cut, world() if self.is_on else None)

    def _iterate(self, are_cut, processes):
        for rows in self.batches:
            is_cut = processes is not None and 1 < processes.size <= len(rows)
            are_cut.append(is_cut)
            yield rows[processes.rows_of(len(rows))] if is_cut else rows
