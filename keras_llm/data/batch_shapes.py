"""To which lengths the batches of pairs are padded."""

import numpy as np

MAX_SHAPES = 8
# One more compilation of a small model takes as long as 100 to 200 of its batches (on two cores):
# a shape that saves this many in an epoch pays for itself in two to four epochs.
BATCHES_SAVED = 50
# Candidates for a length: choosing takes memory for the fourth power of this number.
MAX_LEVELS = 48


def round_up(lengths: np.ndarray, multiple: int, max_length: int | None) -> np.ndarray:
    """Lengths rounded up to a multiple, but not above `max_length`.

    >>> round_up(np.array([3, 8, 9]), multiple=4, max_length=10)
    array([ 4,  8, 10])
    """
    rounded = -(-lengths // multiple) * multiple
    return rounded if max_length is None else np.minimum(rounded, max_length)


def smallest_cover(lengths: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """For each pair of lengths `[..., 2]`, the first of the shapes that is as long in both.

    The smallest of the shapes `[shapes, 2]` is the first, and the last one covers all lengths.

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
    `[rows, 2]` of every row, this returns `[shapes, 2]`, the smallest first.
    """
    longest = lengths.max(axis=0)
    levels = round_up(lengths, -(-longest.max() // MAX_LEVELS), None)
    rows, counts = np.unique(np.minimum(levels, longest), axis=0, return_counts=True)
    grid = np.meshgrid(np.unique(rows[:, 0]), np.unique(rows[:, 1]))
    candidates = np.stack(grid, axis=-1).reshape(-1, 2)
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
