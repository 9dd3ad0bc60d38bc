"""Perplexity's cousin that does not depend on the tokenizer."""

import math

import numpy as np
from keras import ops

from keras_llm.metrics.token_metric import TokenMetric
from keras_llm.registration import register


@register("metrics")
class BitsPerByte(TokenMetric):
    """Bits that the model spends on a byte of text, over the epoch.

        bits per byte = sum of nll / ln 2 / sum of bytes

    Models with different vocabularies can be compared by it. An id that stands for no text (an end
    or padding id) has 0 bytes; neither its nll nor its bytes count.

    Args:
        token_bytes: UTF-8 bytes of each id, `[vocab]`; `tokenizer.token_bytes` of ours.
        ignore_index, from_logits: As in `TokenMetric`; None for the loss's.
        name: The metric's name in logs.

    Raises:
        ValueError: `token_bytes` is not a vector of counts, or not as long as the vocabulary.

    Example:
    >>> import numpy as np
    >>> metric = BitsPerByte(token_bytes=[0, 1, 2, 3])
    >>> metric.update_state(np.array([1, 3]), np.zeros((2, 4), "float32"))
    >>> round(float(metric.result()), 6)                  # 2 tokens of 2 bits for 4 bytes
    1.0
    """

    def __init__(self, token_bytes, ignore_index=None, from_logits=None, name="bits_per_byte"):
        super().__init__(ignore_index, from_logits, name)
        token_bytes = np.asarray(token_bytes)
        is_vector = token_bytes.ndim == 1 and token_bytes.size and token_bytes.dtype.kind in "iu"
        if not is_vector or token_bytes.min() < 0:
            raise ValueError(
                "token_bytes must be a vector of byte counts, one integer for each id. "
                f"Received: shape {token_bytes.shape}, dtype {token_bytes.dtype}"
            )
        self.token_bytes = token_bytes.astype("int32")
        # On the device from the start: a copy in every step is a host-device synchronisation.
        self.sizes = ops.convert_to_tensor(self.token_bytes)

    def equation(self):
        """The equation, for `explain`."""
        return "sum of -log2 p(label) / bytes of the text", ""

    def per_token(self, labels, nll, vocab_size):
        """Nats, of ids that stand for text, and bytes."""
        if len(self.token_bytes) != vocab_size:
            raise ValueError(
                f"token_bytes needs one number for each of the {vocab_size} ids of the logits. "
                f"Received: {len(self.token_bytes)} numbers"
            )
        size = ops.cast(ops.take(self.sizes, labels, axis=0), nll.dtype)
        return ops.where(size > 0, nll, ops.zeros_like(nll)), size

    def result(self):
        """Bits per byte."""
        return super().result() / math.log(2)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "token_bytes": self.token_bytes.tolist()}
