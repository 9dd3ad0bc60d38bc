"""Validation every few steps, and what reads the log points."""

import json

import keras
import numpy as np
import pytest

from keras_llm import callbacks, data, losses, metrics, models, optimizers

VOCAB, PAD = 31, 0
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (48, 7))
Y = np.where(RNG.random((48, 7)) < 0.3, PAD, RNG.integers(1, VOCAB, (48, 7)))
VALID = X[:9], Y[:9]


def build(learning_rate=1e-2):
    keras.utils.set_random_seed(1)
    model = models.LanguageModel(keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB))
    model(X)
    model.compile(
        optimizer=optimizers.AdamW(learning_rate),
        loss=losses.MaskedSparseCategoricalCrossentropy(PAD),
        metrics=[metrics.Perplexity(PAD)],
    )
    return model


def test_the_model_is_evaluated_as_if_training_had_ended_there():
    evaluation = callbacks.Evaluation(VALID, every_steps=5)
    history = build().fit(X, Y, batch_size=4, shuffle=False, verbose=0, callbacks=[evaluation])
    found = {p["step"]: p["val_loss"] for p in history.steps if "val_loss" in p}
    assert list(found) == [5, 10]
    model = build()
    for step, loss in found.items():
        rows = slice(4 * (step - 5), 4 * step)
        model.fit(X[rows], Y[rows], batch_size=4, shuffle=False, verbose=0)
        assert loss == pytest.approx(model.evaluate(*VALID, verbose=0, return_dict=True)["loss"])
    # The epoch's own sums go on as if nothing had happened.
    alone = build().fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    assert history.history["loss"] == alone.history["loss"]
    assert history.history["val_loss"] == [found[10]]


@pytest.mark.torch_only
def test_each_of_several_data_sets_has_numbers_of_its_own(tmp_path):
    sets = {"news": VALID, "web": (X[9:30], Y[9:30])}
    evaluations = [callbacks.Evaluation(each, 6, name=name) for name, each in sets.items()]
    report = callbacks.TrainingReport(tmp_path / "report.html")
    model = build()
    run = [*evaluations, report]
    history = model.fit(X, Y, batch_size=4, verbose=0, callbacks=run)
    for name, (ids, labels) in sets.items():
        logits = keras.ops.convert_to_numpy(model(ids)).astype("float64")
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll = -np.take_along_axis(log_p, labels[..., None], -1)[labels != PAD].mean()
        for last in (history.steps[-1], {k: v[-1] for k, v in history.history.items()}):
            assert last[f"val_{name}_loss"] == pytest.approx(nll, rel=1e-6)
            assert last[f"val_{name}_perplexity"] == pytest.approx(np.exp(nll), rel=1e-6)
    assert "val_loss" not in history.history


@pytest.mark.torch_only
@pytest.mark.parametrize("metric", ["loss", "perplexity", "masked_token_accuracy"])
@pytest.mark.parametrize("is_inside", [True, False])
def test_a_callback_stops_by_the_numbers_of_a_named_evaluation(metric, is_inside):
    """Nothing is learnt, so the second evaluation is not better than the first."""
    monitor = f"val_{metric}" if is_inside else f"val_news_{metric}"
    stop = keras.callbacks.EarlyStopping(monitor, patience=1)
    inside = [stop] if is_inside else []
    evaluation = callbacks.Evaluation(VALID, 6, callbacks=inside, name="news")
    model = build()
    every = [metrics.Perplexity(), metrics.MaskedTokenAccuracy()]
    model.compile(keras.optimizers.SGD(0.0), model.loss, metrics=every)
    run = [evaluation] if is_inside else [evaluation, stop]
    history = model.fit(X, Y, batch_size=4, epochs=5, verbose=0, callbacks=run)
    assert len(history.epoch) == (1 if is_inside else 2)
    assert bool(stop.monitor_op(2.0, 1.0)) == (metric == "masked_token_accuracy")


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["", 3])
def test_a_name_is_a_string(name):
    with pytest.raises(ValueError, match="name must be a string that is not empty"):
        callbacks.Evaluation(VALID, 6, name=name)


@pytest.mark.torch_only
def test_an_evaluation_between_log_points_is_a_point_with_all_numbers():
    """Of what was trained since the point before; else its callbacks had no loss to monitor."""
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(logs["loss"]))
    evaluation = callbacks.Evaluation(VALID, every_steps=4, callbacks=[look])
    model = build(0.0)
    history = model.fit(X, Y, batch_size=4, shuffle=False, verbose=0, callbacks=[evaluation])
    assert [point["step"] for point in history.steps] == [4, 8, 10, 12]
    rows = np.cumsum([0, 16, 16, 8, 8])
    for point, first, end in zip(history.steps, rows, rows[1:], strict=False):
        part = model.evaluate(X[first:end], Y[first:end], verbose=0, return_dict=True)
        assert point["loss"] == pytest.approx(part["loss"], rel=1e-6)
        assert point["tokens"] == (Y[:end] != PAD).sum()
    assert seen == [p["loss"] for p in history.steps if "val_loss" in p]


@pytest.mark.torch_only
@pytest.mark.parametrize("every_steps", [2, 10])
def test_keras_callbacks_act_after_each_evaluation(tmp_path, every_steps):
    stop = keras.callbacks.EarlyStopping("val_perplexity", patience=1)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", monitor="val_loss")
    # Every 10 steps, too, where there is a log point anyway.
    evaluation = callbacks.Evaluation(VALID, every_steps=every_steps, callbacks=[stop, save])
    model = build(0.0)
    model.fit(X, Y, batch_size=1, verbose=0, callbacks=[evaluation])
    # Without learning the second evaluation is no better than the first.
    assert stop.mode == "min"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.keras", "2.keras"]
    assert int(model.optimizer.iterations) == 2 * every_steps


@pytest.mark.torch_only
def test_a_callback_of_the_epoch_sees_the_last_evaluation():
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda _, logs: seen.append(logs["val_loss"])
    )
    evaluation = callbacks.Evaluation(VALID, every_steps=5)
    history = build().fit(X, Y, batch_size=4, verbose=0, callbacks=[evaluation, look])
    assert seen == [[p["val_loss"] for p in history.steps if "val_loss" in p][-1]]


@pytest.mark.torch_only
def test_prompts_are_continued():
    texts = ["a b c d e f g"] * 40
    tokenizer = data.train_tokenizer(texts, unit="word")
    model = models.CausalTransformer(tokenizer.vocab_size, 16, 1, 2, max_length=16)
    model.compile(optimizers.AdamW(3e-2), losses.MaskedSparseCategoricalCrossentropy(PAD))
    train = data.causal_lm(texts, tokenizer, 8, 4, pack=False)
    evaluation = callbacks.Evaluation(train, 10, "a b", tokenizer, max_new_tokens=3)
    history = model.fit(train, steps=40, verbose=0, callbacks=[evaluation])
    samples = [p["samples"] for p in history.steps if "samples" in p]
    assert len(samples) == 4
    assert samples[-1] == {"a b": "a b c d e"}


@pytest.mark.backend_free
def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(ValueError, match="every_steps must be a positive integer"):
        callbacks.Evaluation(VALID, every_steps=0)
    with pytest.raises(ValueError, match=r"data must be \(x, y\).*a tuple of 0"):
        callbacks.Evaluation((), every_steps=1)
    with pytest.raises(ValueError, match="prompts need a tokenizer"):
        callbacks.Evaluation(VALID, every_steps=1, prompts="a")


@pytest.mark.torch_only
def test_json_lines_has_a_line_for_each_point_and_goes_on_after_an_interruption(tmp_path):
    path = tmp_path / "logs" / "run.jsonl"
    lines = callbacks.JSONLines(path)
    history = build().fit(X, Y, batch_size=1, verbose=0, validation_data=VALID, callbacks=[lines])
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in written] == [10, 20, 30, 40, 48, 48]
    points = [p for p in history.steps if p["step"] < 48]
    assert written[:4] == points
    assert written[4] | written[5] == history.steps[-1]

    class GoOn(keras.callbacks.Callback):
        def begin_run(self, run):
            state = run.state_dict()
            run.load_state_dict(state | {"position": {"epoch": 0, "batch": 24, "steps": 24}})

    with path.open("a") as file:
        file.write('{"step": 2')  # half of a line
    build().fit(X, Y, batch_size=1, verbose=0, callbacks=[lines, GoOn()])
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [10, 20, 30, 40, 48]


@pytest.mark.torch_only
def test_tensorboard_has_the_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = build().fit(
        X, Y, batch_size=2, verbose=0, callbacks=[callbacks.TensorBoard(tmp_path)]
    )
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    curve = [(e.step, e.value) for e in events.Scalars("loss")]
    assert curve == [(p["step"], pytest.approx(p["loss"])) for p in history.steps]
