"""A loss or gradient that is not finite: skipped, counted, explained."""

import contextlib
from collections import deque
from typing import NamedTuple

import keras

from keras_llm.arguments import check_number, check_positive_int
from keras_llm.checks.sanity_warning import warn
from keras_llm.distribution import world
from keras_llm.training.first_fault import first_fault
from keras_llm.training.step_facts import GuardSettings

# The latest batches that are kept until it is known whether their update was skipped.
HELD = 16
# The most skipped updates that are listed, and that are told one by one in an epoch.
LISTED, TOLD = 100, 3
FIRST, UNKNOWN = "The first value that is not finite is", "unknown"
if keras.backend.backend() == "tensorflow":
    UNKNOWN += " (compile with run_eagerly=True to see where)"


class Skipped(NamedTuple):
    """An update that was skipped.

    Attributes:
        epoch, batch: Of the last batch of the update, from 0; with `steps_per_execution`, of the
            call that it was in.
        cause: Where its loss or gradient first was not finite; empty where that is not known.
    """

    epoch: int
    batch: int
    cause: str


class FiniteGuard(keras.callbacks.Callback):
    """Reports updates that are skipped because the loss or a gradient is infinite or NaN.

    The step itself skips them, in `fit` and `train_on_batch`, on every backend and without waiting
    for a GPU:

        skip     = not isfinite(loss) or not isfinite(norm of the gradients)
        weights  = weights if skip else updated weights           and the optimizer's state

    Nothing of a skipped update reaches weights, optimizer or its `iterations`, so training goes on
    as if the batch had not been there; only random numbers were drawn for it. The epoch's loss and
    metrics leave out batches whose loss is not finite, and are NaN where no other batch is left. A
    window of accumulated gradients is skipped as a whole. Where a loss scale overflows (mixed
    float16), its optimizer skips the update by itself: that is normal and not counted.

    `fit` has a `FiniteGuard()` unless it is given one, and warns of the first updates that were
    skipped in an epoch; `train_on_batch` warns of the first that it skips. The warning has the
    batch's position and the first layer that made a number that is not finite: the batch is run
    again, layer by layer. On a GPU `fit` looks when the logs are computed, and can explain the last
    16 batches only. On TensorFlow it can with `run_eagerly=True`. With another optimizer than ours
    a GPU is waited for in each update.

    After `patience` skipped updates in a row training stops with an error.

    With `deviations`, updates are skipped too whose gradient has a norm beyond

        mean + deviations * standard deviation       of the norms of the last `window` updates

    once half of the window is known (as in OLMo-core's skip-step optimizers,
    https://github.com/allenai/OLMo-core). They are counted apart, and do not stop training.

    Example:
    >>> import numpy as np
    >>> from keras_llm import callbacks, losses, models
    >>> model = models.CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    >>> x, y = np.array([[1, 2, 3]]), np.array([[2, 3, 4]])
    >>> guard = callbacks.FiniteGuard(patience=3)
    >>> history = model.fit(x, y, verbose=0, callbacks=[guard])
    >>> list(guard.skipped)
    []

    Args:
        patience: Skipped updates in a row that stop training.
        deviations: Standard deviations beyond which a gradient is too large; None for no limit.
        window: Updates that their mean is taken over.
        skip: False trains on whatever comes, and looks at nothing.

    Attributes:
        skipped: The last 100 skipped updates, outliers included, as `Skipped(epoch, batch, cause)`.
        total, outliers: How many updates the model's step has skipped because they were not finite,
            and because of `deviations`.

    Raises:
        ValueError: an argument is out of range, or `fit` trains a model without a loss of tokens.
        FloatingPointError: `patience` updates in a row were skipped.
    """

    # It is no reason to compute the logs, and changes no layer.
    reads_logs_when_they_are_computed = True

    def __init__(
        self,
        patience: int = 10,
        deviations: float | None = None,
        window: int = 100,
        skip: bool = True,
    ) -> None:
        super().__init__()
        self.patience = check_positive_int(patience, "patience")
        if deviations is not None:
            deviations = check_number(deviations, "deviations", "(0, inf)")
        window = check_positive_int(window, "window")
        self.settings = GuardSettings(bool(skip), deviations, window)
        self.skipped: deque[Skipped] = deque(maxlen=LISTED)
        self.total = self.outliers = self.told = 0

    def set_model(self, model) -> None:
        """Takes the model, and tells its step what to skip."""
        super().set_model(model)
        if getattr(model, "step", None) is None:
            raise ValueError(
                "FiniteGuard needs a model that is compiled with a loss of keras_llm. "
                f"Received: {type(model).__name__} {model.name!r}"
            )
        # On JAX, a callback that asks for `self.model` takes the state from the step.
        self.step = model.step
        self.step.set_guard(self.settings)

    def on_train_begin(self, logs=None) -> None:
        """Has the step keep its latest batches."""
        before = self.step.look(wait=True)
        self.total, self.outliers = before.total, before.outliers
        if self.settings.skip:
            self.step.hold(max(HELD, suspects(self.step)))
        self.told = 0

    def on_epoch_begin(self, epoch, logs=None) -> None:
        """Notes which epoch it is."""
        self.epoch, self.told, self.batch = epoch, 0, -1

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Looks, unless a GPU would have to be waited for."""
        self.batch = batch
        self.look(wait=bool(logs))

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Looks at the rest of the epoch."""
        self.look(wait=True)

    def end_run(self) -> None:
        """Lets the batches go, also after an error."""
        self.step.hold(0)

    def look(self, wait: bool) -> None:
        """Reports what has been skipped since the last look."""
        if not self.settings.skip or (found := self.step.look(wait)) is None:
            return
        for age in found.ages:
            is_outlier = found.total == self.total
            cause = of_all(self.outlier() if is_outlier else self.cause(age))
            self.skipped.append(Skipped(self.epoch, self.batch - age, cause))
            self.tell(is_outlier)
        self.total, self.outliers = found.total, found.outliers
        if found.ages and found.in_a_row >= self.patience:
            self.stop(found.in_a_row)

    def outlier(self) -> str:
        """Why an update was skipped that was finite."""
        _, deviations, window = self.settings
        return f"a norm of the gradient beyond {deviations:g} deviations of the last {window}"

    def cause(self, age: int) -> str:
        """What made an update of so many batches ago not finite; empty where it is not known."""
        if self.told >= TOLD or self.step.held is None:
            return ""
        # On JAX this gives the variables their values.
        return first_cause(self.model.step, age)

    def tell(self, is_outlier: bool) -> None:
        """Warns of the update that was skipped last, a few times an epoch."""
        self.told += 1
        if self.told > TOLD:
            return
        epoch, batch, cause = self.skipped[-1]
        why = f": {cause}" if is_outlier else f". {FIRST} {cause or UNKNOWN}"
        more = " No more are told in this epoch." if self.told == TOLD else ""
        warn(f"Epoch {epoch + 1}, batch {batch}: the update was skipped{why}.{more}")

    def stop(self, in_a_row: int) -> None:
        """Ends training."""
        cause = next((s.cause for s in reversed(self.skipped) if s.cause), UNKNOWN)
        error = FloatingPointError(
            f"{in_a_row} updates in a row were skipped, the last one at epoch {self.epoch + 1}, "
            f"batch {self.skipped[-1].batch}, because their losses or gradients were not finite. "
            f"{FIRST} {cause}. The weights are those of before. Try a smaller "
            "learning rate, a warm-up or global_clipnorm=1.0, bfloat16 in place of float16, or "
            f"look at these batches. Received: patience={self.patience}"
        )
        if self.model.run is None:
            raise error
        self.model.run.stop(error)

    def state_dict(self) -> dict:
        """The list of skipped updates; the counts belong to the step."""
        return {"skipped": [list(skipped) for skipped in self.skipped]}

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` returned."""
        self.skipped.clear()
        self.skipped.extend(Skipped(*skipped) for skipped in state["skipped"])


class FirstSkipped:
    """Tells of the first update that `train_on_batch` skips, where no callback looks at them.

    Args:
        step: The model's `Step`.
    """

    def __init__(self, step):
        self.step, self.is_told = step, False

    @contextlib.contextmanager
    def looking(self):
        """Context manager of one batch."""
        step = self.step
        if self.is_told:
            yield
            return
        if step.held is None:
            step.hold(step.accumulation)
        yield
        found = step.look(wait=True)
        # Of an outlier there is no row.
        if not found.ages or not found.in_a_row:
            return
        cause = of_all(first_cause(step, found.ages[-1]))
        warn(
            f"train_on_batch has skipped an update. {FIRST} {cause or UNKNOWN}. The weights are "
            "those of before. Others that are skipped will not be told."
        )
        self.is_told = True
        step.hold(0)


def first_cause(step, age: int) -> str:
    """What made the update of so many batches ago not finite, of those that the step holds."""
    # Another process may find its cause earlier or later.
    with step.whole_weights():
        end = len(step.held) - age
        for data in [*step.held][max(0, end - suspects(step)) : max(0, end)]:
            try:
                cause = first_fault(step, data)
            except Exception as error:
                # Memory may not suffice, and training can go on without an explanation.
                return f"not found: {type(error).__name__}: {error}"
            if cause:
                return cause
    return ""


def suspects(step) -> int:
    """How many batches, the last of which `look` has told, an update may be of."""
    return step.accumulation + step.together - 1


def of_all(cause: str) -> str:
    """A cause that one of the processes has found: the one whose rows made it."""
    return next(filter(None, world().texts_of(cause)), "")
