"""The embedding: ids to vectors."""

from typing import Any

import keras
from keras import ops

from keras_llm.arguments import check_positive_int
from keras_llm.backend.ids import check_ids, check_integers
from keras_llm.tensor import Tensor


@keras.saving.register_keras_serializable(package="keras_llm")
class TokenEmbedding(keras.layers.Layer):
    """A table with one vector per id of the vocabulary, initialised from N(0, 0.02).

    An id outside the vocabulary is an error where values can be read. In a traced graph or on a
    GPU they cannot: there the vector of such an id is NaN, so that the loss becomes NaN. Otherwise
    the GPU would stop with a device-side assert, or look up the vector of another id.

    Args:
        vocab_size: Number of ids.
        d_model: Size of a vector.

    Call arguments:
        ids: Integers of any shape and integer dtype.

    Returns:
        `[..., d_model]`, in the compute dtype.

    Raises:
        TypeError: ids of a float dtype.
        ValueError: an id outside `[0, vocab_size)`.

    Example:
    >>> import numpy as np
    >>> tuple(TokenEmbedding(vocab_size=10, d_model=4)(np.array([[1, 2, 3]])).shape)
    (1, 3, 4)
    """

    def __init__(self, vocab_size: int, d_model: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocab_size = check_positive_int(vocab_size, "vocab_size")
        self.d_model = check_positive_int(d_model, "d_model")

    def build(self, input_shape: Any = None) -> None:
        """Creates the table."""
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.vocab_size, self.d_model),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            autocast=False,  # `call` casts the vectors that it looks up, not the whole table
        )

    def call(self, ids: Tensor) -> Tensor:
        """The vectors of `ids`."""
        check_integers(ids, what="ids")
        checked = check_ids(ids, self.vocab_size, what="ids")
        ids = as_indices(ids)
        if checked:
            return self._look_up(ids)
        inside = (ids >= 0) & (ids < self.vocab_size)
        # Not the constants 0 and NaN: PyTorch would copy them to a GPU in every step, and wait.
        vectors = self._look_up(ops.where(inside, ids, ops.zeros_like(ids)))
        nan = ops.sqrt(-ops.ones_like(ids, dtype=vectors.dtype))
        return ops.where(inside[..., None], vectors, nan[..., None])

    def _look_up(self, ids: Tensor) -> Tensor:
        return ops.cast(ops.take(self.embeddings, ids, axis=0), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "vocab_size": self.vocab_size, "d_model": self.d_model}


def as_indices(ids: Tensor) -> Tensor:
    """Ids as int32, unless they are int32 or int64 already.

    PyTorch and TensorFlow index by few other dtypes. And a comparison with a Python int happens in
    the ids' dtype: in uint8, `ids == 300` is true for 44 on PyTorch, and an error on TensorFlow.
    """
    is_index = keras.backend.standardize_dtype(ids.dtype) in ("int32", "int64")
    return ids if is_index else ops.cast(ids, "int32")
