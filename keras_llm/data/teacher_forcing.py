"""Teacher forcing: while training, the decoder reads the right answer so far, not its own."""

import keras
import numpy as np


def teacher_forcing(target_ids, start_id: int = 101, pad_id: int = 0):
    """Splits target ids into what the decoder reads and what it must predict.

    At position t the decoder has read the target before t, and predicts the target at t:

        decoder_ids[t] = start_id if t == 0 else target_ids[t - 1]
        labels[t]      = target_ids[t]

    So all positions train at once, each on a right beginning (Williams and Zipser, 1989).
    The shift is the one of T5 in Hugging Face transformers (`_shift_right`).

    Args:
        target_ids: Integers `[batch, length]`, padded at the end.
        start_id: The id that the decoder reads first, also in `generate`.
        pad_id: What the decoder reads in place of a negative id, such as the -100 that marks a
            label to ignore: only a label may be negative, since an embedding has no such row.

    Returns:
        `(decoder_ids, labels)`, two numpy arrays `[batch, length]` of the dtype of `target_ids`.

    Raises:
        TypeError: `target_ids` are not integers.
        ValueError: `target_ids` is not of rank 2, its rows differ in length, or `start_id` or
            `pad_id` is negative.

    Example:

    >>> decoder_ids, labels = teacher_forcing([[7, 8, 102, 0], [9, 102, -100, -100]])
    >>> decoder_ids
    array([[101,   7,   8, 102],
           [101,   9, 102,   0]])
    >>> labels
    array([[   7,    8,  102,    0],
           [   9,  102, -100, -100]])
    """
    if start_id < 0 or pad_id < 0:
        raise ValueError(
            "`start_id` and `pad_id` are read by the decoder, so they must not be negative. "
            f"Received: start_id={start_id}, pad_id={pad_id}"
        )
    if isinstance(target_ids, list | tuple):
        if len({np.shape(row) for row in target_ids}) > 1:
            raise ValueError(
                "`target_ids` must be rows of one length: fill the shorter ones up with the "
                f"padding id. Received rows of shapes {[np.shape(row) for row in target_ids]}"
            )
        labels = np.array(target_ids)
    else:
        labels = keras.ops.convert_to_numpy(target_ids)
    if labels.ndim != 2:
        raise ValueError(
            "`target_ids` must have the shape [batch, length]. "
            f"Received: target_ids of shape {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"`target_ids` must be integers. Received: target_ids of dtype {labels.dtype}"
        )
    decoder_ids = np.full_like(labels, start_id)
    decoder_ids[:, 1:] = np.where(labels[:, :-1] < 0, pad_id, labels[:, :-1])
    return decoder_ids, labels
