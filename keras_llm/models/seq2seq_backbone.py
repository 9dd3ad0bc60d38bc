"""The body of an encoder-decoder."""

from __future__ import annotations

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


class Source(NamedTuple):
    """A source as the decoder reads it."""

    keys_values: list[KeyValues]  # one a decoder block
    mask: Any  # [batch, 1, 1, source_length]: what is not padding; None if there can be none

    def repeated(self, times: int) -> Source:
        """Every row so many times, side by side: one for each beam."""
        if times == 1:
            return self
        return keras.tree.map_structure(lambda x: ops.repeat(x, times, axis=0), self)


class DecodingState(NamedTuple):
    """What the decoder remembers of the tokens so far."""

    caches: list[KeyValues]  # one a block, with room for all tokens to come
    slot: int  # where the next token goes
    source: Source

    def reordered(self, rows) -> DecodingState:
        """The state in which row i continues what was row `rows[i]`, all of the same source."""
        caches = keras.tree.map_structure(lambda x: ops.take(x, rows, axis=0), self.caches)
        return self._replace(caches=caches)


@keras.saving.register_keras_serializable(package="keras_llm")
class Seq2SeqBackbone(keras.Model):
    """The ids of a source and of a target to the target's hidden vectors.

        source:  s = embedding(encoder_ids);  s = encoder_block(s), num_layers times;  RMSNorm(s)
        target:  x = embedding(decoder_ids);  x = decoder_block(x, s), num_layers times;  RMSNorm(x)

    It is `Seq2SeqTransformer` without the head; the arguments are described there.

    Call arguments:
        inputs: `{"encoder_ids": [batch, source_length], "decoder_ids": [batch, length]}`, integers.

    Returns:
        Hidden vectors of the target, `[batch, length, d_model]`, normed: ready for the head.

    Example:
    >>> import numpy as np
    >>> backbone = Seq2SeqBackbone(
    ...     vocab_size=11, d_model=8, num_layers=1, num_heads=2, max_length=16
    ... )
    >>> ids = {"encoder_ids": np.array([[1, 2, 3, 0]]), "decoder_ids": np.array([[4, 5, 6]])}
    >>> tuple(backbone(ids).shape)
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
        target_vocab_size: int | None = None,
        num_key_value_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.1,
        rope_theta: float = 10_000.0,
        epsilon: float = 1e-6,
        pad_id: int | None = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_sizes(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length=max_length,
            target_vocab_size=vocab_size if target_vocab_size is None else target_vocab_size,
        )
        check_special_id(pad_id, min(vocab_size, target_vocab_size or vocab_size), "pad_id")
        self.vocab_size = vocab_size
        self.target_vocab_size = target_vocab_size
        self.d_model = d_model
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.max_length = max_length
        self.pad_id = pad_id

        dtype = self.dtype_policy

        def blocks(name, **options):
            return [
                TransformerBlock(
                    d_model,
                    num_heads,
                    num_key_value_heads,
                    d_ff,
                    dropout,
                    epsilon,
                    residual_stddev=0.02 / (2 * num_layers) ** 0.5,  # as in CausalBackbone
                    dtype=dtype,
                    name=f"{name}_{i}",
                    **options,
                )
                for i in range(num_layers)
            ]

        self.rotary = RotaryEmbedding(d_model // num_heads, rope_theta, dtype=dtype)
        self.dropout = keras.layers.Dropout(dropout, dtype=dtype)
        self.source_embedding = TokenEmbedding(
            vocab_size, d_model, dtype=dtype, name="source_embedding"
        )
        self.encoder_blocks = blocks("encoder_block")
        self.encoder_norm = RMSNorm(epsilon, dtype=dtype, name="encoder_norm")

        self.target_embedding = self.source_embedding
        if target_vocab_size is not None:
            self.target_embedding = TokenEmbedding(
                target_vocab_size, d_model, dtype=dtype, name="target_embedding"
            )
        self.decoder_blocks = blocks("decoder_block", cross_attention=True)
        self.decoder_norm = RMSNorm(epsilon, dtype=dtype, name="decoder_norm")
        self.build()

    def build(self, input_shape=None):
        """Creates all weights: their sizes are known without an input."""
        self.source_embedding.build()
        if self.target_vocab_size is not None:
            self.target_embedding.build()
        for block in self.encoder_blocks + self.decoder_blocks:
            block.build()
        self.encoder_norm.build((None, None, self.d_model))
        self.decoder_norm.build((None, None, self.d_model))

    def call(self, inputs, training=None):
        """The hidden vectors of whole targets."""
        encoder_ids, decoder_ids = self._unpack(inputs)
        source = self.encode(encoder_ids, training=training)
        rotation = self.rotary(ops.arange(ops.shape(decoder_ids)[1]))

        x = self.dropout(self.target_embedding(decoder_ids), training=training)
        for block, keys_values in zip(self.decoder_blocks, source.keys_values, strict=True):
            x = block(
                x,
                rotation,
                causal=True,
                source=keys_values,
                cross_attention_mask=source.mask,
                training=training,
            )
        return self.decoder_norm(x)

    def compute_output_spec(self, inputs, training=None):
        """Keras would find it out with lengths of its own, perhaps more than `max_length`."""
        encoder_ids, decoder_ids = self._unpack(inputs)
        check_ids_shape(encoder_ids, self.max_length, "encoder_ids")
        return keras.KerasTensor((*decoder_ids.shape, self.d_model), self.compute_dtype)

    def _unpack(self, inputs):
        if not isinstance(inputs, dict) or not {"encoder_ids", "decoder_ids"} <= set(inputs):
            received = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(
                'inputs must be a dictionary of "encoder_ids" and "decoder_ids". '
                f"Received: {received}"
            )
        check_ids_shape(inputs["decoder_ids"], self.max_length, "decoder_ids")
        return inputs["encoder_ids"], inputs["decoder_ids"]

    def encode(self, encoder_ids, training=None) -> Source:
        """The source as every decoder block reads it."""
        check_ids_shape(encoder_ids, self.max_length, "encoder_ids")
        rotation = self.rotary(ops.arange(ops.shape(encoder_ids)[1]))
        mask = None
        if self.pad_id is not None:
            mask = (encoder_ids != self.pad_id)[:, None, None, :]

        x = self.dropout(self.source_embedding(encoder_ids), training=training)
        for block in self.encoder_blocks:
            x = block(x, rotation, attention_mask=mask, training=training)
        x = self.encoder_norm(x)
        return Source([b.cross_attention.keys_values(x) for b in self.decoder_blocks], mask)

    def start(self, source: Source, room: int) -> DecodingState:
        """The state before any token of the target, with room for so many."""
        batch, _, num_heads, head_dim = source.keys_values[0].key.shape
        cache = KeyValues.empty(batch, room, num_heads, head_dim, self.compute_dtype)
        return DecodingState([cache] * self.num_layers, 0, source)

    def extend(self, ids, state: DecodingState):
        """The hidden vectors of the next tokens `[batch, length]`, and the state after them."""
        length, room = ids.shape[1], state.caches[0].key.shape[1]
        rotation = self.rotary(state.slot + ops.arange(length))
        mask = causal_mask(length, room, state.slot)[None, None]

        x = self.target_embedding(ids)
        caches = []
        for block, cache, keys_values in zip(
            self.decoder_blocks, state.caches, state.source.keys_values, strict=True
        ):
            x, cache = block(
                x,
                rotation,
                attention_mask=mask,
                source=keys_values,
                cross_attention_mask=state.source.mask,
                cache=cache,
                slot=state.slot,
            )
            caches.append(cache)
        return self.decoder_norm(x), DecodingState(caches, state.slot + length, state.source)

    def get_config(self):
        """The constructor's arguments."""
        block = self.encoder_blocks[0].get_config()
        return {
            **super().get_config(),
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "max_length": self.max_length,
            "target_vocab_size": self.target_vocab_size,
            "num_key_value_heads": block["num_key_value_heads"],
            "d_ff": block["d_ff"],
            "dropout": block["dropout"],
            "rope_theta": self.rotary.theta,
            "epsilon": block["epsilon"],
            "pad_id": self.pad_id,
        }
