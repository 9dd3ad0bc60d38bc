"""What the loss found for logits, for the metrics of the same logits to find again.

A metric is handed the logits and the labels, never what the loss made of them; without this, each
would reduce the vocabulary anew. Only a loss leaves something here, and it never looks: a program
that replays a CUDA graph writes new logits in the old place, and PyTorch does not notice.
"""

import torch
from torch.utils.weak import WeakIdKeyDictionary

from keras_llm.backend.torch import tensors as facts

# By storage, which a detached tensor shares. An entry goes when its logits do.
found = WeakIdKeyDictionary()


def remember(logits: torch.Tensor, counts: torch.Tensor, numbers: tuple) -> None:
    """Keeps `numbers`, which are right for the tokens that count, until the logits change."""
    # Only tensors made outside torch.inference_mode know how often they were written to.
    if not logits.is_inference():
        # Detached: a graph would keep the logits alive, and they their entry.
        numbers = tuple(number.detach() for number in numbers)
        found[logits.untyped_storage()] = place(logits), counts, numbers


def recall(logits: torch.Tensor, counts: torch.Tensor) -> tuple | None:
    """The numbers of these logits, if a loss left them for all tokens that count."""
    if logits.is_inference():
        return None
    where, counted, numbers = found.get(logits.untyped_storage(), (None, None, None))
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
