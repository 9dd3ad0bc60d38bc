"""What explain says of an update, of the metrics and of how a step runs; and odd models."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm import explain, layers, losses, metrics, models, optimizers, schedules
from keras_llm.training.shared_sums import SharedSums
from tests.explanation.small_models import (
    CROSSENTROPY,
    PAD,
    V,
    X,
    Y,
    causal,
    compiled,
    plain,
    token_metrics,
)

pytestmark = [
    pytest.mark.backend_free,
    # explain is asked about mistakes, too.
    pytest.mark.filterwarnings("ignore::keras_llm.checks.sanity_warning.SanityWarning"),
]
BACKEND = keras.backend.backend()
COUNTED = int((Y != PAD).sum())


def fit_at_once(model, **kwargs):
    """Trains an epoch, and spares TensorFlow the time to trace it."""
    model.run_eagerly = BACKEND == "tensorflow"
    return model.fit(X, Y, verbose=0, **kwargs)


def told(model, section, fact, **kwargs):
    return explain(model, show=False, **kwargs)[section][fact]


# One update


@pytest.mark.parametrize("name", ["global_clipnorm", "clipnorm", "clipvalue"])
def test_clipping(name):
    section = explain(compiled(optimizer=optimizers.AdamW(**{name: 0.5})), show=False)["One update"]
    assert section[name].value == 0.5
    with pytest.raises(KeyError):
        section["clipping"]


def test_no_clipping():
    assert told(compiled(), "One update", "clipping").value is None
    assert "global_clipnorm" in told(compiled(), "One update", "clipping").note
    model = compiled(optimizer=optimizers.Adafactor())
    assert "clip_threshold" in told(model, "One update", "clipping").note


@pytest.mark.every_backend
def test_the_effective_batch_of_a_batch():
    assert told(compiled(), "One update", "effective batch").value is None
    fact = told(compiled(), "One update", "effective batch", batch=(X, Y))
    assert fact.value == COUNTED
    assert fact.note == f"{COUNTED} of {Y.size} in 8 rows count"
    # A weight of 0 is padding; one weight a row is a weight for each of its tokens.
    weights = np.arange(8) % 2
    fact = told(compiled(), "One update", "effective batch", batch=(X, Y, weights))
    assert fact.value == (Y[1::2] != PAD).sum()
    fact = told(compiled(), "One update", "effective batch", batch=[X, ops.convert_to_tensor(Y)])
    assert fact.value == COUNTED


def test_the_effective_batch_of_other_losses():
    model = compiled(plain(), loss=keras.losses.SparseCategoricalCrossentropy(ignore_class=PAD))
    assert told(model, "One update", "effective batch", batch=(X, Y)).value == COUNTED
    model = compiled(plain(), loss="sparse_categorical_crossentropy")
    assert told(model, "One update", "effective batch", batch=(X, Y)).value == Y.size
    teacher = np.zeros((8, 6, V), "float32")
    model = compiled(loss=losses.MaskedKLDivergence(ignore_index=PAD))
    assert told(model, "One update", "effective batch", batch=(X, (teacher, Y))).value == COUNTED
    # Without labels every position counts, once.
    assert told(model, "One update", "effective batch", batch=(X, teacher)).value == Y.size


def test_labels_of_one_byte_are_compared_as_numbers():
    stock = keras.losses.SparseCategoricalCrossentropy(ignore_class=-100)
    labels = np.full(Y.shape, 156, "uint8")  # -100 in one byte
    model = compiled(plain(), loss=stock)
    assert told(model, "One update", "effective batch", batch=(X, labels)).value == Y.size


@pytest.mark.parametrize("batch", [X, (X,), (X, Y, None, None), {"x": X}])
def test_what_is_no_batch_is_refused(batch):
    with pytest.raises(ValueError, match=r"batch must be what fit gets at once.*Received"):
        explain(compiled(), batch=batch, show=False)


@pytest.mark.every_backend
def test_the_effective_batch_is_known_after_fit():
    # Of probabilities: for the pass without logits, JAX would compile for long.
    model = compiled(loss=losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False))
    fit_at_once(model, batch_size=4, validation_data=(X[:4], Y[:4]))
    assert told(model, "One update", "effective batch").value == COUNTED / 2
    model.compile("sgd", CROSSENTROPY)
    assert told(model, "One update", "effective batch").value is None


@pytest.mark.torch_only
def test_accumulated_batches_of_a_model_of_ours():
    rate = schedules.WarmupConstant(1e-3, 0)
    model = compiled(optimizer=optimizers.AdamW(rate, gradient_accumulation_steps=4))
    section = explain(model, batch=(X, Y), show=False)["One update"]
    assert (section["accumulation"].value, section["accumulation"].flag) == (4, "")
    assert section["effective batch"].value == 4 * COUNTED
    model.fit(X, Y, batch_size=2, verbose=0)
    assert told(model, "One update", "effective batch").value == COUNTED


def test_accumulated_batches_of_keras_are_flagged():
    def flag(optimizer):
        return told(compiled(plain(), optimizer=optimizer), "One update", "accumulation").flag

    steps, rate = {"gradient_accumulation_steps": 4}, schedules.WarmupConstant(1e-3, 0)
    assert "means" in flag(keras.optimizers.Adam(1e-3, **steps))
    assert "4 times too fast" in flag(keras.optimizers.Adam(rate, **steps))
    # Ours asks its schedule for updates.
    assert "too fast" not in flag(optimizers.AdamW(rate, **steps))


@pytest.mark.torch_only
def test_micro_batches():
    for size in (None, 4, "auto"):
        model = compiled(micro_batch_size=size)
        assert told(model, "One update", "micro_batch_size").value == size


# Metrics


def test_metrics_of_ours_count_tokens():
    section = explain(compiled(metrics=token_metrics()), show=False)["Metrics"]
    assert [fact.name for fact in section.facts] == ["loss", "perplexity", "masked_token_accuracy"]
    assert section["loss"].value == "exact"
    assert not any(fact.flag for fact in section.facts)
    five = metrics.MaskedTokenAccuracy(top_k=5, ignore_index=PAD)
    section = explain(compiled(weighted_metrics=[five]), show=False)["Metrics"]
    fact = section["masked_token_accuracy_top_5"]
    assert "5 largest" in fact.text and "sample_weight" in fact.note
    in_bytes = metrics.BitsPerByte(np.ones(V, int), ignore_index=PAD)
    assert "bytes" in told(compiled(metrics=[in_bytes]), "Metrics", "bits_per_byte").text


def test_metrics_that_count_other_tokens_are_flagged():
    with pytest.warns(UserWarning, match="count different tokens"):
        model = compiled(metrics=[metrics.Perplexity(3)])
    assert "labels of 3" in told(model, "Metrics", "perplexity").flag
    model = compiled(plain(), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    assert "rows are averaged" in told(model, "Metrics", "accuracy").flag


def test_metrics_of_others():
    class Mine(keras.metrics.Mean):
        """What I count."""

    def distance(y_true, y_pred):
        """How far."""
        return ops.abs(y_true - y_pred)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae", Mine(name="mine"), distance, "accuracy"])
    section = explain(model, show=False)["Metrics"]
    assert "absolute error" in section["mae"].text
    assert section["mine"].text == "What I count"
    assert section["distance"].text == "How far"
    assert not any(fact.flag for fact in section.facts)
    assert section["loss"].value == "mean of batches"


# How it runs


def held(monkeypatch, model):
    """Whether `fit` counts from logits, of a batch as a whole."""
    calls, count = [], SharedSums.count
    monkeypatch.setattr(SharedSums, "count", lambda *args: calls.append(1) or count(*args))
    fit_at_once(model)
    return model.step is None or bool(calls)


class OwnLoss(models.CausalTransformer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


STOCK = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
CASES = {
    "one pass": (lambda: compiled(metrics=token_metrics()), ""),
    "another loss": (lambda: compiled(loss=STOCK), "is not a loss of keras_llm"),
    "a metric": (
        lambda: compiled(metrics=[keras.metrics.SparseCategoricalAccuracy(name="m")]),
        "metrics need them: m",
    ),
    "other tokens": (
        lambda: compiled(metrics=[metrics.Perplexity(3, name="p")]),
        "metrics need them: p",
    ),
    "probabilities": (
        lambda: compiled(loss=losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False)),
        "probabilities",
    ),
    "own loss": (lambda: compiled(OwnLoss(V, 16, 1, 2, max_length=8)), "compute_loss"),
}


@pytest.mark.every_backend
@pytest.mark.parametrize("case", CASES)
@pytest.mark.sampled(2)
def test_logits_are_held_where_it_says_so(case, monkeypatch):
    make, reason = CASES[case]
    model = make()
    fact = told(model, "How it runs", "logits")
    assert reason in fact.note
    assert (fact.value == "whole") == bool(reason)
    assert held(monkeypatch, model) == (fact.value == "whole")
    # Nothing in the answer hangs on whether there has been a fit.
    assert told(model, "How it runs", "logits") == fact


def test_logits_of_other_models():
    section = explain(compiled(plain()), show=False)["How it runs"]
    assert section["logits"].value == "whole"
    assert "LanguageModel" in section["logits"].note
    distilled = compiled(loss=losses.MaskedKLDivergence())
    assert told(distilled, "How it runs", "logits").value == "whole"
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(KeyError):
        told(compiled(classifier, loss="mse"), "How it runs", "logits")


@pytest.mark.torch_only
def test_layers_as_a_graph_and_why_not():
    model = compiled()
    assert told(model, "How it runs", "layers").value == "graph"
    model.fit(X, Y, batch_size=4, verbose=0)
    assert told(model, "How it runs", "layers").value == "graph"
    eager = told(compiled(run_eagerly=True), "How it runs", "layers")
    assert (eager.value, "run_eagerly" in eager.note) == ("eager", True)

    class Mine(keras.layers.Embedding):
        pass

    model = compiled(models.LanguageModel(Mine(V, 8), layers.VocabularyHead(V, 8)))
    model.fit(X, Y, batch_size=4, verbose=0)
    fact = told(model, "How it runs", "layers")
    assert (fact.value, "Mine" in fact.note) == ("eager", True)
    assert told(compiled(plain()), "How it runs", "layers").value == "eager"
    fact = told(compiled(plain(), jit_compile=True), "How it runs", "layers")
    assert fact.value == "torch.compile"


def test_where_documents_end():
    assert told(compiled(causal(document_end_id=2)), "How it runs", "document_end_id").value == 2
    with pytest.raises(KeyError):
        told(compiled(), "How it runs", "document_end_id")


@pytest.mark.every_backend
@pytest.mark.not_torch
def test_layers_of_a_compiled_backend():
    fact = told(compiled(jit_compile=True), "How it runs", "layers")
    assert "XLA" in fact.text + fact.note


@pytest.mark.every_backend
def test_software_device_and_precision():
    section = explain(compiled(causal(dtype="mixed_bfloat16")), show=False)["How it runs"]
    assert section["software"].value["Keras"] == keras.__version__
    assert BACKEND in section["software"].value
    assert section["device"].value[0].startswith(("cpu", "cuda", "gpu"))
    assert section["precision"].value == "mixed_bfloat16"
    assert section["precision"].text == "float32 weights, bfloat16 arithmetic"


@pytest.mark.every_backend
def test_float16_has_a_loss_scale():
    model = compiled(causal(dtype="mixed_float16"), optimizer=optimizers.AdamW())
    explanation = explain(model, show=False)
    assert explanation["How it runs"]["loss scale"].value == 2**15
    # The optimizer is the one inside.
    assert explanation["Optimizer"].subject == "AdamW"
    assert explanation["Optimizer"]["memory"].value == 8.0
    model.optimizer.build(model.trainable_variables)
    model.optimizer.dynamic_scale.assign(4.0)
    assert told(model, "How it runs", "loss scale").value == 4.0
    assert told(model, "Optimizer", "memory").value == 8.0


# Odd models


def test_what_cannot_be_explained():
    with pytest.raises(TypeError, match=r"explain needs a Keras model. Received: Dense"):
        explain(keras.layers.Dense(1))
    with pytest.raises(ValueError, match=r"call model.compile\(.*not compiled"):
        explain(causal())


@pytest.mark.every_backend
def test_a_model_that_is_not_built():
    model = models.LanguageModel(keras.layers.Embedding(V, 8), keras.layers.Dense(V))
    explanation = explain(compiled(model, optimizer=optimizers.AdamW()), show=False)
    assert "not built yet" in explanation.title
    assert explanation["Loss"]["first perplexity"].value == V
    for section, fact in (
        ("Optimizer", "decayed"),
        ("Optimizer", "memory"),
        ("How it runs", "device"),
        ("How it runs", "logits"),
    ):
        assert explanation[section][fact].value is None
        assert "once the model is built" in explanation[section][fact].text
    empty = keras.Sequential([keras.layers.Embedding(V, 8), keras.layers.Dense(V)])
    assert told(compiled(empty), "Loss", "first loss").text == "ln V"


def test_an_encoder_decoder():
    model = models.Seq2SeqTransformer(V, 16, 1, 2, target_vocab_size=17)
    explanation = explain(compiled(model, metrics=token_metrics()), show=False)
    assert explanation["Loss"]["first perplexity"].value == 17
    assert explanation.title.startswith("Seq2SeqTransformer")


def test_frozen_parameters_are_told_apart():
    model = plain()
    model.layers[0].trainable = False
    explanation = explain(compiled(model, optimizer=optimizers.AdamW()), show=False)
    assert f"{V * 8} more are not trained" in explanation.title
    assert not any("embeddings" in path for path in explanation["Optimizer"]["decayed"].value)


def test_several_outputs_have_a_loss_each():
    inputs = keras.Input((4,))
    outputs = {name: keras.layers.Dense(n, name=name)(inputs) for name, n in (("a", 2), ("b", 3))}
    model = keras.Model(inputs, outputs)
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=1)
    model.compile("sgd", {"a": "mse", "b": ignoring}, {"a": 1.0, "b": 2.0}, metrics={"a": ["mae"]})
    explanation = explain(model, show=False)
    assert explanation["Loss of output a"].subject == "mse"
    assert explanation["Loss of output b"]["loss_weights"].value == 2.0
    assert explanation["Loss of output b"]["first perplexity"].value == 3
    assert explanation["Metrics"]["mae"].name == "mae"
    model = keras.Model(inputs, list(outputs.values()))
    model.compile("sgd", ["mse", ignoring])
    assert told(model, "Loss of output 1", "first perplexity").value == 3


def test_without_a_loss_or_an_optimizer():
    model = plain()
    model.compile("sgd")
    assert "add_loss" in told(model, "Loss", "each batch").text
    model.compile(optimizer=None, loss=CROSSENTROPY)
    explanation = explain(model, show=False)
    assert explanation["Optimizer"].subject == "none given"
    assert {"Learning rate", "One update"}.isdisjoint(s.title for s in explanation.sections)


def test_an_optimizer_of_several():
    parts = keras.optimizers.OptimizerMap(keras.optimizers.SGD(momentum=0.9))
    model = compiled(plain(), optimizer=keras.optimizers.MultiOptimizer(parts))
    explanation = explain(model, show=False)
    assert explanation["Optimizer"].subject == "MultiOptimizer"
    fit_at_once(model)
    assert told(model, "Optimizer", "made of").value == ["SGD"]
