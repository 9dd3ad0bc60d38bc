"""To which lengths batches are padded."""

import keras
import numpy as np

MAX_SHAPES = 8
# One more compilation of a small model takes as long as 100 to 200 of its batches (on two cores):
# a shape that saves this many in an epoch pays for itself in two to four epochs.
BATCHES_SAVED = 50
# Candidates for a length: choosing takes memory for the fourth power of this number.
MAX_LEVELS = 48


class BatchShapes:
    """The lengths to which batches are padded: rounded up, or those of a few chosen shapes.

    JAX and TensorFlow compile the training step for every shape of a batch. So there, by default,
    all batches have one of at most eight shapes and the same number of rows.

    Args:
        lengths: Integers `[rows, parts]`: for each row, the lengths of its parts that are padded
            to lengths of their own, such as a source and a target.
        batch_size: Rows per batch.
        max_length: Lengths are not rounded up above it; None for no limit.
        pad_to_multiple_of: What lengths are rounded up to a multiple of. None is 8 on PyTorch, and
            a few chosen shapes on JAX and TensorFlow.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        max_length: int | None,
        pad_to_multiple_of: int | None,
    ):
        if pad_to_multiple_of is None and keras.backend.backend() == "torch":
            pad_to_multiple_of = 8
        self.max_length, self.pad_to_multiple_of = max_length, pad_to_multiple_of
        self.chosen, self.min_rows = None, 1
        if pad_to_multiple_of is None:
            self.chosen = choose_shapes(lengths, batch_size)
            self.min_rows = min(batch_size, len(lengths))

    def padded(self, lengths: np.ndarray) -> np.ndarray:
        """The lengths `[..., parts]` to which rows, or a batch, of these lengths are padded."""
        if self.chosen is not None:
            return smallest_cover(lengths, self.chosen)
        return round_up(lengths, self.pad_to_multiple_of, self.max_length)

    def filled_up(self, rows: np.ndarray) -> np.ndarray:
        """The row numbers of a batch, with copies of the last one up to the number all have."""
        return np.pad(rows, (0, max(0, self.min_rows - len(rows))), mode="edge")


def round_up(lengths: np.ndarray, multiple: int, max_length: int | None) -> np.ndarray:
    """Lengths rounded up to a multiple, but not above `max_length`.

    >>> round_up(np.array([3, 8, 9]), multiple=4, max_length=10)
    array([ 4,  8, 10])
    """
    rounded = -(-lengths // multiple) * multiple
    return rounded if max_length is None else np.minimum(rounded, max_length)


def smallest_cover(lengths: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """For the lengths of each row `[..., parts]`, the first of the shapes that is as long in all.

    The smallest of the shapes `[shapes, parts]` is the first, and the last one covers all lengths.

    >>> smallest_cover(np.array([[2, 4], [5, 4]]), shapes=np.array([[4, 4], [8, 9]]))
    array([[4, 4],
           [8, 9]])
    """
    covers = (lengths[..., None, :] <= shapes).all(axis=-1)
    return shapes[covers.argmax(axis=-1)]


def choose_shapes(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """A few shapes, to one of which each row is padded, with little padding.

    The first shape is the longest lengths. Then, one at a time, the shape is added that saves
    most positions: as long as it saves 50 batches an epoch, and up to 8 shapes. From the lengths
    `[rows, parts]` of every row, this returns `[shapes, parts]`, the smallest first.
    """
    longest = lengths.max(axis=0)
    levels = round_up(lengths, -(-longest.max() // MAX_LEVELS), None)
    rows, counts = np.unique(np.minimum(levels, longest), axis=0, return_counts=True)
    grid = np.meshgrid(*(np.unique(part) for part in rows.T))
    candidates = np.stack(grid, axis=-1).reshape(-1, len(longest))
    covers = (rows <= candidates[:, None]).all(axis=-1)
    costs = np.where(covers, candidates.sum(axis=1)[:, None], longest.sum())
    shapes, cost = [longest], np.full(len(rows), longest.sum())
    while len(shapes) < MAX_SHAPES:
        totals = np.minimum(costs, cost) @ counts
        best = totals.argmin()
        mean_batch = totals[best] / counts.sum() * batch_size
        if cost @ counts - totals[best] < BATCHES_SAVED * mean_batch:
            break
        shapes.append(candidates[best])
        cost = np.minimum(cost, costs[best])
    shapes = np.array(shapes)
    return shapes[np.argsort(shapes.sum(axis=1), kind="stable")]
