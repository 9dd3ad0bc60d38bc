"""Runs that can be killed at a given point, and what is compared of them."""

import os
import random
import signal
import zlib

import keras
import numpy as np

from keras_llm import callbacks, losses, metrics, models, optimizers, schedules
from keras_llm.backend.host import to_numpy
from keras_llm.checkpoints import files
from keras_llm.checkpoints.random_states import random_states
from keras_llm.checkpoints.state_tree import pack
from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.data_loader import DataLoader

VOCAB, PAD, LENGTH, ROWS, BATCH, EPOCHS = 37, 0, 8, 42, 4, 3
STEPS = -(-ROWS // BATCH)
RNG = np.random.default_rng(3)
X = RNG.integers(1, VOCAB, (ROWS, LENGTH)).astype("int32")
Y = RNG.integers(1, VOCAB, (ROWS, LENGTH)).astype("int32")
# Rows with as few tokens as one: a mean of means would show.
Y[np.arange(LENGTH) > np.arange(ROWS)[:, None] % LENGTH] = PAD

# What each run is made of, but for what all have.
RUNS = {
    "accumulation": {"accumulation": 3},
    "adafactor": {"optimizer": "adafactor", "accumulation": 2},
    # Due at an epoch's last batch: written after its validation.
    "micro_batches": {"micro_batch_size": 3, "every_steps": 11},
    "arrays": {"data": "arrays", "watchers": True, "every_steps": None},
    "averages": {"use_ema": True, "ema_overwrite_frequency": 7},
    "loss_scale": {"scaled": True, "accumulation": 2},
    "transformers": {"model": "transformers", "accumulation": 2},
    "loss_of_keras": {"loss": "keras", "data": "arrays"},
    "workers": {"workers": 2},
}


class Rows:
    """A dataset for `DataLoader`."""

    fixed_length = True

    def __len__(self):
        return ROWS

    def __getitems__(self, rows):
        return X[rows], Y[rows]

    def fingerprint(self):
        return {"tokens": "those of this file"}


def gpt2():
    import transformers

    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2,
            attn_pdrop=0.2, embd_pdrop=0.2, resid_pdrop=0.2,
        )
    )  # fmt: skip


def compiled(of):
    """The model of a run."""
    if of.get("model") == "transformers":
        model = models.from_transformers(gpt2(), shift_labels=False)
    else:
        model = models.CausalTransformer(VOCAB, 16, 1, 2, max_length=LENGTH, dropout=0.2)
    rate = schedules.WarmupCosineDecay(1e-2, warmup_steps=2, total_steps=40)
    if of.get("watchers"):
        rate = 1e-2
    options = {
        "gradient_accumulation_steps": of.get("accumulation"),
        **{key: of[key] for key in ("use_ema", "ema_overwrite_frequency") if key in of},
    }
    if of.get("optimizer") == "adafactor":
        optimizer = optimizers.Adafactor(
            None, relative_step=True, scale_parameter=True, warmup_init=True, **options
        )
    else:
        optimizer = optimizers.AdamW(rate, weight_decay=0.1, global_clipnorm=1.0, **options)
    if of.get("scaled"):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**8, dynamic_growth_steps=3)
    if of.get("loss") == "keras":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD)
        model.compile(optimizer, loss)
        return model
    model.compile(
        optimizer,
        losses.MaskedSparseCategoricalCrossentropy(PAD, label_smoothing=0.1),
        metrics=[metrics.Perplexity(PAD), metrics.MaskedTokenAccuracy(ignore_index=PAD)],
        micro_batch_size=of.get("micro_batch_size"),
    )
    return model


class Stateless(keras.callbacks.Callback):
    """A callback that a checkpoint has nothing of."""

    reads_logs_when_they_are_computed = True

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Trace(Stateless):
    """The sums of the metrics after each step, and on PyTorch what each step has read."""

    def __init__(self):
        super().__init__()
        self.sums, self.read = {}, {}

    def on_train_begin(self, logs=None):
        step = self.model.step
        if keras.backend.backend() != "torch" or step is None:
            return
        train_batch = step.train_batch

        def traced(batch):
            ids = keras.tree.flatten(batch)[0]
            self.read[self.model.run.position.steps] = zlib.crc32(to_numpy(ids).tobytes())
            return train_batch(batch)

        step.train_batch = traced

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        values = [to_numpy(v).tobytes() for v in self.model.metrics_variables]
        self.sums[self.model.run.position.steps] = values


class KillingPoint(Stateless):
    """Calls `die` at the `number`th time that `where` is reached.

    Args:
        where: One of `PLACES`.
        number: Counted from 0.
        die: Raises, or ends the process.
    """

    PLACES = ("step", "batch", "next_batch", "write", "marker", "epoch_end", "validation", "epoch")

    def __init__(self, where, number, die):
        super().__init__()
        self.where, self.left, self.die = where, number, die

    def reach(self, place):
        if place == self.where:
            self.left -= 1
            if self.left < 0:
                self.die()

    def on_train_begin(self, logs=None):
        inner = self.model.optimizer.apply

        def apply(*arguments, **options):
            self.reach("step")
            return inner(*arguments, **options)

        if keras.backend.backend() == "torch":
            self.model.optimizer.apply = apply

    def on_train_batch_begin(self, batch, logs=None):
        if batch:
            self.reach("next_batch")

    def on_train_batch_end(self, batch, logs=None):
        self.reach("batch")

    def on_test_batch_begin(self, batch, logs=None):
        self.reach("validation")

    def on_epoch_begin(self, epoch, logs=None):
        self.reach("epoch")

    def on_epoch_end(self, epoch, logs=None):
        self.reach("epoch_end")

    def __enter__(self):
        self.write_bytes, self.fsync = files.write_bytes, os.fsync

        def write_bytes(path, content):
            if path.name == files.MARKER:
                self.reach("marker")
            return self.write_bytes(path, content)

        def fsync(descriptor):
            self.reach("write")
            return self.fsync(descriptor)

        files.write_bytes, os.fsync = write_bytes, fsync
        return self

    def __exit__(self, *error):
        files.write_bytes, os.fsync = self.write_bytes, self.fsync


def fit(name, seed, extra):
    """Trains a run of `RUNS`, and returns what is compared."""
    of = RUNS[name]
    keras.utils.set_random_seed(seed)
    model, trace = compiled(of), Trace()
    watchers = []
    if of.get("watchers"):
        watchers = [
            keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=9.0, cooldown=1),
        ]
    if of.get("data") == "arrays":
        batches = {"x": X, "y": Y, "batch_size": BATCH}
    else:
        order = BatchOrder(ROWS, BATCH, shuffle=True, seed=5)
        batches = {"x": DataLoader(Rows(), order, num_workers=of.get("workers", 0))}
    history = model.fit(
        **batches,
        epochs=EPOCHS,
        validation_data=(X[:9], Y[:9]),
        verbose=0,
        callbacks=[*watchers, trace, *extra],
    )
    timed = ("per_second", "peak_memory", "seconds", "mfu")

    def untimed(logs):
        return {k: v for k, v in logs.items() if not any(word in k for word in timed)}

    return {
        "weights": [to_numpy(v) for v in model.variables],
        "optimizer": [to_numpy(v) for v in model.optimizer.variables],
        "history": {"epoch": history.epoch, **untimed(history.history)},
        "steps": [untimed(point) for point in history.steps],
        "tokens_per_update": None if model.step is None else model.step.tokens_per_update,
        "callbacks": [
            {k: v for k, v in vars(c).items() if isinstance(v, int | float | list)}
            for c in watchers
        ],
        "random": pack(random_states()),
        "sums": trace.sums,
        "read": trace.read,
    }


def checkpoint(name, folder):
    """The callback under test."""
    every = RUNS[name].get("every_steps", 4)
    return callbacks.TrainingCheckpoint(folder, every_steps=every)


def killed(name, folder, where, number, seed):
    """Trains until the process is killed."""

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with KillingPoint(where, number, die) as point:
        fit(name, seed, [point, checkpoint(name, folder)])


def kill_each(jobs):
    """Runs `killed` with each of the arguments in a process of its own; returns how they ended.

    They are forked from a process that has trained nothing.
    """
    endings = []
    for job in jobs:
        process = os.fork()
        if process == 0:
            killed(*job)
            os._exit(0)
        endings.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    return endings


def disturb(seed):
    """What another process would have as random states."""
    random.seed(seed)
    np.random.seed(seed)
    keras.utils.set_random_seed(seed)


def differences(whole, part):
    """What is not equal to the last bit in a run that was interrupted; of steps, those it made."""
    found = []
    for key in whole:
        expected, mine = whole[key], part[key]
        if key in ("sums", "read"):
            found += [(key, step) for step in mine if mine[step] != expected[step]][:1]
            if expected and max(mine, default=STEPS * EPOCHS) < max(expected):
                found.append((key, "too few"))
            continue
        try:
            np.testing.assert_equal(mine, expected)
        except AssertionError as error:
            found.append((key, str(error)[:300]))
    return found
