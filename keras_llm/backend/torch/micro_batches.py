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
        is_count = isinstance(size, int) and not isinstance(size, bool) and size > 0
        if not (size is None or size == "auto" or is_count):
            raise ValueError(
                "micro_batch_size must be a positive number of rows, 'auto', or None for the whole "
                f"batch. Received: micro_batch_size={size!r}"
            )
        self.argument = size
        self.size = size if is_count else None

    @property
    def may_cut(self) -> bool:
        """Whether a batch may come in more than one piece."""
        return self.argument is not None

    def run(self, data, step, undo):
        """Calls `step` with one piece of `data` after the other, and returns its last result.

        Args:
            data: Tensors with the batch as their first dimension, however nested.
            step: What a piece is given to. Under `"auto"` it either finishes or leaves nothing
                behind that `undo` does not take back.
            undo: Called without arguments before a piece is tried again, cut in two.
        """
        if not self.may_cut:
            return step(data)
        count = len(next(t for t in keras.tree.flatten(data) if t is not None))
        start = 0
        while start < count:
            stop = min(start + (self.size or count), count)
            try:
                result = step(rows(data, start, stop))
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
    """What variables were before a piece of a batch, to be had back; small variables only.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables):
        self.tensors = [variable.value for variable in variables]
        self.move_on()

    def move_on(self):
        """Takes what they are now."""
        self.copies = [tensor.clone() for tensor in self.tensors]

    @torch.no_grad()
    def __call__(self):
        """Gives them back what they were."""
        for tensor, copy in zip(self.tensors, self.copies, strict=True):
            tensor.copy_(copy)
