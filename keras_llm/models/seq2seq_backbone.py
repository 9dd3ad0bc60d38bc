"""The body of an encoder-decoder."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_llm.arguments import check_positive_int
from keras_llm.backend.cache import stored
from keras_llm.layers.key_values import KeyValues
from keras_llm.layers.rms_norm import RMSNorm
from keras_llm.layers.token_embedding import TokenEmbedding
from keras_llm.models.backbone import Backbone, TransformerConfig
from keras_llm.models.checks import check_ids_shape, check_special_id, checked_ids
from keras_llm.models.decoding_state import DecodingState
from keras_llm.tensor import Tensor


@dataclasses.dataclass
class Seq2SeqConfig(TransformerConfig):
    """What a `Seq2SeqBackbone` is made from; `Seq2SeqTransformer` describes each field."""

    target_vocab_size: int | None = None
    dropout: float = 0.1
    pad_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_vocab_size is not None:
            check_positive_int(self.target_vocab_size, "target_vocab_size")
            if self.pad_id is not None:
                check_special_id(self.pad_id, self.target_vocab_size, "pad_id")


class Source(NamedTuple):
    """An encoded source, as the decoder attends to it."""

    keys_values: list[KeyValues]  # one per decoder block
    mask: Any  # booleans [batch, 1, 1, source_length], false for padding; None without a pad_id

    def repeated(self, times: int) -> Source:
        """Each row `times` times, side by side: one for each beam; kept as decoding reads it."""
        copies = self
        if times > 1:
            copies = keras.tree.map_structure(lambda x: ops.repeat(x, times, axis=0), self)
        return copies._replace(keys_values=keras.tree.map_structure(stored, copies.keys_values))


@keras.saving.register_keras_serializable(package="keras_llm")
class Seq2SeqBackbone(Backbone):
    """The ids of a source and of a target to the target's hidden vectors.

        source:  s = embedding(encoder_ids);  s = encoder_block(s), num_layers times;  RMSNorm(s)
        target:  x = embedding(decoder_ids);  x = decoder_block(x, s), num_layers times;  RMSNorm(x)

    It is `Seq2SeqTransformer` without the head.

    Args:
        config: A `Seq2SeqConfig`; its fields are the arguments of `Seq2SeqTransformer`.
        **kwargs: Keras's own: `name`, `dtype`, `trainable`.

    Call arguments:
        inputs: `{"encoder_ids": [batch, source_length], "decoder_ids": [batch, length]}`, integers.

    Returns:
        The target's hidden vectors after the last norm, `[batch, length, d_model]`: the input of
        the head.

    Example:
    >>> import numpy as np
    >>> config = Seq2SeqConfig(vocab_size=11, d_model=8, num_layers=1, num_heads=2, max_length=16)
    >>> ids = {"encoder_ids": np.array([[1, 2, 3, 0]]), "decoder_ids": np.array([[4, 5, 6]])}
    >>> tuple(Seq2SeqBackbone(config)(ids).shape)
    (1, 3, 8)
    """

    config_class = Seq2SeqConfig
    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        dtype = self.dtype_policy
        self.source_embedding = TokenEmbedding(
            config.vocab_size, config.d_model, dtype=dtype, name="source_embedding"
        )
        self.encoder_blocks = self.make_blocks("encoder_block")
        self.encoder_norm = RMSNorm(config.epsilon, dtype=dtype, name="encoder_norm")

        self.target_embedding = self.source_embedding
        if config.target_vocab_size is not None:
            self.target_embedding = TokenEmbedding(
                config.target_vocab_size, config.d_model, dtype=dtype, name="target_embedding"
            )
        self.decoder_blocks = self.make_blocks("decoder_block", cross_attention=True)
        self.decoder_norm = RMSNorm(config.epsilon, dtype=dtype, name="decoder_norm")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all weights. Their shapes do not depend on the input."""
        super().build()
        self.source_embedding.build()
        if self.target_embedding is not self.source_embedding:
            self.target_embedding.build()
        for block in self.encoder_blocks + self.decoder_blocks:
            block.build()
        self.encoder_norm.build((None, None, self.config.d_model))
        self.decoder_norm.build((None, None, self.config.d_model))

    def call(self, inputs: dict[str, Tensor], training: bool | None = None) -> Tensor:
        """The hidden vectors of whole targets."""
        encoder_ids, decoder_ids = self._unpack(inputs)
        encoder_ids = checked_ids(encoder_ids, self.config.max_length, "encoder_ids")
        decoder_ids = checked_ids(decoder_ids, self.config.max_length, "decoder_ids")
        source = self.encode(encoder_ids, training=training)
        cos_sin = self.rotary(ops.arange(ops.shape(decoder_ids)[1], dtype="int32"))

        x = self.dropout(self.target_embedding(decoder_ids), training=training)
        for block, keys_values in zip(self.decoder_blocks, source.keys_values, strict=True):
            x = block(
                x,
                cos_sin,
                causal=True,
                source=keys_values,
                cross_attention_mask=source.mask,
                training=training,
            )
        return self.decoder_norm(x)

    def compute_output_spec(
        self, inputs: dict[str, Tensor], training: bool | None = None
    ) -> keras.KerasTensor:
        """The output's shape and dtype, without a trial call.

        Keras's trial would choose lengths itself, perhaps more than `max_length`.
        """
        _, decoder_ids = self._unpack(inputs)
        return keras.KerasTensor((*decoder_ids.shape, self.config.d_model), self.compute_dtype)

    def _unpack(self, inputs):
        if not isinstance(inputs, dict) or not {"encoder_ids", "decoder_ids"} <= set(inputs):
            received = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(
                'inputs must be a dictionary of "encoder_ids" and "decoder_ids". '
                f"Received: {received}"
            )
        encoder_ids, decoder_ids = inputs["encoder_ids"], inputs["decoder_ids"]
        check_ids_shape(encoder_ids, self.config.max_length, "encoder_ids")
        check_ids_shape(decoder_ids, self.config.max_length, "decoder_ids")
        rows = encoder_ids.shape[0], decoder_ids.shape[0]
        if None not in rows and rows[0] != rows[1]:
            raise ValueError(
                "encoder_ids and decoder_ids must have as many rows. "
                f"Received: {rows[0]} and {rows[1]}"
            )
        return encoder_ids, decoder_ids

    def encode(self, encoder_ids: Tensor, training: bool | None = None) -> Source:
        """The keys and values of the source for every decoder block."""
        cos_sin = self.rotary(ops.arange(ops.shape(encoder_ids)[1], dtype="int32"))
        mask = None
        if self.config.pad_id is not None:
            mask = (encoder_ids != self.config.pad_id)[:, None, None, :]

        x = self.dropout(self.source_embedding(encoder_ids), training=training)
        for block in self.encoder_blocks:
            x = block(x, cos_sin, attention_mask=mask, training=training)
        x = self.encoder_norm(x)
        return Source([b.cross_attention.keys_values(x) for b in self.decoder_blocks], mask)

    def empty_source(self, batch: int, length: int) -> Source:
        """A source of this size."""
        keys_values = [
            block.cross_attention.empty_cache(batch, length) for block in self.decoder_blocks
        ]
        has_mask = self.config.pad_id is not None
        return Source(keys_values, ops.ones((batch, 1, 1, length), "bool") if has_mask else None)

    def start(self, batch: int, capacity: int, source: Source | tuple = ()) -> DecodingState:
        """The state before any token of the target, with empty caches for `capacity` tokens."""
        return DecodingState.empty(self.decoder_blocks, batch, capacity, context=source)

    def extend(self, ids: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """The hidden vectors of the next tokens `[batch, length]`, and the state after them."""
        length, source = ids.shape[1], state.context
        positions = state.positions(length)
        cos_sin = self.rotary(positions)
        mask = state.visible(positions)[None, None]

        # Without an axis for the length one token a row takes fewer operations.
        x = self.target_embedding(ids[:, 0] if length == 1 else ids)
        caches = []
        for block, cache, keys_values in zip(
            self.decoder_blocks, state.caches, source.keys_values, strict=True
        ):
            x, cache = block(
                x,
                cos_sin,
                attention_mask=mask,
                source=keys_values,
                cross_attention_mask=source.mask,
                cache=cache,
                cache_position=state.position,
            )
            caches.append(cache)
        return ops.reshape(self.decoder_norm(x), (ops.shape(ids)[0], length, -1)), state.after(
            length, caches, source
        )
