"""Which documents share a row."""

import bisect
from collections import defaultdict

import numpy as np


def best_fit(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Puts whole documents into rows of at most `size`, and leaves little of them empty.

    Best fit decreasing (Johnson, 1973): each document, the longest first, goes to the row that it
    fills most, or, where it fits into none, to a new one. No document may be longer than `size`.

    Returns:
        The numbers of the documents in each row, in the order in which they stand there.

    Example:

    >>> best_fit(np.array([3, 6, 2, 5, 3]), size=8)
    [[1, 2], [3, 0], [4]]
    """
    rows: list[list[int]] = []
    by_room = defaultdict(list)  # the rows that have that much room
    rooms: list[int] = []  # the rooms of these rows, sorted
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            room, row = size, []
            rows.append(row)
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del rooms[place]
        row.append(document)
        room -= length
        if not by_room[room]:
            bisect.insort(rooms, room)
        by_room[room].append(row)
    return rows
