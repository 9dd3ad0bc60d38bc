"""A `fit` that goes by steps or tokens, its log points, and how it goes on in the middle."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import data, losses, metrics, models, optimizers
from keras_llm.training.fit_length import batches_in
from keras_llm.training.run import Run

VOCAB, PAD = 31, 0
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (50, 7))
Y = np.where(RNG.random((50, 7)) < 0.3, PAD, RNG.integers(1, VOCAB, (50, 7)))
COUNTS = Y != PAD


def build(learning_rate=0.0, **arguments):
    keras.utils.set_random_seed(1)
    model = models.LanguageModel(keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB))
    model(X)
    model.compile(
        optimizer=optimizers.AdamW(learning_rate, **arguments),
        loss=losses.MaskedSparseCategoricalCrossentropy(PAD),
        metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy()],
    )
    return model


def nll_of_tokens(model):
    """The nll of each label, in NumPy, and whether the best guess is right."""
    logits = keras.ops.convert_to_numpy(model(X)).astype("float64")
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, Y[..., None], -1)[..., 0], logits.argmax(-1) == Y


def test_log_points_are_of_the_steps_since_the_last_one():
    """Weights that do not move: each window's numbers follow from the logits of its rows."""
    model = build()
    history = model.fit(X, Y, batch_size=2, steps=60, shuffle=False, verbose=0)
    assert [p["step"] for p in history.steps] == [10, 20, 25, 30, 40, 50, 60]
    assert [p["epoch"] for p in history.steps] == [0, 0, 0, 1, 1, 1, 2]
    nll, right = nll_of_tokens(model)
    rows = [slice(0, 20), slice(20, 40), slice(40, 50), slice(0, 10), slice(10, 30), slice(30, 50)]
    total = 0
    for point, those in zip(history.steps, [*rows, slice(0, 20)], strict=True):
        counts = COUNTS[those]
        total += counts.sum()
        loss = nll[those][counts].mean()
        assert point["loss"] == pytest.approx(loss, rel=1e-5)
        assert point["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
        assert point["masked_token_accuracy"] == pytest.approx(right[those][counts].mean())
        assert point["tokens"] == total
        assert point["gradient_norm"] > 0
        assert point["learning_rate"] == 0.0
    seconds = [p["seconds"] for p in history.steps]
    assert seconds == sorted(seconds)
    assert history.epoch == [0, 1, 2]


def test_steps_is_as_many_updates_as_it_says_and_the_same_as_epochs():
    by_steps, by_epochs = build(1e-2), build(1e-2)
    history = by_steps.fit(X, Y, batch_size=10, steps=15, shuffle=False, verbose=0)
    other = by_epochs.fit(X, Y, batch_size=10, epochs=3, shuffle=False, verbose=0)
    assert int(by_steps.optimizer.iterations) == 15
    assert history.history["loss"] == other.history["loss"]
    by_steps.fit(X, Y, batch_size=10, steps=7, verbose=0)
    assert int(by_steps.optimizer.iterations) == 22


@pytest.mark.not_torch
def test_batches_that_the_last_call_of_an_epoch_did_not_have_are_not_counted():
    """Of five batches in calls of two, Keras counts six: before, 10 steps were 9."""
    model = build(1e-2)
    model.compile(model.optimizer, model.loss, steps_per_execution=2)
    history = model.fit(X, Y, batch_size=10, steps=10, verbose=0)
    assert int(model.optimizer.iterations) == 10
    assert [point["step"] for point in history.steps] == [5, 10]
    assert history.steps[-1]["tokens"] == 2 * COUNTS.sum()


def test_validation_is_a_point_of_the_epochs_last_step():
    model = build(1e-2)
    some = (X[:9], Y[:9])
    history = model.fit(X, Y, batch_size=2, steps=30, validation_data=some, verbose=0)
    found = {p["step"]: p["val_loss"] for p in history.steps if "val_loss" in p}
    assert list(found) == [25, 30]
    assert list(found.values()) == history.history["val_loss"]


@pytest.mark.torch_only
def test_tokens_ends_at_the_first_log_point_with_so_many():
    model = build()
    history = model.fit(X, Y, batch_size=2, tokens=300, shuffle=False, verbose=0)
    per_step = COUNTS.reshape(25, -1).sum(1)
    reached = np.concatenate([per_step, per_step]).cumsum()
    assert reached[19] < 300 <= reached[29]
    assert history.steps[-1]["step"] == 30
    assert history.steps[-1]["tokens"] == reached[29]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer"),
        ({"steps": 2.5}, "steps must be a positive integer"),
        ({"tokens": -1}, "tokens must be a positive integer"),
        ({"steps": 5, "epochs": 3}, "give one of them. Received: epochs=3, steps=5"),
        ({"steps": 5, "tokens": 3}, "give one of them. Received: steps=5, tokens=3"),
        ({"max_steps": 5}, "steps=..."),
    ],
)
def test_what_does_not_say_when_to_end_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build().fit(X, Y, verbose=0, **arguments)


@pytest.mark.torch_only
def test_tokens_needs_a_loss_that_counts_them_and_steps_needs_none():
    model = build()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="tokens needs a loss of keras_llm"):
        model.fit(X, Y, tokens=100, verbose=0)
    history = model.fit(X, Y, batch_size=10, steps=7, verbose=0)
    assert int(model.optimizer.iterations) == 7
    assert history.steps == []


@pytest.mark.torch_only
def test_data_that_ends_before_the_steps_do_is_told():
    model = build()
    batches = ((X[i : i + 10], Y[i : i + 10]) for i in range(0, 50, 10))
    with (
        pytest.warns(UserWarning, match="ended after 5 of 12 steps: a generator is read once"),
        pytest.warns(UserWarning, match="ran out of data"),
    ):
        model.fit(batches, steps=12, verbose=0)
    assert int(model.optimizer.iterations) == 5


class Resume(keras.callbacks.Callback):
    """What a checkpoint does, in memory: takes the state at a step, or goes on from one."""

    def __init__(self, at=None, state=None):
        super().__init__()
        self.at, self.state, self.batches = at, state, []

    def begin_run(self, run):
        if self.state is None:
            return
        weights, step, position = self.state
        self.model.optimizer.build(self.model.trainable_variables)
        pairs = zip((*self.model.variables, *self.model.optimizer.variables), weights, strict=True)
        for variable, value in pairs:
            variable.assign(value)
        run.load_state_dict(position)
        self.step_state = step

    def on_epoch_begin(self, epoch, logs=None):
        if self.state is not None and not self.batches:
            self.model.step.load_state_dict(self.step_state)

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)
        # On JAX, to ask for the model gives its variables the state of the step.
        run = self.model.run
        if run.position.steps == self.at:
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            variables = (*self.model.variables, *self.model.optimizer.variables)
            values = [keras.ops.convert_to_numpy(v) for v in variables]
            self.state = values, self.model.step.state_dict(), run.state_dict()
            run.stop(InterruptedError("here"))


@pytest.mark.parametrize("kind", ["arrays", "loader"])
@pytest.mark.sampled(2)
@pytest.mark.quick(2)
def test_a_run_goes_on_in_the_middle_of_an_epoch(kind):
    """In the middle of a window of accumulated gradients; the same numbers as without a stop."""

    def batches():
        if kind == "arrays":
            return {"x": X, "y": Y, "batch_size": 10, "shuffle": False}
        texts = [" ".join("abc"[i % 3] for i in row) for row in X]
        tokenizer = data.train_tokenizer(texts, unit="word")
        return {"x": data.causal_lm(texts, tokenizer, 7, 8, shuffle=True, seed=3)}

    def fit(callback=None):
        model = build(1e-2, gradient_accumulation_steps=2)
        history = model.fit(
            **batches(), steps=19, verbose=0, callbacks=[callback] if callback else None
        )
        return model, history

    whole, history = fit()
    stopping = Resume(at={"arrays": 8, "loader": 13}[kind])
    with pytest.raises(InterruptedError, match="here"):
        fit(stopping)
    going_on = Resume(state=stopping.state)
    model, again = fit(going_on)
    first = going_on.batches[0]
    assert first > 0
    assert going_on.batches[:2] == [first, first + 1]
    for ours, theirs in zip(model.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
        )
    assert again.history["loss"] == history.history["loss"]
    by_clock = {"seconds", "tokens_per_second"}
    points = [
        [{k: v for k, v in p.items() if k not in by_clock} for p in h.steps]
        for h in (again, history)
    ]
    assert points[0] == points[1]


@pytest.mark.torch_only
def test_a_run_that_is_over_trains_nothing_and_shows_its_history():
    class Over(keras.callbacks.Callback):
        def begin_run(self, run):
            run.load_state_dict(state)

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.run = self.model.run

    keep = Keep()
    first = build(1e-2).fit(X, Y, epochs=2, verbose=0, callbacks=[keep])
    state = keep.run.state_dict()
    model = build(1e-2)
    assert model.fit(X, Y, epochs=2, verbose=0, callbacks=[Over()]).history == first.history
    assert int(model.optimizer.iterations) == 0
    assert model.fit(X, Y, epochs=3, verbose=0, callbacks=[Over()]).epoch == [0, 1, 2]
    assert model.run is None


@pytest.mark.backend_free
def test_hooks_of_a_run_are_called_also_after_an_exception():
    called = []

    class Hooks(keras.callbacks.Callback):
        def begin_run(self, run):
            assert isinstance(run, Run)
            called.append("begin")

        def on_train_batch_end(self, batch, logs=None):
            raise InterruptedError

        def end_run(self):
            called.append("end")

    class Fails(keras.callbacks.Callback):
        def end_run(self):
            called.append("fails")
            raise OSError

    with pytest.raises(OSError) as caught:
        build().fit(X, Y, verbose=0, callbacks=[Fails(), Hooks(), Fails()])
    assert isinstance(caught.value.__context__, OSError | InterruptedError)
    assert sorted(called) == ["begin", "end", "fails", "fails"]


def test_validation_data_takes_the_place_of_a_split():
    """As in Keras; before, the run counted the batches that the split would have left."""
    model, positions = build(), []
    seen = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: positions.append(model.run.position.steps)
    )
    options = {"batch_size": 10, "validation_split": 0.5, "validation_data": (X, Y)}
    model.fit(X, Y, verbose=0, callbacks=[seen], **options)
    assert positions == [1, 2, 3, 4, 5]


@pytest.mark.backend_free
def test_the_batches_of_an_epoch_are_those_that_keras_takes():
    class Three(keras.utils.PyDataset):
        def __len__(self):
            return 3

    assert batches_in(({"a": X}, Y, None), 8, None, 0.0) == 7
    assert batches_in((X, Y, None), None, None, 0.5) == 1
    assert batches_in((X, Y, None), 8, 5, 0.0) == 5
    assert batches_in((Three(), None, None), None, None, 0.0) == 3
    assert batches_in((iter([]), None, None), None, None, 0.0) is None
    stream = torch.utils.data.DataLoader(Stream())
    assert batches_in((stream, None, None), None, None, 0.0) is None


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(3))
