"""The head of a KerasHub task: from hidden vectors to logits, and whether it is a matrix."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm.backend.host import to_numpy
from keras_llm.tensor import Tensor

# Where Keras's layers keep a matrix, and whether it is `[vocab, d_model]`. Which of them makes the
# logits, if one does, is found out by numbers.
MATRICES = {"embeddings": True, "reverse_embeddings": False, "kernel": False}
# Logits of the probe. A fresh model's own are near 0, where a soft cap changes nothing.
LARGE, SATURATING = 90.0, 10_000.0
# Relative, of one logit.
ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


class KerasHubHead(keras.layers.Layer):
    """The operations of a KerasHub task from the last hidden vectors on.

    They are compared with `z = hidden @ kernel + bias` and with `c * tanh(z / c)`, for each matrix
    that the layer has, on random hidden vectors that make z near 90.

    Args:
        layer: The layer that has the weights.
        calls: The operations, the first of which is the layer's call; each a function of the result
            of the one before.
        d_model: Width of the hidden vectors.
        vocab_size: Length of a row of logits.
        **kwargs: Keras's own: `name`, `dtype`, `trainable`.

    Attributes:
        soft_cap: c, where the logits are found to be `c * tanh(z / c)`; else None.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        calls: list[Callable[[Tensor], Tensor]],
        d_model: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.layer, self.calls = layer, calls
        self.d_model, self.vocab_size = d_model, vocab_size
        self.soft_cap: float | None = None
        self._matrix = ""
        self._obstacle = self._probe()
        self.built = True

    def call(self, hidden: Tensor) -> Tensor:
        """The logits, as the task makes them."""
        for call in self.calls:
            hidden = call(hidden)
        return hidden

    @property
    def kernel(self) -> Tensor:
        """The matrix `[d_model, vocab]`; an adapter that Keras's LoRA adds is part of it."""
        matrix = ops.convert_to_tensor(getattr(self.layer, self._matrix))
        return ops.transpose(matrix) if MATRICES[self._matrix] else matrix

    @property
    def bias(self) -> Tensor | None:
        """The bias `[vocab]`, or None."""
        return getattr(self.layer, "bias", None)

    def why_no_matrix(self) -> str:
        """Why logits are not made by `kernel`, `bias` and `soft_cap`; empty where they are."""
        if self.layer.quantization_mode is not None:
            return "is quantised"
        if self.layer.activity_regularizer is not None:
            return "has an activity regularizer"
        return self._obstacle

    def _probe(self) -> str:
        """Finds the matrix; returns why there is none."""
        shape = (self.d_model, self.vocab_size)
        direction = np.random.default_rng(0).standard_normal((4, shape[0])).astype("float32")
        for name, is_transposed in MATRICES.items():
            matrix = getattr(self.layer, name, None)
            if matrix is None or tuple(matrix.shape) != shape[:: -1 if is_transposed else 1]:
                continue
            self._matrix = name
            obstacle = self._compare(direction)
            if not obstacle:
                return ""
        return obstacle if self._matrix else "is not known to be a matrix"

    def _compare(self, direction: np.ndarray) -> str:
        """Why the logits are not made by the kernel at hand; empty where they are."""
        largest = np.abs(self._product(direction)).max()
        if largest == 0:
            return "has only zeros as weights, so that it could not be checked"
        # An infinite factor of tiny weights makes NaN, which compares false.
        hidden = direction * (LARGE / largest)
        plain, logits = self._product(hidden), self._logits(hidden)
        tolerance = ROUNDING.get(self.compute_dtype, 1e-5) * LARGE
        if np.abs(logits - plain).max() < tolerance:
            return ""
        cap = float(np.abs(self._logits(direction * (SATURATING / largest))).max())
        if cap > 0 and np.abs(logits - cap * np.tanh(plain / cap)).max() < tolerance:
            self.soft_cap = cap
            return ""
        return "does more than multiply by a matrix"

    def _logits(self, hidden: np.ndarray) -> np.ndarray:
        """What the task makes of hidden vectors, `[rows, vocab]`."""
        return to_numpy(ops.cast(self(ops.convert_to_tensor(hidden[None])), "float32"))[0]

    def _product(self, hidden: np.ndarray) -> np.ndarray:
        """What the kernel and the bias make of them."""
        hidden, kernel = (ops.cast(x, self.compute_dtype) for x in (hidden, self.kernel))
        product = to_numpy(ops.cast(ops.matmul(hidden, kernel), "float32"))
        return product if self.bias is None else product + to_numpy(self.bias)
