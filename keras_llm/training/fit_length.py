"""When a `fit` ends: after epochs, steps or tokens."""

import inspect
import math
import sys
from typing import NamedTuple

import keras

from keras_llm.arguments import check_non_negative_int, check_positive_int
from keras_llm.training.arrays import has_rows


class Position(NamedTuple):
    """Where a run is.

    Attributes:
        epoch: Epochs that are over.
        batch: Batches of the epoch that has begun, trained already.
        steps: Batches of the whole run.
    """

    epoch: int = 0
    batch: int = 0
    steps: int = 0


class FitLength(NamedTuple):
    """When a `fit` ends: with its last epoch, or before that after so many steps or tokens.

    Attributes:
        batches: Batches of an epoch; None where the data does not tell.
        epochs: The number of the last epoch.
        steps, tokens: As of `fit`.
    """

    batches: int | None
    epochs: int
    steps: int | None
    tokens: int | None

    def is_reached(self, position: Position, tokens: float) -> bool:
        """Whether a run that is there, after so many tokens, is over."""
        if self.steps is not None and position.steps >= self.steps:
            return True
        if self.tokens is not None and tokens >= self.tokens:
            return True
        return position.epoch >= self.epochs

    def batches_after(self, position: Position) -> int | None:
        """Batches that are not trained yet; None where the data does not tell."""
        if self.steps is not None:
            return self.steps - position.steps
        if self.batches is None or self.tokens is not None:
            return None
        return self.batches * (self.epochs - position.epoch) - position.batch

    def batches_of_epoch(self, position: Position) -> int:
        """Batches of the epoch that begins, of which `steps` may leave a part."""
        left = self.steps - position.steps + position.batch
        return left if self.batches is None else min(left, self.batches)

    def missed(self, position: Position, tokens: float) -> list[str]:
        """What to warn of where the data has ended before the run."""
        counts = (self.steps, position.steps, "steps"), (self.tokens, int(tokens), "tokens")
        return [
            f"The data ended after {had:,} of {wanted:,} {name}: a generator is read once. "
            "A DataLoader or arrays go round."
            for wanted, had, name in counts
            if wanted is not None and had < wanted
        ]


def check_length(epochs, steps, tokens, step):
    """Raises `ValueError` where it is not clear when `fit` is to end.

    Args:
        epochs, steps, tokens: As in `fit`.
        step: The model's `Step`, or None.
    """
    check_non_negative_int(epochs, "epochs")
    for name, value in {"steps": steps, "tokens": tokens}.items():
        if value is not None:
            check_positive_int(value, name)
            if epochs != 1:
                raise ValueError(
                    f"fit ends after epochs, steps or tokens: give one of them. Received: "
                    f"epochs={epochs}, {name}={value}"
                )
    if steps is not None and tokens is not None:
        raise ValueError(
            "fit ends after epochs, steps or tokens: give one of them. Received: "
            f"steps={steps}, tokens={tokens}"
        )
    if tokens is not None and step is None:
        raise ValueError(
            "tokens needs a loss of keras_llm, which counts them; give steps=... or epochs=... "
            f"Received: tokens={tokens} and a loss of Keras"
        )


def batches_in(data, batch_size, steps_per_epoch, validation_split) -> int | None:
    """How many batches `fit` makes of its data in an epoch; None where the data does not tell."""
    if steps_per_epoch:
        return steps_per_epoch
    x = data[0]
    if hasattr(x, "cardinality"):
        count = int(x.cardinality())
        return count if count >= 0 else None
    if has_rows(x):
        rows = math.floor(keras.tree.flatten(x)[0].shape[0] * (1.0 - validation_split))
        return math.ceil(rows / (batch_size or 32))
    try:
        return x.num_batches if isinstance(x, keras.utils.PyDataset) else len(x)
    except (TypeError, NotImplementedError):
        return None  # a stream, such as a DataLoader of an IterableDataset


def last_epoch(x, batches, epochs, initial_epoch, steps, tokens) -> int:
    """The number of epochs at which `fit` ends at the latest: `steps` or `tokens` may end it.

    Args:
        x: The data; the first epoch is short where it `begins_at` a later batch.
        batches: Batches of an epoch, where the data tells.
        epochs, initial_epoch, steps, tokens: As of `fit`.

    >>> last_epoch([0], batches=4, epochs=1, initial_epoch=2, steps=9, tokens=None)
    5
    """
    if steps is None and tokens is None:
        return epochs
    if inspect.isgenerator(x):
        # Keras would train its first batches again in every later epoch.
        return initial_epoch + 1
    if steps is None or not batches:
        return sys.maxsize
    _, first = getattr(x, "begins_at", (0, 0))
    return initial_epoch + math.ceil((first + steps) / batches)
