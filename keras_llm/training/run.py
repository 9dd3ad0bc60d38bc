"""One call of `fit`: where it is, when it ends, and how it goes on after an interruption."""

import contextlib
import math
import sys
from typing import Any

import keras

from keras_llm.backend.host import to_float
from keras_llm.backend.kept_values import values_kept
from keras_llm.checks.sanity_warning import warn
from keras_llm.distribution import ProcessLostError, world
from keras_llm.training.fit_length import Position
from keras_llm.training.run_history import RunHistory
from keras_llm.training.step_log import StepLog
from keras_llm.training.user_callbacks import (
    acts,
    callback_list,
    check_callbacks,
    is_of_all,
    writes_files,
)


class Run(keras.callbacks.CallbackList):
    """The callbacks of one `fit`, and its position, `model.run` while it runs.

    A run that continues an earlier one starts at the epoch in which that one ended. Keras takes the
    batches of this epoch from its first one on. Batches that are trained already are skipped: no
    step runs and no callback is called. So numbers of batches and the progress bar are right with
    any kind of data. Data that knows its position (`continue_at`) does not read these batches.

    A callback may have three methods that Keras does not know:

        begin_run(run)        before Keras's `fit`: may call `run.load_state_dict(...)`
        on_log(step, logs)    at every log point: see `StepLog`
        end_run()             when `fit` is left, also by an exception

    Callbacks that have `begin_run` act after all others.

    Args:
        model: The model.
        data: What `fit` reads, `(x, y, sample_weight)`; its `x` may `continue_at` a position.
        first: Callbacks of the model, which act before all others.
        callbacks: Those of the user.
        length: The `FitLength`.
        verbose: As of `fit`.
    """

    def __init__(self, model, data, first, callbacks, length, verbose):
        given = callback_list(callbacks)
        self.world = world()
        check_callbacks(model, given)
        # Whether a callback may stop the run after a batch; the same in all processes.
        self._may_stop = acts(given, "on_train_batch_end", "on_batch_end")
        if not self.world.is_first:
            verbose, given = 0, [c for c in given if not writes_files(c) or is_of_all(model, c)]
        late = [callback for callback in given if hasattr(callback, "begin_run")]
        self.log = None if model.step is None else StepLog(model, self.tell)
        self.position, self.length = Position(), length
        self.data, self._x = data, data[0]
        # Batches of the first epoch that an earlier run has trained.
        self._trained_before = 0
        self._is_stopped, self.stopping = False, None
        # What `stop` was called with.
        self._stop = None
        # Where data that knows its position begins: an epoch, and a batch in it.
        self._data_begins = getattr(self._x, "begins_at", None)
        # Whether all batches of the epoch were trained by an earlier run; then the epoch's numbers.
        self._all_before, self._numbers = False, {}
        history = next((c for c in given if isinstance(c, RunHistory)), RunHistory())
        history.follow(self.log)
        others = [c for c in given if c not in late and c is not history]
        self.history = history
        super().__init__(
            [*first, *others, history, *late],
            add_progbar=verbose != 0,
            model=model,
            verbose=verbose,
            # Where nobody knows how many epochs it takes.
            epochs=math.inf if length.epochs == sys.maxsize else length.epochs,
            steps=length.batches,
        )

    # What has been done and what is to come

    @property
    def is_passing(self) -> bool:
        """Whether the next batch was trained before the interruption."""
        return self._trained_before > 0

    def batches_to_come(self) -> int | None:
        """Batches that are not trained yet; None where the data does not tell."""
        return self.length.batches_after(self.position)

    def state_dict(self) -> dict[str, Any]:
        """The position, the history and the log points so far."""
        if self.log is not None:
            self.log.flush()
        return {
            "position": self.position._asdict(),
            # By a callback, such as EarlyStopping: not because all has been trained.
            "is_stopped": bool(self.model.stop_training) and not self.is_over(),
            "history": self.history.state_dict(),
            "log": None if self.log is None else self.log.state_dict(),
        }

    def begin_at(self, epoch: int) -> None:
        """Sets the number of the first epoch; batches of it may have been trained before.

        Args:
            epoch: `initial_epoch` of `fit`.
        """
        self.position = Position(epoch)
        if self._data_begins is not None and self.length.batches == len(self._x):
            data_epoch, batch = self._data_begins
            self.position, self._trained_before = Position(epoch, batch), batch
            self._x.continue_at(data_epoch, batch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where another run was when it returned this; before Keras's `fit` begins."""
        # Data that was read before this fit does not begin at epoch 0.
        first = self.position.epoch
        self.position = Position(**state["position"])
        self._trained_before, self._is_stopped = self.position.batch, state["is_stopped"]
        self.history.load_state_dict(state["history"])
        if self.log is not None:
            self.log.load_state_dict(state["log"])
        if self._data_begins is not None:
            epoch = self._data_begins[0] + self.position.epoch - first
            self._x.continue_at(epoch, self.position.batch)

    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self._is_stopped or self.length.is_reached(self.position, self.tokens)

    @property
    def tokens(self) -> float:
        """The tokens of the log points so far; 0 with a loss of Keras."""
        return 0 if self.log is None else self.log.tokens

    def stop(self, error: BaseException) -> None:
        """Ends the run after this batch, with an error.

        Callbacks still see a batch's end: what writes checkpoints then writes one, since `stopping`
        is no longer None. Where several processes train, all of them end after the same batch.
        """
        self._stop = error
        if self.world.size == 1:
            self.stopping = error

    def record(self, logs: dict[str, float]) -> None:
        """Adds numbers of this step to the log points, such as those of an evaluation."""
        if self.log is not None:
            self.log.make_point(self.position)
            self.log.add(self.position.steps, logs)

    @contextlib.contextmanager
    def metrics_kept(self):
        """Context manager for what a callback calls in the middle of an epoch's sums."""
        if self.log is not None:
            self.log.pause()
        self.model.jax_state_sync()
        with values_kept(self.model.metrics_variables):
            yield

    def tell(self, step: int, logs: dict[str, float]) -> None:
        """Hands new numbers to the callbacks that want them."""
        for callback in self.callbacks:
            if hasattr(callback, "on_log"):
                callback.on_log(step, logs)

    # Keras's hooks

    def begin(self) -> None:
        """Lets callbacks look for what there is to continue."""
        for callback in self.callbacks:
            if hasattr(callback, "begin_run"):
                callback.begin_run(self)

    def place_data(self) -> None:
        """Has data that knows its position go on, in the next `fit`, where this one has ended."""
        if self._data_begins is not None:
            epoch, batch = self._data_begins
            epochs, batch = divmod(batch + self.position.steps, len(self._x))
            self._x.begins_at = epoch + epochs, batch

    def end(self) -> None:
        """Ends what `begin` began, of every callback, even if one of them fails."""
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                if hasattr(callback, "end_run"):
                    stack.callback(callback.end_run)

    def on_epoch_begin(self, epoch, logs=None):
        """Shows the progress bar what is left, where the run ends inside this epoch."""
        if self.length.steps is not None:
            self.set_params(self.params | {"steps": self.length.batches_of_epoch(self.position)})
        self._all_before, self._numbers = self.is_passing, {}
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        """Keras's, for a batch that is to be trained."""
        if not self.is_passing:
            if self.log is not None:
                self.log.go_on()
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        """Keras's, for a batch that was trained; ends the run where it is over."""
        if self.is_passing:
            if batch + 1 >= self._trained_before:
                self._trained_before = 0
                # Then the run was interrupted while its last epoch ended.
                if self.is_over():
                    self.model.stop_training = True
            return
        self._all_before = False
        # With `steps_per_execution` Keras counts batches that an epoch's last call did not have.
        done = min(batch + 1, self.length.batches or math.inf)
        trained = done - self.position.batch
        epoch, _, steps = self.position
        self.position = Position(epoch, done, steps + trained)
        if self.log is not None:
            self.log.count(self.position, trained)
        # Before the callbacks: one that writes checkpoints asks whether the run ends here.
        if self.is_over():
            self.model.stop_training = True
        self.meet_to_stop()
        super().on_train_batch_end(batch, logs)
        if self._may_stop:
            self.meet_to_end()
        if self.stopping is not None:
            raise self.stopping

    def on_test_begin(self, logs=None):
        """Keras's; the epoch's last log point comes before its validation."""
        self.end_batches()
        super().on_test_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        """Keras's; the validation of an epoch belongs to its last step."""
        self.end_batches()
        if logs is not None:
            logs |= {k: v for k, v in self._numbers.items() if k not in logs}
        validation = {k: float(v) for k, v in (logs or {}).items() if k.startswith("val_")}
        self.position = Position(epoch + 1, 0, self.position.steps)
        if validation:
            self.record(validation)
        self.meet_to_stop()
        super().on_epoch_end(epoch, logs)
        self.meet_to_end()
        if self.stopping is not None:
            # No batch may follow that would end the run.
            raise self.stopping
        if self.position.epoch == self.length.epochs and not self.model.stop_training:
            for message in self.length.missed(self.position, self.tokens):
                warn(message)

    def meet_to_stop(self):
        """Stops this process where another one is to stop, by a signal for example."""
        if self.world.size == 1:
            return
        if self._stop is not None:
            self.world.tell(self._stop)
        if self.world.any_of(self._stop is not None):
            self.stopping = self._stop or ProcessLostError(self.world.reason())

    def meet_to_end(self):
        """Ends training after this batch where a callback of another process ends it."""
        if self.world.size > 1:
            self.model.stop_training = self.world.any_of(bool(self.model.stop_training))

    def end_batches(self):
        """Ends the sums of an epoch; may be called more than once."""
        if self.log is not None:
            self.model.step.end_epoch()
            self.log.end_epoch(self.position)
        if self._all_before and not self._numbers:
            # Keras has seen no step, and has no numbers of this epoch.
            self.model.jax_state_sync()
            results = self.model.get_metrics_result()
            self._numbers = {name: to_float(value) for name, value in results.items()}
