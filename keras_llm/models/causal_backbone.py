"""The body of a decoder-only language model."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_llm.layers.attention import causal_mask
from keras_llm.layers.key_values import KeyValues
from keras_llm.layers.rms_norm import RMSNorm
from keras_llm.layers.rotary_embedding import RotaryEmbedding
from keras_llm.layers.token_embedding import TokenEmbedding
from keras_llm.layers.transformer_block import TransformerBlock
from keras_llm.models.checks import check_ids_shape, check_sizes, check_special_id


class DecodingState(NamedTuple):
    """What a decoder remembers of the tokens so far."""

    caches: list[KeyValues]  # one a block, with room for all tokens to come
    slot: int  # where the next token goes
    first: Any  # [batch, 1]: the first slot that the next token sees; before it is padding, or
    # another document


@keras.saving.register_keras_serializable(package="keras_llm")
class CausalBackbone(keras.Model):
    """Ids to hidden vectors, each of them a summary of its token and those before.

        x = embedding(ids);  x = block(x), num_layers times;  RMSNorm(x)

    It is `CausalTransformer` without the head; the arguments are described there.

    Call arguments:
        ids: Integers, `[batch, length]`.

    Returns:
        Hidden vectors, `[batch, length, d_model]`, normed: ready for the head.

    Example:
    >>> import numpy as np
    >>> backbone = CausalBackbone(
    ...     vocab_size=11, d_model=8, num_layers=1, num_heads=2, max_length=16
    ... )
    >>> tuple(backbone(np.array([[1, 2, 3]])).shape)
    (1, 3, 8)
    """

    # A hidden vector knows of its token and those before: labels are the tokens that come next.
    is_causal = True

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        max_length: int,
        num_key_value_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.0,
        rope_theta: float = 10_000.0,
        epsilon: float = 1e-6,
        pad_id: int | None = None,
        document_end_id: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_sizes(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length=max_length,
        )
        check_special_id(pad_id, vocab_size, "pad_id")
        check_special_id(document_end_id, vocab_size, "document_end_id")
        if pad_id is not None and pad_id == document_end_id:
            raise ValueError(
                "document_end_id must not be pad_id: no token sees padding, so it could not part "
                f"documents. Received: document_end_id={document_end_id}, pad_id={pad_id}"
            )
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.max_length = max_length
        self.pad_id = pad_id
        self.document_end_id = document_end_id

        dtype = self.dtype_policy
        self.token_embedding = TokenEmbedding(vocab_size, d_model, dtype=dtype)
        self.dropout = keras.layers.Dropout(dropout, dtype=dtype)
        self.blocks = [
            TransformerBlock(
                d_model,
                num_heads,
                num_key_value_heads,
                d_ff,
                dropout,
                epsilon,
                # GPT-2: 2 num_layers outputs are added up; scaled so, depth does not enlarge it.
                residual_stddev=0.02 / (2 * num_layers) ** 0.5,
                dtype=dtype,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.rotary = RotaryEmbedding(d_model // num_heads, rope_theta, dtype=dtype)
        self.norm = RMSNorm(epsilon, dtype=dtype, name="norm")
        self.build()

    def build(self, input_shape=None):
        """Creates all weights: their sizes are known without an input."""
        self.token_embedding.build()
        for block in self.blocks:
            block.build()
        self.norm.build((None, None, self.d_model))

    def call(self, ids, training=None):
        """The hidden vectors of whole sequences."""
        check_ids_shape(ids, self.max_length, "ids")
        x = self.dropout(self.token_embedding(ids), training=training)
        positions, tokens, documents = ops.arange(ops.shape(ids)[1]), None, None
        if self.pad_id is not None:
            # Behind the tokens of its row padding is seen by none: no mask of all pairs is needed.
            padding = ids == self.pad_id
            positions = ops.argsort(ops.where(padding, self.max_length, 0) + positions, axis=1)
            x = reordered(x, positions)
            ids = ops.take_along_axis(ids, positions, axis=1)
            tokens = (ids != self.pad_id)[:, None, :, None]
        if self.document_end_id is not None:
            ends = ops.cast(ids == self.document_end_id, "int32")
            documents = ops.cumsum(ends, axis=1) - ends

        rotation = self.rotary(positions)
        for block in self.blocks:
            x = block(
                x,
                rotation,
                attention_mask=tokens,
                causal=True,
                documents=documents,
                training=training,
            )
        if self.pad_id is not None:
            x = reordered(x, ops.argsort(positions, axis=1))
        return self.norm(x)

    def compute_output_spec(self, ids, training=None):
        """Keras would find it out with a length of its own, perhaps more than `max_length`."""
        check_ids_shape(ids, self.max_length, "ids")
        return keras.KerasTensor((*ids.shape, self.d_model), self.compute_dtype)

    def start(self, first, room: int) -> DecodingState:
        """The state before any token: row b's tokens begin at slot `first[b]`, of `room` slots."""
        attention = self.blocks[0].self_attention
        cache = KeyValues.empty(
            len(first), room, attention.num_key_value_heads, attention.head_dim, self.compute_dtype
        )
        first = ops.convert_to_tensor(first, "int32")[:, None]
        return DecodingState([cache] * self.num_layers, 0, first)

    def extend(self, ids, state: DecodingState):
        """The hidden vectors of the next tokens `[batch, length]`, and the state after them."""
        length, room = ids.shape[1], state.caches[0].key.shape[1]
        slots, first, next_first = state.slot + ops.arange(length), state.first, state.first
        if self.document_end_id is not None:
            behind = ops.where(ids == self.document_end_id, slots + 1, 0)
            firsts = ops.concatenate([first, ops.cast(behind, first.dtype)], axis=1)
            firsts = ops.associative_scan(ops.maximum, firsts, axis=1)
            first, next_first = firsts[:, :-1], firsts[:, -1:]
        rotation = self.rotary(slots - first)
        mask = causal_mask(length, room, state.slot) & (ops.arange(room) >= first[:, None, :, None])

        x = self.token_embedding(ids)
        caches = []
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x, cache = block(x, rotation, attention_mask=mask, cache=cache, slot=state.slot)
            caches.append(cache)
        return self.norm(x), DecodingState(caches, state.slot + length, next_first)

    def get_config(self):
        """The constructor's arguments."""
        block = self.blocks[0].get_config()
        return {
            **super().get_config(),
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "max_length": self.max_length,
            "num_key_value_heads": block["num_key_value_heads"],
            "d_ff": block["d_ff"],
            "dropout": block["dropout"],
            "rope_theta": self.rotary.theta,
            "epsilon": block["epsilon"],
            "pad_id": self.pad_id,
            "document_end_id": self.document_end_id,
        }


def reordered(x, order):
    """`[batch, length, d_model]` with the vectors `order[b]` in row b."""
    # Not take_along_axis: an index for every number, kept for the gradient, is larger than x.
    batch, length, width = ops.shape(x)
    vectors = ops.reshape(x, (-1, width))
    return ops.take(vectors, order + length * ops.arange(batch)[:, None], axis=0)
