"""Looks at the first step of a `fit`."""

import itertools

import keras
import numpy as np
from keras import ops

from keras_llm.backend.keras_private import all_layers
from keras_llm.checks.batch_checks import (
    Batch,
    batch_messages,
    large_first_loss,
    unlikely_predictions,
)
from keras_llm.checks.compile_checks import ended_schedule, ignored_label, takes_logits
from keras_llm.checks.sanity_warning import warn
from keras_llm.losses import MaskedLoss, TokenLoss
from keras_llm.losses.uniform_loss import uniform_loss
from keras_llm.token_statistics import is_counted, token_weights

# Of predictions, which may be large, so many rows and positions are looked at.
LOOKED_AT = (slice(1), slice(8))
# Of arrays, where the batch itself cannot be seen.
ROWS = 32


class FirstBatch(keras.callbacks.Callback):
    """Warns of what is wrong with the first batch of a `fit`, once its step is done.

    The model hands it the first step to run, so later steps cost nothing. The batch is the one
    that is trained on: none is taken from a data loader for it. TensorFlow shows no batch before it
    is in the graph; there, `fit`'s arrays are looked at. Of a model that does not hold its logits,
    as of a compiled graph, predictions are not seen.

    Args:
        given: What `fit` was given as `(x, y, sample_weight)`.
        told: Messages that `compile` has warned of already.
    """

    def __init__(self, given, told):
        super().__init__()
        self.given, self.told = given, told
        self.predictions = None

    def on_train_begin(self, logs=None):
        """Notes what the first step will change."""
        optimizer = self.model.optimizer
        self.is_first_update = int(optimizer.iterations) == 0
        self.found_before = ended_schedule(optimizer)

    def run(self, step, *state_and_data):
        """The first step, and a look at it.

        Args:
            step: Keras's train function.
            *state_and_data: Its arguments.
        """
        *state, data = state_and_data
        batch, data = self.peek(data)
        results = step(*state, data)
        logs = results[0] if isinstance(results, tuple) else results
        for message in self.messages(batch, logs):
            if message not in self.told:
                warn(message)
        return results

    def peek(self, data):
        """The first batch, or None, and the data as the step takes it."""
        if keras.distribution.distribution() is not None:
            return None, data
        if isinstance(data, list):
            return data[0], data
        if keras.backend.backend() == "tensorflow":
            arrays = [a for a in keras.tree.flatten(self.given) if a is not None]
            if not all(hasattr(a, "shape") and hasattr(a, "__getitem__") for a in arrays):
                return None, data
            return keras.tree.map_structure(
                lambda a: None if a is None else a[:ROWS], self.given
            ), data
        batch = next(data)
        return batch, itertools.chain([batch], data)

    def look_at_predictions(self, y_pred):
        """Keeps a few of the predictions of the first forward pass."""
        if self.predictions is None and len(getattr(y_pred, "shape", ())) == 3:
            few = ops.cast(ops.stop_gradient(y_pred[LOOKED_AT]), "float32")
            self.predictions = ops.convert_to_numpy(few)

    def messages(self, batch, logs):
        """What is wrong, a line for each mistake."""
        model, loss = self.model, self.model.loss
        vocab_size = vocabulary(model)
        batch = None if batch is None else read(model, batch)
        found = [self.found_before]
        if batch is not None:
            masked = any(getattr(layer, "mask_zero", False) for layer in all_layers(model))
            found += batch_messages(batch, vocab_size, masked)
        found.append(unlikely_predictions(self.predictions, loss))
        if self.is_first_update and vocab_size and has_known_start(model, loss):
            first = float(ops.convert_to_numpy(logs["loss"]))
            found.append(large_first_loss(first, uniform_loss(loss, vocab_size), vocab_size))
        return [message for message in found if message]


def vocabulary(model) -> int | None:
    """The number of logits, where the head tells."""
    head = getattr(model, "head", None)
    return getattr(head, "vocab_size", getattr(head, "units", None))


def has_known_start(model, loss) -> bool:
    """Whether the logged loss of a model that guesses is known: nothing is added to it."""
    adds = any(variable.regularizer is not None for variable in model.trainable_variables)
    return isinstance(loss, TokenLoss) and loss.class_weights is None and not adds


def read(model, batch) -> Batch | None:
    """A batch in numpy; None where it is not one of tokens."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    loss = model.loss
    if isinstance(loss, MaskedLoss):
        y = loss.labels(y)
    elif takes_logits(loss) is None:
        return None
    labels = integers(y)
    if labels is None:
        return None
    ignored = ignored_label(loss)
    counts = np.ones(labels.shape, bool) if ignored is None else is_counted(labels, ignored)
    weights, _ = token_weights(counts, sample_weight, None, "float32", signed=True)
    counts = ops.convert_to_numpy(weights) != 0
    return Batch(next_token_inputs(model, x, labels.shape), labels, counts)


def next_token_inputs(model, x, shape):
    """The ids of which a model predicts the next at each position; None where it does not."""
    if not getattr(getattr(model, "backbone", None), "is_causal", False):
        return None
    if isinstance(x, dict):
        x = x.get("decoder_ids")
    ids = integers(x)
    return ids if ids is not None and ids.shape == shape else None


def integers(tensor):
    """Integers `[batch, length]` in numpy; None for anything else."""
    if not (hasattr(tensor, "shape") and hasattr(tensor, "dtype")):
        return None
    if len(tensor.shape) == 3 and tensor.shape[-1] == 1:
        tensor = tensor[..., 0]
    if len(tensor.shape) != 2 or "int" not in keras.backend.standardize_dtype(tensor.dtype):
        return None
    return ops.convert_to_numpy(tensor)
