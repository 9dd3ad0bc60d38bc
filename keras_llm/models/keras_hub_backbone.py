"""The backbone of a KerasHub task: from ids to the hidden vectors that its head reads."""

from typing import Any

import keras
from keras import ops

from keras_llm.backend.ids import check_ids, check_integers
from keras_llm.backend.keras_private import keras_mask, with_keras_mask
from keras_llm.layers.token_embedding import as_indices
from keras_llm.tensor import Tensor

MASK, IDS = "padding_mask", "token_ids"


class KerasHubBackbone(keras.layers.Layer):
    """All operations of a KerasHub task before its head.

    Args:
        features: A functional model from KerasHub's dictionary to hidden vectors.
        vocab_sizes: The number of ids there are, by key of the dictionary.
        **kwargs: Keras's own: `name`, `dtype`, `trainable`.

    Call arguments:
        inputs: KerasHub's dictionary, or, where it has token ids and a padding mask only, the ids
            `[batch, length]`; then the mask is all ones.

    Returns:
        Hidden vectors `[batch, length, d_model]`; those of a row are NaN if it has an id outside
        the vocabulary that only a traced graph or a GPU has seen, where KerasHub's own table would
        give the vector of another id, or stop the GPU.

    Raises:
        ValueError: other inputs than those, or an id outside the vocabulary.
        TypeError: ids that are not integers.
    """

    def __init__(self, features: keras.Model, vocab_sizes: dict[str, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = features
        self.keys = sorted(features.input)
        self.vocab_sizes = vocab_sizes
        # Whether position t of the ids predicts t + 1 of the same ids.
        self.is_causal = self.takes_plain_ids = self.keys == [MASK, IDS]
        self.built = True

    def call(self, inputs: dict[str, Tensor] | Tensor, training: bool | None = None) -> Tensor:
        """The hidden vectors."""
        inputs, outside = self.dictionary(inputs), []
        for name, vocab_size in self.vocab_sizes.items():
            check_integers(inputs[name], name)
            if not check_ids(inputs[name], vocab_size, name):
                ids = as_indices(inputs[name])
                is_outside = (ids < 0) | (ids >= vocab_size)
                inputs[name] = ops.where(is_outside, ops.zeros_like(ids), ids)
                outside.append(ops.any(is_outside, axis=-1))
        hidden = self.features(inputs, training=training)
        mask = keras_mask(hidden)
        for rows in outside:
            # Not the constant NaN: PyTorch would copy it to a GPU in every step, and wait.
            nan = ops.sqrt(-ops.ones_like(rows, dtype=hidden.dtype))
            hidden = ops.where(rows[:, None, None], nan[:, None, None], hidden)
        return with_keras_mask(hidden, mask)

    def with_host_facts(self, inputs: Any, on_host: Any) -> Any:
        """The inputs, after the ids were checked that are still on the host."""
        if not isinstance(on_host, dict):
            on_host = {IDS: on_host}
        for name in self.vocab_sizes.keys() & on_host.keys():
            check_ids(on_host[name], self.vocab_sizes[name], name)
        return inputs

    def dictionary(self, inputs: dict[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """The inputs as KerasHub takes them."""
        if self.takes_plain_ids and hasattr(inputs, "shape"):
            return {IDS: inputs, MASK: ops.ones_like(inputs, dtype="int32")}
        if not isinstance(inputs, dict) or not set(self.keys) <= set(inputs):
            also = "ids [batch, length] or " if self.takes_plain_ids else ""
            received = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(
                f"inputs must be {also}a dictionary with the keys {self.keys}, where a padding "
                "mask is 1 for tokens and 0 for padding; labels are another argument: "
                f"fit(inputs, labels). Received: {received}"
            )
        return {key: inputs[key] for key in self.keys}
