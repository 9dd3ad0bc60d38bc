"""The log-sum-exp of each logits tensor: losses write it, metrics read it.

A metric gets the logits and the labels only; without this cache, each would reduce the vocabulary
again. A loss never reads it: a replayed CUDA graph writes new logits into the same memory, which
PyTorch's version counter does not show.
"""

import torch
from torch.utils.weak import WeakIdKeyDictionary

from keras_llm.backend.torch import tensors as facts

# By storage, which a detached tensor shares. An entry is dropped with its logits.
_entries = WeakIdKeyDictionary()


def remember(logits: torch.Tensor, counts: torch.Tensor, numbers: tuple) -> None:
    """Keeps `numbers`, which are valid for the tokens that count, until the logits change."""
    # Only tensors made outside torch.inference_mode know how often they were written to.
    if not logits.is_inference():
        # Detached: a graph would keep the logits alive, and they their entry.
        numbers = tuple(number.detach() for number in numbers)
        _entries[logits.untyped_storage()] = place(logits), counts, numbers


def recall(logits: torch.Tensor, counts: torch.Tensor) -> tuple | None:
    """The numbers of these logits, if a loss left them for all tokens that count."""
    if logits.is_inference():
        return None
    where, counted, numbers = _entries.get(logits.untyped_storage(), (None, None, None))
    if where != place(logits):
        return None
    # On a GPU the loss reduces all rows: it could not ask which ones count without waiting.
    complete = not facts.is_on_host(logits) or not (counts & ~counted).any()
    return numbers if complete else None


def place(logits):
    """Where in its storage a tensor lies, and how often it was written to."""
    return (
        logits.dtype,
        logits.storage_offset(),
        logits.shape,
        logits.stride(),
        logits._version,
    )
