"""Teacher forcing: in training, the decoder reads the target so far, not its own output."""

import keras
import numpy as np

from keras_llm.arguments import check_non_negative_int
from keras_llm.names_elsewhere import names_elsewhere


@names_elsewhere(
    {
        "labels": "the target's ids as the first argument",
        "input_ids": "the target's ids as the first argument",
        "decoder_start_token_id": "start_id=...",
        "bos_token_id": "start_id=...",
        "pad_token_id": "pad_id=...",
        "ignore_index": "pad_id=..., what the decoder reads where a label is negative",
    }
)
def teacher_forcing(target_ids, start_id: int = 101, pad_id: int = 0):
    """Splits target ids into what the decoder reads and what it must predict.

    At position t the decoder has read the target before t, and predicts the target at t:

        decoder_ids[t] = start_id if t == 0 else target_ids[t - 1]
        labels[t]      = target_ids[t]

    So all positions train at once, each after the right beginning (Williams and Zipser, 1989).
    The shift is that of T5 in Hugging Face transformers (`_shift_right`).

    The labels are the target, so the loss ignores what has its `ignore_index`. Where the id of
    padding is also the id of the end, as GPT-2's, pad `target_ids` with -100, or the end is ignored
    too and never learnt.

    Args:
        target_ids: Integers `[batch, length]`, padded at the end.
        start_id: The id that the decoder reads first, also in `generate`.
        pad_id: What the decoder reads in place of a negative id, such as the -100 that marks a
            label to ignore: a label may be negative, but an embedding has no such row.

    Returns:
        `(decoder_ids, labels)`, two numpy arrays `[batch, length]` of the dtype of `target_ids`.

    Raises:
        TypeError: `target_ids` are not integers.
        ValueError: `target_ids` is not of rank 2, its rows differ in length, or `start_id` or
            `pad_id` is not a non-negative integer, or too large for the dtype.

    Example:

    >>> decoder_ids, labels = teacher_forcing([[7, 8, 102, 0], [9, 102, -100, -100]])
    >>> decoder_ids
    array([[101,   7,   8, 102],
           [101,   9, 102,   0]])
    >>> labels
    array([[   7,    8,  102,    0],
           [   9,  102, -100, -100]])
    """
    check_non_negative_int(start_id, "start_id")
    check_non_negative_int(pad_id, "pad_id")
    if isinstance(target_ids, list | tuple):
        if len({np.shape(row) for row in target_ids}) > 1:
            raise ValueError(
                "target_ids must be rows of one length: fill the shorter ones up with the "
                f"padding id. Received rows of shapes {[np.shape(row) for row in target_ids]}"
            )
        labels = np.array(target_ids)
    else:
        labels = keras.ops.convert_to_numpy(target_ids)
    if labels.ndim != 2:
        raise ValueError(
            "target_ids must have the shape [batch, length]. "
            f"Received: target_ids of shape {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"target_ids must be integers. Received: target_ids of dtype {labels.dtype}"
        )
    largest = np.iinfo(labels.dtype).max
    if max(start_id, pad_id) > largest:
        raise ValueError(
            f"start_id and pad_id must be at most {largest}, the largest {labels.dtype}, as "
            f"target_ids are. Received: start_id={start_id}, pad_id={pad_id}"
        )
    decoder_ids = np.full_like(labels, start_id)
    decoder_ids[:, 1:] = np.where(labels[:, :-1] < 0, pad_id, labels[:, :-1])
    return decoder_ids, labels
