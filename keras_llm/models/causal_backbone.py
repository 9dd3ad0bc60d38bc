"""The body of a decoder-only language model."""

import dataclasses
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_llm.backend import host_values
from keras_llm.backend.attention import segments
from keras_llm.layers.rms_norm import RMSNorm
from keras_llm.layers.token_embedding import TokenEmbedding
from keras_llm.models.backbone import Backbone, TransformerConfig
from keras_llm.models.checks import check_ids_shape, check_special_id, checked_ids
from keras_llm.models.decoding_state import DecodingState
from keras_llm.tensor import Tensor


@dataclasses.dataclass
class CausalConfig(TransformerConfig):
    """What a `CausalBackbone` is made from; `CausalTransformer` describes each field."""

    document_end_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.document_end_id is None:
            return
        check_special_id(self.document_end_id, self.vocab_size, "document_end_id")
        if self.pad_id == self.document_end_id:
            raise ValueError(
                "document_end_id must not be pad_id: padding is masked, so it cannot separate "
                f"documents. Received: document_end_id={self.document_end_id}, pad_id={self.pad_id}"
            )


class PackedIds(NamedTuple):
    """Ids on a device whose values the host cannot see, and what it has to know about them."""

    ids: Any
    counts: Any  # integers [batch] on the host: at least the number of documents of each row


@keras.saving.register_keras_serializable(package="keras_llm")
class CausalBackbone(Backbone):
    """Ids to hidden vectors; each depends on its token and on those before it.

        x = embedding(ids);  x = block(x), num_layers times;  RMSNorm(x)

    It is `CausalTransformer` without the head.

    Args:
        config: A `CausalConfig`; its fields are the arguments of `CausalTransformer`.
        **kwargs: Keras's own: `name`, `dtype`, `trainable`.

    Call arguments:
        ids: Integers, `[batch, length]`.

    Returns:
        Hidden vectors after the last norm, `[batch, length, d_model]`: the input of the head.

    Example:
    >>> import numpy as np
    >>> config = CausalConfig(vocab_size=11, d_model=8, num_layers=1, num_heads=2, max_length=16)
    >>> tuple(CausalBackbone(config)(np.array([[1, 2, 3]])).shape)
    (1, 3, 8)
    """

    config_class = CausalConfig
    config: CausalConfig

    def __init__(self, config: CausalConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        dtype = self.dtype_policy
        self.token_embedding = TokenEmbedding(
            config.vocab_size, config.d_model, dtype=dtype, name="token_embedding"
        )
        self.blocks = self.make_blocks("block")
        self.norm = RMSNorm(config.epsilon, dtype=dtype, name="norm")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all weights. Their shapes do not depend on the input."""
        super().build()
        self.token_embedding.build()
        for block in self.blocks:
            block.build()
        self.norm.build((None, None, self.config.d_model))

    def call(self, ids: Tensor, training: bool | None = None) -> Tensor:
        """The hidden vectors of whole sequences."""
        config = self.config
        ids, counts = ids if isinstance(ids, PackedIds) else (ids, None)
        ids = checked_ids(ids, config.max_length, "ids")
        x = self.dropout(self.token_embedding(ids), training=training)
        positions, is_token, segment_ids = ops.arange(ops.shape(ids)[1], dtype="int32"), None, None
        if config.pad_id is not None:
            # Padding is moved behind the tokens of its row, where the causal rule hides it from
            # them without a mask of all pairs.
            padding = ids == config.pad_id
            length = ops.shape(ids)[1]
            positions = ops.argsort(ops.cast(padding, "int32") * length + positions, axis=1)
            x = reordered(x, positions)
            ids = ops.take_along_axis(ids, positions, axis=1)
            is_token = (ids != config.pad_id)[:, None, :, None]
        if config.document_end_id is not None:
            ends = ops.cast(ids == config.document_end_id, "int32")
            head_dim = self.blocks[0].self_attention.head_dim
            segment_ids = segments(
                ops.cumsum(ends, axis=1) - ends, counts, self.compute_dtype, head_dim
            )

        cos_sin = self.rotary(positions)
        for block in self.blocks:
            x = block(
                x,
                cos_sin,
                attention_mask=is_token,
                causal=True,
                segment_ids=segment_ids,
                training=training,
            )
        if config.pad_id is not None:
            x = reordered(x, ops.argsort(positions, axis=1))
        return self.norm(x)

    def with_host_facts(self, ids: Tensor, on_host: Tensor) -> Tensor | PackedIds:
        """`ids` with what their values on the host tell, where the device's cannot be seen."""
        values = None if self.config.document_end_id is None else host_values(on_host)
        if values is None or host_values(ids) is not None:
            return ids
        counts = 1 + np.count_nonzero(values == self.config.document_end_id, axis=-1)
        with keras.device("cpu"):
            return PackedIds(ids, ops.convert_to_tensor(counts))

    def compute_output_spec(self, ids: Tensor, training: bool | None = None) -> keras.KerasTensor:
        """The output's shape and dtype, without a trial call.

        Keras's trial would choose a length itself, perhaps more than `max_length`.
        """
        check_ids_shape(ids, self.config.max_length, "ids")
        return keras.KerasTensor((*ids.shape, self.config.d_model), self.compute_dtype)

    def start(self, start_position: Tensor, capacity: int) -> DecodingState:
        """The state before any token, with empty caches.

        Args:
            start_position: Integers `[batch]`: the place in the cache of each row's first token.
                Earlier places hold padding, and are masked.
            capacity: The number of tokens that the caches can hold.
        """
        start_position = ops.convert_to_tensor(start_position, "int32")[:, None]
        batch = start_position.shape[0]
        return DecodingState.empty(self.blocks, batch, capacity, context=start_position)

    def extend(self, ids: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """The hidden vectors of the next tokens `[batch, length]`, and the state after them."""
        length = ids.shape[1]
        positions = state.positions(length)
        # Where each row's current document begins, [batch, 1] or [batch, length].
        start = next_start = state.context
        if self.config.document_end_id is not None:
            is_end = ops.cast(ids == self.config.document_end_id, "int32")
            starts = is_end * (positions + 1)
            if length > 1:
                starts = ops.associative_scan(ops.maximum, starts, axis=1)
            starts = ops.maximum(starts, start)
            start, next_start = ops.concatenate([start, starts[:, :-1]], axis=1), starts[:, -1:]
        cos_sin = self.rotary(positions - start)
        mask = state.visible(positions) & (state.places >= start[:, None, :, None])

        # Without an axis for the length one token a row takes fewer operations.
        x = self.token_embedding(ids[:, 0] if length == 1 else ids)
        caches = []
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x, cache = block(
                x, cos_sin, attention_mask=mask, cache=cache, cache_position=state.position
            )
            caches.append(cache)
        return ops.reshape(self.norm(x), (ops.shape(ids)[0], length, -1)), state.after(
            length, caches, next_start
        )


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """`[batch, length, d_model]` with the vectors `order[b]` in row b."""
    # Not take_along_axis: it needs an index per number, and keeps them for the gradient.
    batch, length, width = ops.shape(x)
    vectors = ops.reshape(x, (-1, width))
    first = length * ops.arange(batch, dtype="int32")[:, None]
    return ops.take(vectors, order + first, axis=0)
