"""Micro-batches: what memory holds of the batch that the optimizer sees."""

import keras
import torch


class MicroBatches:
    """Cuts a batch into rows that fit in memory.

    Args:
        size: Rows of a micro-batch; None for the whole batch; `"auto"` begins with the whole batch
            and halves each time that memory runs out.
    """

    def __init__(self, size: int | str | None):
        self.argument = size
        self.size = None if size == "auto" else size

    def count(self, data) -> int:
        """How many pieces `data` is cut into, if `size` is not found out by trying."""
        rows_of_all = len(next(t for t in keras.tree.flatten(data) if t is not None))
        return -(-rows_of_all // (self.size or rows_of_all))

    def first(self, data):
        """The first piece of `data`."""
        return data if self.size is None else rows(data, 0, self.size)

    def run(self, data, step, undo):
        """Calls `step` with one piece of `data` after the other, and returns its last result.

        Args:
            data: Tensors with the batch as their first dimension, however nested.
            step: What a piece is given to, with whether it is the last one. If it fails under
                `"auto"`, `undo` restores everything that it changed.
            undo: Called without arguments before a piece is tried again, cut in two.
        """
        if self.argument is None:
            return step(data, True)
        count = len(next(t for t in keras.tree.flatten(data) if t is not None))
        start = 0
        while start < count:
            stop = min(start + (self.size or count), count)
            try:
                result = step(rows(data, start, stop), stop == count)
            except RuntimeError as error:
                if self.argument != "auto" or stop - start == 1 or not is_out_of_memory(error):
                    raise
                self.size = (stop - start + 1) // 2
            else:
                start = stop
                continue
            # Out of the `except`, the error no longer holds on to the tensors of the failed piece.
            undo()
            torch.cuda.empty_cache()
        return result


def rows(data, start, stop):
    """Some rows of every tensor."""
    return keras.tree.map_structure(lambda t: None if t is None else t[start:stop], data)


def is_out_of_memory(error) -> bool:
    """Whether a device, or PyTorch's allocator on the CPU, had no room left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Snapshot:
    """The values of variables before a piece of a batch, to be restored; small variables only.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables):
        self.tensors = [variable.value for variable in variables]
        self.refresh()

    def refresh(self):
        """Takes the values of now."""
        self.copies = [tensor.clone() for tensor in self.tensors]

    @torch.no_grad()
    def __call__(self):
        """Restores them."""
        for tensor, copy in zip(self.tensors, self.copies, strict=True):
            tensor.copy_(copy)
