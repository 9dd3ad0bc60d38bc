"""What makes logits from hidden vectors: a matrix, and a soft cap where the head has one."""

from typing import Any, NamedTuple

from keras import ops


class HeadMatrix(NamedTuple):
    """A head over the vocabulary: with `z = hidden @ kernel + bias`, the logits are `z`, or
    `soft_cap * tanh(z / soft_cap)` where there is a cap.

    Attributes:
        kernel: `[d_model, vocab]`.
        bias: `[vocab]` or None.
        soft_cap: A positive number or None.
    """

    kernel: Any
    bias: Any
    soft_cap: float | None = None


def soft_capped(logits: Any, soft_cap: float | None) -> Any:
    """`soft_cap * tanh(logits / soft_cap)`; the logits themselves where there is no cap."""
    return logits if soft_cap is None else soft_cap * ops.tanh(logits / soft_cap)


def logits_of(hidden: Any, head: HeadMatrix, dtype: Any) -> Any:
    """The logits of hidden vectors `[rows, d_model]`, `[rows, vocab]` in the dtype of sums."""
    kernel, bias, soft_cap = head
    logits = ops.cast(ops.matmul(hidden, ops.cast(kernel, hidden.dtype)), dtype)
    if bias is not None:
        logits = logits + ops.cast(bias, dtype)
    return soft_capped(logits, soft_cap)
