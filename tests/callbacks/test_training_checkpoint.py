"""What a user sees of a checkpoint: when it is written, what goes wrong, and what is told."""

import errno
import os
import shutil
import signal
import time
import warnings

import keras
import numpy as np
import pytest

from keras_llm import callbacks, losses, metrics, models, optimizers
from keras_llm.callbacks import CheckpointWarning, TrainingCheckpoint
from keras_llm.callbacks.save_schedule import SaveSchedule
from keras_llm.checkpoints import CheckpointFolder, FolderInUseError, files
from keras_llm.checkpoints.background import BackgroundWriter

pytestmark = pytest.mark.backend_free

VOCAB = 13
RNG = np.random.default_rng(0)
X, Y = RNG.integers(1, VOCAB, (20, 5)), RNG.integers(1, VOCAB, (20, 5))


def compiled(d_model=8, learning_rate=1e-2, optimizer=None, **options):
    model = models.LanguageModel(keras.layers.Embedding(VOCAB, d_model), keras.layers.Dense(VOCAB))
    model(X)
    optimizer = optimizer or optimizers.AdamW(learning_rate, **options)
    loss = losses.MaskedSparseCategoricalCrossentropy(0)
    model.compile(optimizer, loss, metrics=[metrics.MaskedTokenAccuracy(ignore_index=0)])
    return model


def fit(folder, *others, model=None, x=X, y=Y, batch_size=2, epochs=1, every_steps=3, **options):
    """Trains 10 steps an epoch; returns the model and the history."""
    kept = {k: options.pop(k) for k in ("keep", "monitor", "mode", "every_minutes") if k in options}
    checkpoint = TrainingCheckpoint(folder, every_steps, **kept)
    model = model or compiled()
    options = {"batch_size": batch_size, "epochs": epochs, "verbose": 0, **options}
    return model, model.fit(x, y, callbacks=[*others, checkpoint], **options)


def steps_in(folder):
    """The checkpoints as `(steps, epoch)`, the newest first."""
    names = CheckpointFolder(folder, 2).names()
    return [tuple(map(int, name.split("_")[1::2])) for name in names]


@pytest.fixture(autouse=True)
def writing_takes_no_time(monkeypatch):
    """Each checkpoint is written at its step: a slow disk would leave some out."""
    monkeypatch.setattr(BackgroundWriter, "is_busy", lambda self: False)


class At(keras.callbacks.Callback):
    """Calls a function after a step."""

    def __init__(self, step, function):
        super().__init__()
        self.step, self.function = step, function

    def on_train_batch_end(self, batch, logs=None):
        if self.model.run.position.steps == self.step:
            self.function()


class Killed(BaseException):
    pass


def kill():
    raise Killed


# When


def test_when_it_is_written(tmp_path):
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(steps_in(tmp_path))
    )
    fit(tmp_path, watch, keep=3)
    assert steps_in(tmp_path) == [(10, 1), (9, 0), (6, 0)]
    assert seen[0] == []
    assert sorted(os.listdir(tmp_path / "step_000000009_epoch_0000")) == [
        "complete", "manifest.json", "state.json", "tensors.safetensors",
    ]  # fmt: skip


def test_without_an_interval_it_is_written_after_each_epoch(tmp_path):
    fit(tmp_path, every_steps=None, epochs=3)
    assert steps_in(tmp_path) == [(30, 3), (20, 2)]


def test_a_slow_disk_leaves_some_out_and_nothing_waits(tmp_path, monkeypatch):
    busy = iter([True] * 5 + [False] * 9)
    monkeypatch.setattr(BackgroundWriter, "is_busy", lambda self: next(busy))
    fit(tmp_path, keep=9)
    # Asked when one is due: after the steps 3 to 7, and then 8.
    assert steps_in(tmp_path) == [(10, 1), (9, 0), (8, 0)]


def test_by_minutes(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    schedule = SaveSchedule(None, 2, None)
    schedule.begin(0, None)
    clock[0] += 119
    assert not schedule.is_due(5, epoch_ends=True)
    clock[0] += 1
    assert schedule.is_due(5, epoch_ends=False)
    schedule.note_save(5)
    assert not schedule.is_due(6, epoch_ends=True)


@pytest.mark.parametrize(
    ("mode", "name", "values", "best"),
    [
        ("auto", "val_loss", [3, 1, 2, float("nan")], 1),
        ("max", "val_loss", [3, 1, 4, 2], 2),
        ("auto", "val_acc", [0.1, 0.3, 0.2], 1),
    ],
)
def test_the_best_is_found(mode, name, values, best):
    schedule = SaveSchedule(None, None, name)
    schedule.begin(0, None)
    for step, value in enumerate(values):
        schedule.look({name: value})
        schedule.is_better(mode, str(step))
        assert not schedule.is_better(mode, "no new value")
    assert schedule.best == {"value": values[best], "name": str(best)}


def test_the_best_is_kept(tmp_path):
    class Values(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = [3.0, 1.0, 2.0, 2.5, 2.6][epoch]

    fit(tmp_path, Values(), every_steps=1000, epochs=5, keep=1, monitor="val_loss")
    assert steps_in(tmp_path) == [(50, 5), (20, 2)]
    _, history = fit(tmp_path, Values(), every_steps=1000, epochs=5, keep=1, monitor="val_loss")
    assert history.history["val_loss"] == [3.0, 1.0, 2.0, 2.5, 2.6]


def test_an_evaluation_between_epochs_is_monitored(tmp_path):
    evaluation = callbacks.Evaluation((X, Y), every_steps=4)
    model = compiled(learning_rate=0.0)
    fit(tmp_path, evaluation, model=model, every_steps=1000, keep=1, monitor="val_loss")
    # Weights that do not move have their best value when it is measured first.
    assert steps_in(tmp_path) == [(10, 1), (4, 0)]


# To the end


def test_a_run_that_has_ended_returns_its_history(tmp_path, capsys):
    model, history = fit(tmp_path, epochs=2)
    keras.utils.set_random_seed(5)
    again, same = fit(tmp_path, epochs=2, verbose=2)
    assert same.history == history.history and same.epoch == [0, 1]
    assert same.steps == history.steps
    assert "Nothing is left to train after" in capsys.readouterr().out
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    _, longer = fit(tmp_path, epochs=3, verbose=2)
    assert longer.epoch == [0, 1, 2] and longer.history["loss"][:2] == history.history["loss"]
    assert "Continuing" in capsys.readouterr().out


def test_a_run_that_was_stopped_early_has_ended(tmp_path):
    def stop():
        return keras.callbacks.EarlyStopping("loss", patience=0, min_delta=99.0)

    _, history = fit(tmp_path, stop(), epochs=9)
    _, again = fit(tmp_path, stop(), epochs=9)
    assert again.epoch == history.epoch == [0, 1]


# Faults


def test_a_full_disk_is_told_and_tried_again(tmp_path, monkeypatch):
    write = files.write_tensors

    def full(path, arrays):
        if "step_000000003" in str(path) or "step_000000006" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, arrays)

    monkeypatch.setattr(files, "write_tensors", full)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        model, _ = fit(tmp_path)
    texts = [str(w.message) for w in told if w.category is CheckpointWarning]
    assert len(texts) == 2
    assert "at step 3" in texts[0] and "No space left on device" in texts[0]
    assert "at step 6" in texts[1] and "Training goes on" in texts[1]
    assert int(model.optimizer.iterations) == 10
    assert steps_in(tmp_path) == [(10, 1), (9, 0)]


def test_the_last_good_one_outlives_a_full_disk(tmp_path, monkeypatch):
    write = files.write_tensors

    def full(path, arrays):
        if "step_000000003" not in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, arrays)

    monkeypatch.setattr(files, "write_tensors", full)
    with pytest.warns(CheckpointWarning, match="last good one .*step_000000003"):
        fit(tmp_path, keep=1)
    assert steps_in(tmp_path) == [(3, 0)]


def test_a_folder_that_is_removed_is_made_again(tmp_path):
    folder = tmp_path / "run"
    fit(folder, At(4, lambda: (time.sleep(0.3), shutil.rmtree(folder))))
    assert steps_in(folder) == [(10, 1), (9, 0)]


def test_a_folder_that_cannot_be_written_is_told_and_read(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        fit(tmp_path, At(8, kill))

    def read_only(self):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self.path))

    monkeypatch.setattr(CheckpointFolder, "open", read_only)
    with pytest.warns(CheckpointWarning) as told:
        model, history = fit(tmp_path)
    assert "Read-only file system" in str(told[0].message)
    assert int(model.optimizer.iterations) == 10 and len(history.epoch) == 1
    assert steps_in(tmp_path) == [(6, 0), (3, 0)]


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, At(8, kill))
    newest = tmp_path / "step_000000006_epoch_0000"
    (newest / "tensors.safetensors").write_bytes(b"")
    first = []
    with pytest.warns(
        CheckpointWarning, match=r"step_000000006.*0 bytes.*step_000000003.* is used"
    ):
        fit(tmp_path, keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: first.append(batch)))  # fmt: skip
    assert first[0] == 3


def test_a_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch):
    clock = [2e9]
    monkeypatch.setattr(time, "time", lambda: clock.append(clock[-1] - 1000) or clock[-1])
    fit(tmp_path)
    assert steps_in(tmp_path) == [(10, 1), (9, 0)]


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    refused = []

    def second():
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()}") as error:
            fit(tmp_path)
        refused.append(error)

    fit(tmp_path, At(4, second))
    assert len(refused) == 1
    fit(tmp_path, epochs=2)


# What has changed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"d_model": 16}}, r"\[13, 8\] of float32 before, \[13, 16\] of float32 now"),
        ({"model": {"optimizer": "sgd"}}, "optimizer: AdamW before, SGD now"),
        ({"model": {"gradient_accumulation_steps": 2}}, "batches of an update: 1 before, 2 now"),
        ({"batch_size": 4}, "batches of an epoch: 10 before, 5 now"),
        ({"x": X[:, :4], "y": Y[:, :4]}, r"input 0: \[20, 5\].* before, \[20, 4\]"),
        ({"x": X[::-1].copy()}, "input 0: .*rows .* before"),
        ({"y": Y[::-1].copy()}, "input 1: .*rows .* before"),
        ({"sample_weight": np.ones(20)}, r"input 2: none before, \[20\]"),
    ],
)
@pytest.mark.quick(5)
def test_another_run_is_refused_and_what_changed_is_named(tmp_path, change, named):
    with pytest.raises(Killed):
        fit(tmp_path, At(8, kill))
    model = compiled(**change.get("model", {}))
    before = model.get_weights()
    with pytest.raises(ValueError, match=named):
        fit(tmp_path, **change | {"model": model})
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert steps_in(tmp_path) == [(6, 0), (3, 0)]
    fit(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rate": 1e-3}, "optimizer learning_rate: 0.00999.* before, 0.001.* now"),
        ({"weight_decay": 0.3}, "optimizer weight_decay: .* before, 0.3 now"),
    ],
)
@pytest.mark.quick(2)
def test_another_setting_is_told(tmp_path, options, named):
    with pytest.raises(Killed):
        fit(tmp_path, At(8, kill))
    with pytest.warns(CheckpointWarning, match=named):
        fit(tmp_path, model=compiled(**options))


def test_another_version_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_llm.checkpoints.fingerprint.version", lambda name: "1.0")
    with pytest.raises(Killed):
        fit(tmp_path, At(8, kill))
    monkeypatch.undo()
    with pytest.warns(CheckpointWarning, match=r"keras: 1\.0 before, .* now"):
        fit(tmp_path)


def test_a_callback_that_is_missing_is_told(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, keras.callbacks.EarlyStopping("loss"), At(18, kill), epochs=2)
    with pytest.warns(CheckpointWarning, match="had more callbacks: .*EarlyStopping"):
        fit(tmp_path, epochs=2)


# Signals


def send(*numbers):
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.quick(2)
def test_a_signal_ends_the_run_after_its_step(tmp_path, number, capsys):
    before = signal.getsignal(number)
    error = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(error) as raised:
        fit(tmp_path, At(5, send(number)))
    assert signal.getsignal(number) is before
    assert steps_in(tmp_path) == [(5, 0), (3, 0)]
    told = str(raised.value) if number == signal.SIGINT else capsys.readouterr().err
    assert "Stopped after step 5. Run the same program again to continue" in told
    assert number == signal.SIGINT or raised.value.code == 143
    model, _ = fit(tmp_path)
    assert int(model.optimizer.iterations) == 10


@pytest.fixture
def heeded():
    """Ctrl-C does what it does in a terminal: a process in the background begins without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_a_second_signal_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, At(5, send(signal.SIGINT, signal.SIGINT)))
    assert steps_in(tmp_path) == [(3, 0)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_the_validation_ends_the_run_after_the_epoch(tmp_path):
    validation = keras.callbacks.LambdaCallback()
    validation.on_test_begin = lambda logs=None: send(signal.SIGINT)()
    with pytest.raises(KeyboardInterrupt, match="Stopped after step 10"):
        fit(tmp_path, validation, epochs=3, validation_data=(X, Y))
    assert steps_in(tmp_path)[0] == (10, 1)


def test_a_signal_on_a_full_disk_says_that_nothing_was_written(tmp_path, monkeypatch):
    def full(path, arrays):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_tensors", full)
    with (
        pytest.warns(CheckpointWarning, match="No space left"),
        pytest.raises(KeyboardInterrupt, match="without a checkpoint"),
    ):
        fit(tmp_path, At(5, send(signal.SIGINT)))


# Wrong calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_steps": 0}, "every_steps must be a positive integer"),
        ({"every_minutes": 0}, r"every_minutes must be a number in \(0, inf\)"),
        ({"keep": 0}, "keep must be a positive integer"),
        ({"mode": "best"}, "mode must be one of"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainingCheckpoint(tmp_path, **arguments)


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="directory must be a folder"):
        TrainingCheckpoint(tmp_path / "file")


def test_a_plain_model_has_no_run(tmp_path):
    model = keras.Sequential([keras.layers.Embedding(VOCAB, VOCAB)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="needs the fit of a keras_llm model"):
        model.fit(X, Y, verbose=0, callbacks=[TrainingCheckpoint(tmp_path)])


@pytest.mark.every_backend
@pytest.mark.parametrize("validation", [None, (X[:4], Y[:4])])
def test_a_run_that_was_stopped_after_an_epochs_last_batch_has_this_epoch(tmp_path, validation):
    options = {"epochs": 3, "validation_data": validation, "shuffle": False}
    _, whole = fit(tmp_path / "whole", **options)
    keras.utils.set_random_seed(0)  # as before that run
    model = compiled()
    stop = At(20, lambda: model.run.stop(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", stop, model=model, **options)
    _, again = fit(tmp_path / "run", **options)
    assert set(again.history) == set(whole.history)
    for name in ("loss", "masked_token_accuracy", "val_loss")[: 3 if validation else 2]:
        assert again.history[name] == whole.history[name]
