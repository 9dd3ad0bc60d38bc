"""Looks at the beginning of a `fit`: the schedule, the first batch, the first loss."""

import itertools
import math

import keras
import numpy as np
from keras import ops

from keras_llm.backend.host import to_numpy
from keras_llm.backend.keras_private import all_layers
from keras_llm.checks.batch_checks import (
    Batch,
    batch_messages,
    large_first_loss,
    unlikely_predictions,
)
from keras_llm.checks.compile_checks import (
    ignored_label,
    predicts_logits,
    takes_logits,
    unfitting_predictions,
)
from keras_llm.checks.sanity_warning import warn
from keras_llm.checks.schedule_checks import schedule_message
from keras_llm.counted_tokens import is_counted, skipped_weights, token_weights
from keras_llm.losses import MaskedLoss, TokenLoss
from keras_llm.losses.uniform_loss import uniform_loss

# The rows and positions of the predictions that are looked at: all of them may be large.
LOOKED_AT = (slice(1), slice(8))
# The rows of `fit`'s arrays that are looked at where the batch itself cannot be seen.
ROWS = 32


class FirstBatch(keras.callbacks.Callback):
    """Warns of a schedule that is too short before the first step, and of mistakes in the batch
    after it.

    The model hands it the first step to run, so later steps cost nothing. It looks at the batch
    that is trained on and takes none from the data for itself. In TensorFlow's graph a batch has no
    values: there it looks at the arrays that `fit` was given. It sees predictions only where logits
    are made, and not in a compiled function.

    Args:
        model: The model. On JAX, `self.model` of a callback gives the variables the state of the
            last step, which must not happen while a step runs.
        given: What `fit` was given as `(x, y, sample_weight)`.
        told: Messages that `compile` has warned of already.
    """

    def __init__(self, model, given, told):
        super().__init__()
        self.trained, self.given, self.told = model, given, told
        self.predictions = None
        self.is_first_epoch = True
        # What the first batch shows. It is told after the step has returned: on JAX, a filter that
        # raises the warning inside of the step would lose the weights that the step holds.
        self.found = []

    def on_epoch_begin(self, epoch, logs=None):
        """Tells, before the first step, whether the schedule is long enough."""
        if not self.is_first_epoch:
            return
        self.is_first_epoch = False
        self.is_first_update = int(self.model.optimizer.iterations) == 0
        run = self.model.run
        self.found = [
            schedule_message(self.model, run.length.batches, run.batches_to_come()),
            quantised_message(self.trained),
        ]
        self.tell()

    def on_train_batch_begin(self, batch, logs=None):
        """Tells what the first batch shows."""
        self.tell()

    def on_epoch_end(self, epoch, logs=None):
        """Tells it where the epoch has one batch only."""
        self.tell()

    def tell(self):
        """Warns of what was found, but for what has been told."""
        found, self.found = self.found, []
        for message in dict.fromkeys(found):
            if message and message not in self.told:
                warn(message)

    def run(self, step, *state_and_data):
        """Runs the first step, a call of Keras's train function, and looks at it."""
        *state, data = state_and_data
        batch, data = self.peek(data)
        results = step(*state, data)
        logs = results[0] if isinstance(results, tuple) else results
        self.found = self.messages(batch, logs)
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
            rows = keras.tree.map_structure(lambda a: None if a is None else a[:ROWS], self.given)
            return rows, data
        batch = next(data)
        return batch, itertools.chain([batch], data)

    def look_at_predictions(self, y_pred):
        """Keeps a few of the predictions of the first forward pass."""
        if self.predictions is None and len(getattr(y_pred, "shape", ())) == 3:
            few = ops.cast(ops.stop_gradient(y_pred[LOOKED_AT]), "float32")
            self.predictions = to_numpy(few)

    def messages(self, batch, logs):
        """The mistakes in a batch and in what the model made of it; some are None."""
        model, loss = self.trained, self.trained.loss
        vocab_size = vocabulary(model)
        batch = None if batch is None else read(model, batch)
        found = []
        if batch is not None:
            masked = any(getattr(layer, "mask_zero", False) for layer in all_layers(model))
            found += batch_messages(batch, vocab_size, masked)
        # The first step has built the head, which compile may not have known.
        unfitting = unfitting_predictions(loss, predicts_logits(model))
        unfitting = unfitting or unlikely_predictions(self.predictions, loss)
        found.append(unfitting)
        # Logits that are taken for probabilities have a large loss too: one mistake, one message.
        if vocab_size and self.is_first_update and not unfitting and isinstance(loss, TokenLoss):
            adds = any(variable.regularizer is not None for variable in model.trainable_variables)
            if loss.class_weights is None and not adds:
                first = float(to_numpy(logs["loss"]))
                found.append(large_first_loss(first, uniform_loss(loss, vocab_size), vocab_size))
        return found


def vocabulary(model) -> int | None:
    """How many scores the head makes of a position, where it tells."""
    head = getattr(model, "head", None)
    return getattr(head, "vocab_size", getattr(head, "units", None))


def quantised_message(model) -> str | None:
    """Layers that are quantised, which `fit` leaves as they are, while it trains the rest."""
    has_untrained_layers = getattr(model, "has_untrained_layers", None)
    if has_untrained_layers is None or not has_untrained_layers():
        return None
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return (
        f"Quantised weights are not trained: fit changes only {trained:,} of "
        f"{model.count_params():,} parameters. Train adapters beside them: "
        "layer.enable_lora(rank) of Keras, peft.get_peft_model(model, peft.LoraConfig(...)) for a "
        "model of transformers."
    )


def read(model, batch) -> Batch | None:
    """A batch in numpy; None where its labels are not token ids."""
    x, y, sample_weight = model.unpack(batch)
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
    with skipped_weights():
        weights, _ = token_weights(counts, sample_weight, None, "float32", signed=True)
    counts = to_numpy(weights) != 0
    return Batch(next_token_inputs(model, x, labels.shape), labels, counts, ignored)


def next_token_inputs(model, x, shape):
    """The ids after each of which a model predicts the next one; None where it does not."""
    backbone = getattr(model, "backbone", None)
    if not getattr(backbone, "is_causal", False):
        return None
    size = getattr(getattr(backbone, "config", None), "vocab_size", None)
    if size is not None and size != vocabulary(model):
        return None  # It reads ids and predicts something else, such as tags.
    if isinstance(x, dict):
        names = ("decoder_ids", "input_ids", "token_ids")
        x = next((x[name] for name in names if name in x), None)
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
    return to_numpy(tensor)
