"""Metrics and logs of a `LanguageModel`: their names, their tokens, who reads them and when."""

import warnings

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models

# Where the step is not what is tested: TensorFlow would trace it for each model.
EAGERLY = keras.backend.backend() == "tensorflow"
VOCAB = 9
RNG = np.random.default_rng(0)
X = RNG.integers(0, VOCAB, (8, 5))
Y = np.where(RNG.random((8, 5)) < 0.3, 0, RNG.integers(1, VOCAB, (8, 5)))
WEIGHTS = RNG.random((8, 5)).astype("float32")


def build(*args, loss=None, rate=0.0, **arguments):
    keras.utils.set_random_seed(0)
    model = models.LanguageModel(keras.layers.Embedding(VOCAB, 4), keras.layers.Dense(VOCAB))
    model(X)
    loss = loss or losses.MaskedSparseCategoricalCrossentropy(0)
    model.compile(keras.optimizers.SGD(rate), loss, *args, **arguments)
    return model


def nll_and_logits(model):
    logits = keras.ops.convert_to_numpy(model(X)).astype("float64")
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, Y[..., None], -1)[..., 0]
    return nll, logits


def evaluate(model, **arguments):
    return model.evaluate(X, Y, verbose=0, return_dict=True, **arguments)


def test_two_metrics_of_one_kind_are_two_columns():
    model = build(metrics=[metrics.MaskedTokenAccuracy(), metrics.MaskedTokenAccuracy(top_k=5)])
    _, logits = nll_and_logits(model)
    best, counts = np.argsort(-logits, axis=-1), Y != 0
    hits = {k: (best[..., :k] == Y[..., None]).any(-1)[counts].mean() for k in (1, 5)}
    logs = evaluate(model)
    assert logs["masked_token_accuracy"] == pytest.approx(hits[1])
    assert logs["masked_token_accuracy_top_5"] == pytest.approx(hits[5])
    assert len(model.test_on_batch(X, Y)) == 3


def test_two_metrics_of_one_name_are_two_columns():
    perplexity = metrics.Perplexity
    with pytest.warns(UserWarning, match="count different tokens"):
        model = build(metrics=[perplexity(), perplexity(-100)], weighted_metrics=[perplexity()])
    nll, _ = nll_and_logits(model)
    counts = Y != 0
    want = {
        "perplexity": np.exp(nll[counts].mean()),
        # One that the loss's sums cannot serve is Keras's.
        "perplexity_1": np.exp(nll.mean()),
        "weighted_perplexity": np.exp(np.average(nll, weights=WEIGHTS * counts)),
    }
    logs = evaluate(model, sample_weight=WEIGHTS)
    got = {logs["perplexity"], logs["perplexity_1"]}
    assert sorted(got) == pytest.approx(sorted([want["perplexity"], want["perplexity_1"]]))
    model = build(metrics=[perplexity(), perplexity()], weighted_metrics=[perplexity()])
    want["perplexity_1"] = want["perplexity"]
    logs = evaluate(model, sample_weight=WEIGHTS)
    assert {name: logs[name] for name in want} == pytest.approx(want, rel=1e-5)
    assert len(model.test_on_batch(X, Y, sample_weight=WEIGHTS)) == 4


class Own(metrics.TokenMetric):
    """A metric with an `update_state` of its own: the largest loss of a token."""

    def __init__(self, name="own", **kwargs):
        super().__init__(name=name, **kwargs)
        self.largest = self.add_variable((), "zeros", name="largest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        nll = losses.MaskedSparseCategoricalCrossentropy(0, reduction="none")(y_true, y_pred)
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(nll)))

    def result(self):
        return keras.ops.convert_to_tensor(self.largest)


class Sums(metrics.TokenMetric):
    """A metric of sums: nats by token, twice."""

    def numerator_and_denominator(self, statistics):
        return 2 * statistics.nll, statistics.tokens


class PerToken(metrics.TokenMetric):
    """A metric of each token: the share of odd labels, among those with a nll of at most 2.2."""

    def per_token(self, labels, nll, vocab_size):
        sure = keras.ops.cast(nll <= 2.2, nll.dtype)
        return keras.ops.cast(labels % 2, nll.dtype) * sure, sure


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_of_ones_own(weighted):
    made = [Own(), Sums(name="sums"), PerToken(name="per_token")]
    model = build(**{"weighted_metrics" if weighted else "metrics": made})
    nll, _ = nll_and_logits(model)
    weights = (Y != 0) * (WEIGHTS if weighted else 1.0)
    logs = evaluate(model, **({"sample_weight": WEIGHTS} if weighted else {}))
    sure = weights * (nll <= 2.2)
    assert logs["own"] == pytest.approx(nll[Y != 0].max(), rel=1e-5)
    assert logs["sums"] == pytest.approx(2 * np.average(nll, weights=weights), rel=1e-5)
    assert logs["per_token"] == pytest.approx((sure * (Y % 2)).sum() / sure.sum(), rel=1e-5)
    model.compile("sgd", model.loss, metrics=made[1:])
    assert not model.step.why_logits()


class OwnStep(models.LanguageModel):
    """A step and metrics of one's own, as in Keras's guides."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.tracker]

    def test_step(self, data):
        ids, labels = data
        loss = torch.nn.functional.cross_entropy(self(ids).mT, labels, ignore_index=0)
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


@pytest.mark.torch_only
def test_what_a_step_of_ones_own_tracks_is_logged():
    model = OwnStep(keras.layers.Embedding(VOCAB, 4), keras.layers.Dense(VOCAB))
    model(X)
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(0))
    nll, _ = nll_and_logits(model)
    batches = [nll[i : i + 4][Y[i : i + 4] != 0].mean() for i in (0, 4)]
    assert evaluate(model, batch_size=4) == pytest.approx({"loss": np.mean(batches)}, rel=1e-6)


@pytest.mark.backend_free
def test_a_metric_that_defines_nothing_or_the_wrong_thing_is_told():
    with pytest.raises(TypeError, match=r"must define numerator_and_denominator.*per_token"):
        type("Nothing", (metrics.TokenMetric,), {"update_from": None})()
    wrong = type("Wrong", (Sums,), {"numerator_and_denominator": lambda self, s: s.nll})
    with pytest.raises(TypeError, match=r"Wrong\.numerator_and_denominator must return a pair"):
        wrong().update_state(Y, np.zeros((*Y.shape, VOCAB), "float32"))


def test_a_metric_takes_the_tokens_of_the_loss_unless_told():
    accuracy, told = metrics.MaskedTokenAccuracy(), metrics.Perplexity(-100)
    assert accuracy.ignore_index == -100
    with pytest.warns(UserWarning, match="count different tokens"):
        model = build(metrics=[accuracy, told])
    assert (accuracy.ignore_index, told.ignore_index) == (0, -100)
    assert accuracy.get_config()["ignore_index"] is None
    again = metrics.MaskedTokenAccuracy.from_config(accuracy.get_config())
    assert again.ignore_index == -100
    probabilities = losses.MaskedSparseCategoricalCrossentropy(3, from_logits=False)
    with pytest.warns(UserWarning, match="returns logits"):
        build(loss=probabilities, metrics=[accuracy])
    assert (accuracy.ignore_index, accuracy.from_logits) == (3, False)
    assert model.loss.ignore_index == 0


class Known(keras.callbacks.Callback):
    """Sets the number that a monitor sees."""

    def __init__(self, name, values):
        super().__init__()
        self.name, self.values = name, list(values)

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


@pytest.mark.parametrize(
    ("metric", "values", "epochs"),
    [
        (metrics.Perplexity(), [9.0, 8.0, 8.5, 9.0, 9.5], 4),
        (metrics.MaskedTokenAccuracy(), [0.1, 0.2, 0.15, 0.1, 0.05], 4),
        (metrics.MaskedTokenAccuracy(5), [0.1, 0.2, 0.3, 0.4, 0.5], 5),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.sampled(5)
def test_early_stopping_knows_what_is_better(metric, values, epochs, plain):
    name = f"val_{metric.name}"
    stop = keras.callbacks.EarlyStopping(name, patience=2)
    reduce = keras.callbacks.ReduceLROnPlateau(name, patience=1)
    if plain:
        model = keras.Sequential([keras.layers.Embedding(VOCAB, 4), keras.layers.Dense(VOCAB)])
        loss = losses.MaskedSparseCategoricalCrossentropy()
        model.compile("sgd", loss, metrics=[metric], run_eagerly=EAGERLY)
    else:
        model = build(metrics=[metric], run_eagerly=EAGERLY)
    history = model.fit(
        X,
        Y,
        epochs=5,
        verbose=0,
        validation_data=(X, Y),
        callbacks=[Known(name, values), stop, reduce],
    )
    assert len(history.history["loss"]) == epochs


class Evaluates(keras.callbacks.Callback):
    """Evaluates, and tests a batch, in the middle of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.seen = self.model.evaluate(X[:2], Y[:2], verbose=0, return_dict=True)["loss"]
            self.model.test_on_batch(X[:1], Y[:1])

    def on_epoch_begin(self, epoch, logs=None):
        self.model.evaluate(X[:3], Y[:3], verbose=0)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.sampled(2)
def test_an_evaluation_inside_of_an_epoch_leaves_its_logs_and_its_window_alone(steps):
    results = []
    for callbacks in ([], [Evaluates()]):
        model = build(metrics=[metrics.Perplexity()])
        model.compile(
            keras.optimizers.SGD(0.5, gradient_accumulation_steps=steps),
            model.loss,
            metrics=[metrics.Perplexity()],
        )
        history = model.fit(
            X, Y, batch_size=2, epochs=2, shuffle=False, verbose=0, callbacks=callbacks
        ).history
        results.append((history["loss"], history["perplexity"], model.get_weights()[0]))
    for plain, disturbed in zip(*results, strict=True):
        np.testing.assert_allclose(disturbed, plain, rtol=1e-6)
    alone = build()
    alone.set_weights(model.get_weights())
    assert callbacks[0].seen > 0


def test_utilisation_with_logits_and_without(monkeypatch):
    from keras_llm.training import training_logs

    monkeypatch.setattr(training_logs.backend, "peak_flops", lambda dtype: 1e12)
    for made in ([metrics.Perplexity()], ["accuracy"]):
        model = models.CausalTransformer(VOCAB, 8, 1, 2, max_length=8)
        loss = losses.MaskedSparseCategoricalCrossentropy(-1)
        model.compile("sgd", loss, metrics=made, run_eagerly=EAGERLY)
        history = model.fit(X, Y, verbose=0).history
        want = history["tokens_per_second"][0] * model.flops_per_token(5) / 1e12
        assert history["mfu"][0] == pytest.approx(want, rel=1e-6)


@pytest.mark.torch_only
def test_processes_that_meet_after_compile_are_refused(monkeypatch):
    distributed = torch.distributed
    model = build()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    model.train_on_batch(X, Y)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    calls = [lambda: model.train_on_batch(X, Y), lambda: model.test_on_batch(X, Y)]
    for call in (*calls, lambda: model.fit(X, Y, verbose=0)):
        with pytest.raises(RuntimeError, match="a group of 2 processes, made after compile"):
            call()


@pytest.mark.torch_only
def test_a_loss_of_keras_is_refused_under_several_processes(monkeypatch):
    model = models.CausalTransformer(VOCAB, 8, 1, 2, max_length=8)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"needs a loss of keras_llm.*2 processes"):
        model.train_on_batch(X, Y)


@pytest.mark.torch_only
def test_a_distribution_is_refused(monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: object())
    with pytest.raises(RuntimeError, match=r"torchrun.*set_distribution"):
        build()


@pytest.mark.parametrize("how", ["accumulation", "micro-batches", "whole"])
@pytest.mark.not_jax  # XLA has no float16 attention on a CPU
@pytest.mark.sampled(2)
@pytest.mark.quick(2)
def test_no_update_of_float16_is_lost_to_sums(how):
    # A batch of 512 tokens: a sum of their losses, times the loss scale, is beyond float16.
    x, y = RNG.integers(1, VOCAB, (8, 64)), RNG.integers(1, VOCAB, (8, 64))
    weights = []
    for dtype in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(0)
        model = models.CausalTransformer(VOCAB, 16, 1, 2, max_length=64, dtype=dtype)
        steps, rows = {"accumulation": (2, None), "micro-batches": (None, 2)}.get(how, (None, None))
        model.compile(
            keras.optimizers.SGD(0.5, gradient_accumulation_steps=steps),
            losses.MaskedSparseCategoricalCrossentropy(0),
            micro_batch_size=rows,
        )
        start = model.get_weights()
        model.fit(x, y, batch_size=4 if steps else 8, shuffle=False, verbose=0)
        weights.append([a - b for a, b in zip(model.get_weights(), start, strict=True)])
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    for narrow, wide in zip(weights[1], weights[0], strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=0.1, atol=2e-3)
    assert max(np.abs(w).max() for w in weights[1]) > 1e-3


@pytest.mark.backend_free
def test_nothing_that_a_model_does_warns_of_deprecation():
    model = build(metrics=[metrics.Perplexity()])
    causal = models.CausalTransformer(VOCAB, 8, 1, 2, max_length=8)
    with warnings.catch_warnings():
        # The suite ignores one of them, which Keras raises in its own predict.
        warnings.simplefilter("error", DeprecationWarning)
        model.fit(X, Y, verbose=0, validation_data=(X, Y))
        model.fit(X.tolist(), Y.tolist(), class_weight={1: 2.0}, verbose=0)
        model.evaluate(X, Y, verbose=0)
        model.train_on_batch(X, Y)
        model.test_on_batch(X, Y)
        causal.generate([[1, 2], [3, 4]], max_new_tokens=2)
