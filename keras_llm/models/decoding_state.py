"""What a decoder keeps of the tokens so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_llm.backend.cache import latest, narrowed, reordered, stored, taken
from keras_llm.layers.key_values import KeyValues
from keras_llm.layers.transformer_block import TransformerBlock
from keras_llm.tensor import Tensor


class DecodingState(NamedTuple):
    """What a decoder keeps of the tokens so far.

    Attributes:
        caches: The keys and values of each block.
        places: The numbers of the caches' places, `[capacity]`.
        position: A scalar: the place of the next token.
        context: What else the tokens attend by; the decoder knows it.
    """

    caches: list[KeyValues]
    places: Any
    position: Any
    context: Any

    @classmethod
    def empty(
        cls, blocks: list[TransformerBlock], batch: int, capacity: int, context: Any
    ) -> DecodingState:
        """The state before any token, for at most `capacity` tokens."""
        caches = [block.self_attention.empty_cache(batch, capacity) for block in blocks]
        return cls(caches, ops.arange(capacity, dtype="int32"), ops.zeros((), "int32"), context)

    def positions(self, length: int) -> Tensor:
        """The places of the next `length` tokens."""
        return self.position + ops.arange(length, dtype="int32")

    def visible(self, positions: Tensor) -> Tensor:
        """Booleans `[length, capacity]`: the places up to each of the `positions`."""
        return self.places <= positions[:, None]

    def after(self, length: int, caches: list[KeyValues], context: Any) -> DecodingState:
        """The state `length` tokens later."""
        return DecodingState(caches, self.places, self.position + length, context)

    def narrowed(self, length: int) -> DecodingState:
        """The state with caches for at least `length` tokens: smaller ones, where that is free."""
        caches = keras.tree.map_structure(lambda x: narrowed(x, length), self.caches)
        return self._replace(caches=caches, places=self.places[: caches[0].key.shape[1]])

    def latest(self, after: DecodingState) -> DecodingState:
        """The state that steps from `self.narrowed(...)` led to, with room as before."""
        caches = keras.tree.map_structure(latest, self.caches, after.caches)
        return after._replace(caches=caches, places=self.places)

    def selected(self, rows: np.ndarray) -> DecodingState:
        """The state of these rows."""
        rows = ops.convert_to_tensor(rows)
        context = keras.tree.map_structure(lambda x: taken(x, rows, axis=0), self.context)
        caches = keras.tree.map_structure(lambda x: stored(taken(x, rows, axis=0)), self.caches)
        return self._replace(caches=caches, context=context)

    def reordered(self, rows: Tensor) -> DecodingState:
        """The state in which row i continues row `rows[i]`, which must have the same context."""
        caches = keras.tree.map_structure(lambda x: reordered(x, rows), self.caches)
        return self._replace(caches=caches)
