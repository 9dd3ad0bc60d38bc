"""What a training step is: everything between a batch and an update of the weights.

`compile` makes one `Step`, `model.step`, where the loss is one of tokens (a `MaskedLoss`); with any
other loss `model.step` is None and Keras's own step runs. `torch/step.py` is the step on PyTorch,
`torch/process_step.py` that of one of several processes, `ops/step.py` the one on JAX and
TensorFlow. In both folders `passes.py` is the part from a batch to its gradients.
"""

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from keras_llm.backend.keras_private import inner_optimizer
from keras_llm.training.forward_pass import ForwardPass
from keras_llm.training.shared_sums import SharedSums
from keras_llm.training.step_facts import (
    GuardSettings,
    SkippedUpdates,
    StepDescription,
)


class Step(ForwardPass, ABC):
    """The training step of one compiled model. Its state is changed by its own methods only.

    Calls come in this order, from Keras's hooks (`TokenModel`) and `StepCallback`:

        begin_fit(callbacks)
            begin_epoch(batches_to_come)
                train_batch(...)        once a batch; an update where enough batches are there
            end_epoch()                 before validation: an update from a short last window
            begin_test(callbacks)
                test_batch(...)         once a batch of validation
            end_test()
        end_fit()

    `train_batch` and `test_batch` may also be called alone, by `train_on_batch` or by a user's own
    loop. Trainable weights and layer settings are read when a batch is taken.

    Args:
        model: The `TokenModel`.
        optimizer: The model's, perhaps inside a `LossScaleOptimizer`.
        sums: The logged loss and the metrics.
        micro_batch_size: Rows of a batch that are in memory at once, `"auto"`, or None.
        jit_compile: What `compile` was given.
    """

    # Keras variables that change with a batch, where the backend keeps any for the step.
    variables = ()
    # The latest batches, `(x, y, sample_weight, ...)`, while somebody wants to look at them.
    held: deque | None = None
    # What several processes divide among themselves: see `keras_llm.distribute`.
    divided: str | None = None
    # How many batches `look` does not tell apart.
    together = 1
    # Whether `running_sums` are on their way from a device for a while.
    reads_late = False

    def __init__(self, model, optimizer, sums: SharedSums, micro_batch_size, jit_compile):
        super().__init__(model, sums)
        self.optimizer = optimizer
        self.jit_compile = jit_compile
        self.micro_batch_size = micro_batch_size
        # The mean number of tokens of an update of the last epoch.
        self.tokens_per_update = None
        # The step accumulates per token; the optimizer would average the batches' means.
        self._inner = inner_optimizer(optimizer)
        self.accumulation = self._inner.gradient_accumulation_steps or 1
        self.take_over_accumulation()

    # Batches

    def batches(self, data, batch_size, steps, shuffle):
        """What Keras is to take its batches from, in place of the data of `fit` or `evaluate`.

        Args:
            data: `(x, y, sample_weight)`; the last ones may be left out.
            batch_size, steps, shuffle: As of `fit`.

        Returns:
            Such a tuple, and whether Keras is to shuffle it.
        """
        return data, shuffle

    def fill_up(self, x, y, sample_weight):
        """The batch of `train_on_batch` or `test_on_batch` as Keras is to take it."""
        return x, y, sample_weight

    @abstractmethod
    def train_batch(self, *state_and_data):
        """One batch, and an update if enough batches are there.

        Args:
            *state_and_data: As Keras's `train_step` gets them: on JAX the state and the batch,
                elsewhere the batch.

        Returns:
            As Keras's `train_step`: the logs; on JAX the state too.
        """

    @abstractmethod
    def test_batch(self, *state_and_data):
        """One batch of evaluation; arguments and results as of `train_batch`."""

    # Epochs

    def begin_fit(self, callbacks):
        """Drops what an interrupted `fit` may have left.

        Args:
            callbacks: Those of the user, who may read the logs or change layers.
        """

    def begin_epoch(self, batches_to_come: int | None):
        """Starts the epoch's sums.

        Args:
            batches_to_come: Batches that this `fit` still has, with those of later epochs; None
                where the data does not tell.
        """

    @abstractmethod
    def end_epoch(self):
        """Updates from a short last window. May be called more than once."""

    def end_fit(self):
        """Ends what `begin_fit` began, also after an exception."""

    def begin_test(self, callbacks):
        """An evaluation begins, perhaps inside a `fit`."""

    def end_test(self):
        """It is over, also after an exception."""

    @abstractmethod
    def apply_update(self):
        """Updates the weights from the window so far, if it has a batch, and starts a new one.

        The one place where gradients and tokens of all batches, micro-batches (and processes) are
        complete: they are divided here, once.
        """

    # What others ask

    def build_optimizer(self):
        """Builds the optimizer, if it is not, with the variables whose state is kept here."""
        if not self.optimizer.built:
            self.optimizer.build(self.model.trainable_variables)

    def build_whole_optimizer(self):
        """Builds the optimizer with all variables, for values of all its state.

        Where processes divide it, each drops the others' part before it is used.
        """
        self.build_optimizer()

    def end_training(self):
        """All batches of a `fit` have been trained; not called where it fails."""

    def whole_weights(self):
        """Context manager in which each process has all weights.

        Where several processes divide them while `fit` runs, all of them enter it.
        """
        return contextlib.nullcontext()

    def whole_state(self):
        """Context manager in which the first process has the optimizer's state of all variables.

        Where several processes keep parts of it, all of them enter it.
        """
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def whole(self):
        """Context manager of both, for what is written to a file."""
        with self.whole_weights(), self.whole_state():
            yield

    def metrics_of_all(self):
        """Context manager in which the metrics are those of all processes that train.

        Where there are several, all of them enter it.
        """
        return contextlib.nullcontext()

    def meet(self):
        """Gives all processes that train the weights of the first."""

    def of_first(self, seconds: float) -> float:
        """What the clock of the first process showed, where several train."""
        return seconds

    def epoch_tokens(self) -> float:
        """The tokens of the epoch so far: the sum of the weights of those that count."""
        with self.metrics_of_all():
            return float(self.sums.mean.tokens())

    @abstractmethod
    def gradient_norm(self) -> float | None:
        """The mean global norm of this epoch's gradients before clipping; None before any."""

    def hold(self, batches: int):
        """Keeps the latest batches in `held` from now on; none with 0."""
        self.held = deque(maxlen=batches) if batches else None

    @abstractmethod
    def set_guard(self, settings: GuardSettings):
        """Sets which updates are skipped."""

    @abstractmethod
    def look(self, wait: bool) -> SkippedUpdates | None:
        """What has been skipped; None where the host would have to wait and `wait` is false."""

    @abstractmethod
    def gradients_again(self, data, seen) -> tuple[Any, list]:
        """Forward and backward of a batch as if it came now, layer by layer, changing nothing.

        Args:
            data: One of `held`.
            seen: Called after each layer with its name, its inputs and its outputs.

        Returns:
            What is minimised, and a gradient for each trainable variable, or None.
        """

    def running_sums(self) -> Callable[[], tuple[list, float]]:
        """Copies what grows from an epoch's beginning, without waiting for a device.

        Returns:
            A function that reads the copies: the sums of `SharedSums.summed_variables`, as arrays,
            then the sum of the gradients' norms and the number of updates; and the learning rate of
            the next one.
        """

    def compilation_message(self) -> str:
        """What to tell after an epoch that mostly compiled; empty otherwise."""
        return ""

    def count_updates(self, tokens: float, updates: int):
        """Notes how many tokens the updates of an epoch were made from."""
        self.tokens_per_update = tokens / max(1, updates)

    @abstractmethod
    def describe(self) -> StepDescription:
        """What `explain` shows of it."""

    def description(
        self, layers, why_layers, compiling, guard, skipped, processes=None
    ) -> StepDescription:
        """The description with what is the same on every backend."""
        why_logits = self.why_logits()
        return StepDescription(
            self.accumulation,
            self.micro_batch_size,
            self.tokens_per_update,
            why_logits,
            not why_logits and bool(self.why_logits(sample_weight=True)),
            layers,
            why_layers,
            compiling,
            guard,
            skipped,
            processes,
        )

    @abstractmethod
    def state_dict(self) -> dict:
        """All that an update to come depends on, apart from the model's and optimizer's variables:
        the window of accumulated gradients, the epoch's sums, the counts of skipped updates, what
        was decided about compiling. Where several processes train, all of them call this, and it
        is the state of all together."""

    @abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` returned."""

    # The optimizer's accumulation

    def take_over_accumulation(self):
        """The step accumulates; the optimizer sees one gradient an update."""
        self._inner.gradient_accumulation_steps = None

    def give_back_accumulation(self):
        """The optimizer gets its setting back, to be saved or used elsewhere."""
        self._inner.gradient_accumulation_steps = (
            self.accumulation if self.accumulation > 1 else None
        )

    @property
    def adds_gradients(self) -> bool:
        """Whether an update may have the gradients of several passes."""
        return self.accumulation > 1 or self.micro_batch_size is not None

    @property
    def sums_gradients(self) -> bool:
        """Whether passes bring the gradients of sums, which the update divides by its tokens."""
        return self.adds_gradients and self.loss.reduction == "mean"
