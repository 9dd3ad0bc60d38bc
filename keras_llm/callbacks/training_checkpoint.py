"""A run that is killed at any instant goes on as if nothing had happened."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import keras

from keras_llm.arguments import check_one_of, check_positive_int
from keras_llm.callbacks.continuation import Continuation
from keras_llm.callbacks.save_schedule import SaveSchedule
from keras_llm.callbacks.stop_signals import StopSignals
from keras_llm.checkpoints import CheckpointFolder, FolderInUseError
from keras_llm.checkpoints.background import BackgroundWriter
from keras_llm.checkpoints.callback_states import CallbackStates
from keras_llm.checkpoints.fingerprint import fingerprint
from keras_llm.checkpoints.model_state import model_state
from keras_llm.checkpoints.of_first import found_by_first
from keras_llm.checkpoints.random_states import random_states
from keras_llm.checkpoints.state_tree import pack
from keras_llm.distribution import world


class CheckpointWarning(UserWarning):
    """Warns of a checkpoint that could not be written or read, or is of a run that was other."""


class TrainingCheckpoint(keras.callbacks.Callback):
    """Writes checkpoints of a whole run; the same `fit` call, run again, continues from the newest.

    A checkpoint holds the weights, the optimizer, gradients that wait for an update, sums of
    metrics, random states, the position in the data, the history, and what the other callbacks
    remember. So the run that goes on is the run that was killed, to the last bit: in the middle of
    an epoch, with dropout, accumulation and micro-batches.

        model.fit(train, epochs=3, callbacks=[callbacks.TrainingCheckpoint("run", every_steps=500)])

    On disk a checkpoint is a folder of safetensors and JSON with a checksum of each file; see
    `CheckpointFolder`. It is copied between two steps and written while training goes on. Newer
    ones are whole on the disk before older ones are deleted. A checkpoint that is damaged is named
    in a warning, and the one before it is used. Where one cannot be written (the disk is full, the
    folder is gone), training goes on, a `CheckpointWarning` says so, and it is tried again when the
    next one is due.

    Where several processes train, the first reads and writes, for all of them. The run may go on
    with another number of processes: then sums are rounded otherwise, and a warning says so.

    Ctrl-C and SIGTERM end the run after the step that runs, with a checkpoint; a second one ends it
    at once. A run that has ended has a checkpoint too: the same call then returns its history.

    Args:
        directory: The folder; one for each run. It is made if it is missing.
        every_steps: Batches between two checkpoints.
        every_minutes: Minutes between two checkpoints; with `every_steps`, whichever is earlier.
            With neither, there is one after each epoch.
        keep: How many of the newest are kept.
        monitor: A number in the logs, such as `"val_loss"`. The checkpoint at its best value is
            written when it is reached, and kept too.
        mode: Which value is better: `"min"`, `"max"`, or `"auto"`, which asks the metric.

    Raises:
        ValueError: an argument is out of range; `directory` is a file; or, in `fit`, the directory
            holds a run with another model, optimizer, data or batch size.
        FolderInUseError: in `fit`, another run writes into the directory.
        DamagedCheckpointError: in `fit`, there are checkpoints, and none can be read.

    Example:

    >>> import tempfile
    >>> import numpy as np
    >>> from keras_llm import callbacks, losses, models
    >>> directory = tempfile.mkdtemp()
    >>> def run():
    ...     model = models.CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    ...     model.compile("adam", losses.MaskedSparseCategoricalCrossentropy())
    ...     checkpoint = callbacks.TrainingCheckpoint(directory)
    ...     ids = np.array([[1, 2, 3]])
    ...     return model.fit(ids, ids, epochs=2, verbose=0, callbacks=[checkpoint])
    >>> first, again = run(), run()
    >>> again.history["loss"] == first.history["loss"]
    True
    """

    # It reads them where somebody else has them computed.
    reads_logs_when_they_are_computed = True

    def __init__(
        self,
        directory: str | os.PathLike,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        keep: int = 2,
        monitor: str | None = None,
        mode: str = "auto",
    ):
        super().__init__()
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(
                f"directory must be a folder, or not there yet. Received: directory={directory!r}"
            )
        self._schedule = SaveSchedule(every_steps, every_minutes, monitor)
        self.keep = check_positive_int(keep, "keep")
        self.monitor, self.mode = monitor, check_one_of(mode, "mode", ["auto", "min", "max"])
        self._run = None

    # What `fit` calls: see `Run`

    def begin_run(self, run) -> None:
        """Takes the directory, and the newest good checkpoint in it."""
        folder = CheckpointFolder(self.directory, self.keep)
        now = fingerprint(run.model, run.data, run.length.batches)
        try:
            if world().is_first:
                folder.open()
        except FolderInUseError:
            raise
        except OSError as error:
            self._warn(f"{self.directory} cannot be written: {error}. Training goes on without.")
        self._run, self._folder, self._fingerprint = run, folder, now
        self._writer, self._signals = BackgroundWriter(), StopSignals(run.stop)
        self._states = CallbackStates([c for c in run.callbacks if c not in (self, run.history)])
        self._continuation = Continuation(run)
        self._epoch_random = random_states()
        found = found_by_first(folder.newest)
        if found.bad:
            instead = f"{found.name} is used." if found.name else "Training begins anew."
            self._warn(f"A checkpoint is not whole. {' '.join(found.bad)} {instead}")
        if found.name is not None:
            self._continue(found)
        best = None if found.name is None else found.state["best"]
        self._schedule.begin(run.position.steps, best)

    def end_run(self) -> None:
        """Waits for what is being written; gives the directory and the signals back."""
        if self._run is None:
            return
        self._signals.restore()
        try:
            self._writer.wait()
            self._report()
        finally:
            self._folder.close()
            self._run = None

    def on_log(self, step, logs) -> None:
        """Notes the monitored number of an evaluation."""
        if str(self.monitor).startswith("val_"):
            self._schedule.look(logs)

    # Keras's hooks

    def on_train_begin(self, logs=None):
        """Gives the other callbacks their states, after their own `on_train_begin`."""
        if self._run is None:
            raise ValueError(
                "TrainingCheckpoint needs the fit of a keras_llm model. "
                f"Received: a {type(self.model).__name__}"
            )
        self._states.training_begins()
        left = self._continuation.on_train_begin(self._states)
        if left:
            self._warn(f"The run that continues had more callbacks: {', '.join(left)}.")
        self._signals.install()

    def on_epoch_begin(self, epoch, logs=None):
        """Goes back to the random state with which the epoch began: data may be shuffled by it."""
        self._continuation.on_epoch_begin()
        self._epoch_random = random_states()

    def on_train_batch_begin(self, batch, logs=None):
        """Goes to the random state of the checkpoint, now that data has been taken."""
        self._continuation.end()

    def on_train_batch_end(self, batch, logs=None):
        """Writes a checkpoint where one is due, and the last one is on the disk."""
        self._report()
        # After an epoch's last batch its end comes next, and is a better place to go on from.
        is_last = self._run.position.batch == self._run.length.batches
        if self._run.stopping is not None:
            self._save_and_tell()
        elif not is_last and self._is_wanted(epoch_ends=False):
            self._save()

    def on_test_begin(self, logs=None):
        """As before a batch, if all batches of the epoch were trained before."""
        self._continuation.end()

    def on_epoch_end(self, epoch, logs=None):
        """Writes a checkpoint where one is due; the last epoch's comes with `on_train_end`."""
        self._continuation.end()
        self._report()
        self._schedule.look(logs)
        is_wanted = self._is_wanted(epoch_ends=True)
        if self._run.stopping is not None:
            self._save_and_tell()
        elif is_wanted and not (self._run.is_over() or self.model.stop_training):
            self._save()

    def on_train_end(self, logs=None):
        """Writes the checkpoint of the finished run."""
        self._save()
        self._writer.wait()
        self._report()

    def _continue(self, found):
        run, where = self._run, self.directory / found.name
        changed = self._continuation.begin(found.state, self._fingerprint, where)
        if changed:
            self._warn(changed)
        epoch, batch = run.position[:2]
        what = "Nothing is left to train after" if run.is_over() else "Continuing"
        self._say(f"{what} {where} (epoch {epoch + 1}, batch {batch}).")

    # To write

    def _first_says(self, is_wanted) -> bool:
        """What the first process wants: its clock and its disk decide."""
        return bool(world().of_first([float(is_wanted)])[0])

    def _is_wanted(self, epoch_ends: bool) -> bool:
        is_better = self._schedule.is_better(self.mode, self._name())
        is_due = self._schedule.is_due(self._run.position.steps, epoch_ends)
        return self._first_says(
            is_better or (is_due and (epoch_ends or not self._writer.is_busy()))
        )

    def _name(self):
        return self._folder.name(self._run.position.steps, self._run.position.epoch)

    def _save(self):
        """Copies the state, and has it written."""
        self._writer.wait()
        self._report()
        self._schedule.note_save(self._run.position.steps)
        name = self._name()
        if self._first_says(name in self._folder.good):
            return
        step = self.model.step
        with contextlib.nullcontext() if step is None else step.whole():
            state = {
                "fingerprint": self._fingerprint,
                "run": self._run.state_dict(),
                "best": self._schedule.best,
                "callbacks": self._states.state_dict(),
                "model": model_state(self.model),
                "random": {"now": random_states(), "epoch": self._epoch_random},
            }
            if not world().is_first:
                return
            packed, arrays = pack(state)
        best = [] if self._schedule.best is None else [self._schedule.best["name"]]
        self._writer.start(self._folder.write, name, packed, arrays, best)

    def _save_and_tell(self):
        """Writes the checkpoint of a run that was told to stop, and says how to continue."""
        self._save()
        if not world().is_first:
            return
        self._writer.wait()
        steps = self._run.position.steps
        if self._name() in self._folder.good:
            text = (
                f"Stopped after step {steps:,}. Run the same program again to continue from "
                f"{self.directory / self._name()}."
            )
        else:
            text = f"Stopped after step {steps:,}, without a checkpoint of it."
        self._report()
        error = self._run.stopping
        if isinstance(error, KeyboardInterrupt) and not error.args:
            error.args = (text,)
        else:
            print(text, file=sys.stderr)

    def _report(self):
        """Warns where the last checkpoint could not be written."""
        error = self._writer.take_error()
        if error is None:
            return
        if not isinstance(error, OSError):
            raise error
        last = self._folder.good[-1] if self._folder.good else "none"
        self._warn(
            f"No checkpoint was written at step {self._schedule.saved_at:,}: {error}. Training "
            f"goes on, and tries again with the next one. The last good one in {self.directory}: "
            f"{last}."
        )

    def _warn(self, text):
        warnings.warn(text, CheckpointWarning, stacklevel=3)

    def _say(self, text):
        if self._run.params.get("verbose"):
            print(text)
