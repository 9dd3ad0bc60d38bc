"""Where the rows of a batch begin among the tokens, found without a list of all rows."""

from bisect import bisect_right

import numpy as np

# Of so many texts together, the number of rows is kept in memory.
TEXTS_PER_GROUP = 256


class StreamRows:
    """Rows of `seq_len` labels, cut from all tokens as one stream; the last may be shorter.

    Args:
        tokens: A `TokenArray` or `TokenShards`.
        seq_len: Positions per row.
    """

    def __init__(self, tokens, seq_len: int):
        self.num_tokens, self.seq_len = tokens.num_tokens, seq_len

    def __len__(self) -> int:
        # The last token is a label only.
        return max(0, -(-(self.num_tokens - 1) // self.seq_len))

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row, its first token and its number of labels."""
        starts = rows * self.seq_len
        return starts, np.minimum(self.seq_len, self.num_tokens - 1 - starts)


class DocumentRows:
    """Rows of at most `seq_len` labels, none of which crosses the end of a text.

    Args:
        tokens: A `TokenArray` or `TokenShards`.
        seq_len: Positions per row.
    """

    def __init__(self, tokens, seq_len: int):
        self.tokens, self.seq_len = tokens, seq_len
        self.first_groups = [0]  # of each part
        counts = [np.zeros(1, np.int64)]
        for part in range(len(tokens.parts)):
            rows = self._rows(tokens.part_offsets(part, check=True))
            counts.append(np.add.reduceat(rows, np.arange(0, len(rows), TEXTS_PER_GROUP)))
            self.first_groups.append(self.first_groups[-1] + len(counts[-1]))
        self.first_rows = np.cumsum(np.concatenate(counts))  # of each group

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row, its first token and its number of labels."""
        groups = np.searchsorted(self.first_rows, rows, side="right") - 1
        found = [self._in_group(*pair) for pair in zip(groups, rows, strict=True)]
        return tuple(np.array(found, np.int64).reshape(-1, 2).T)

    def _in_group(self, group, row):
        part = bisect_right(self.first_groups, group) - 1
        text = (group - self.first_groups[part]) * TEXTS_PER_GROUP
        offsets = self.tokens.part_offsets(part)[text : text + TEXTS_PER_GROUP + 1]
        counts = self._rows(offsets)
        ends = self.first_rows[group] + np.cumsum(counts)
        text = np.searchsorted(ends, row, side="right")
        start = offsets[text] + (row - ends[text] + counts[text]) * self.seq_len
        count = min(self.seq_len, offsets[text + 1] - 1 - start)
        return self.tokens.parts[part] + start, count

    def _rows(self, offsets):
        return np.maximum(0, (np.diff(offsets) + self.seq_len - 2) // self.seq_len)
