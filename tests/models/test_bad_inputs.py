# ruff: noqa: E501  (a table has one line a case)
"""What a stranger may hand to a model by mistake, and the error that it gives.

A batch that is refused changes neither weights nor the optimizer's state nor metrics.
"""

import contextlib

import keras
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from keras_llm import data, losses, metrics, models, optimizers

NAN, INF = float("nan"), float("inf")
CE = losses.MaskedSparseCategoricalCrossentropy
V = 20
X = np.random.default_rng(0).integers(1, V, (4, 6))
WEIGHTS = np.ones((4, 6), "float32")
SKIPPED = "train_on_batch has skipped an update"


def with_one(value):
    ids = X.copy()
    ids[2, 3] = value
    return ids


@pytest.fixture(scope="module")
def model():
    model = models.CausalTransformer(V, 8, 1, 2, max_length=8)
    model.compile(optimizers.AdamW(1e-2), CE(0), metrics=[metrics.Perplexity()], jit_compile=False)
    model.train_on_batch(X, X)
    return model


@pytest.fixture(scope="module")
def sequences():
    return models.Seq2SeqTransformer(V, 8, 1, 2, max_length=8)


def weights(model):
    """The model's variables, and the optimizer's: its slots and the number of its updates."""
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def state(model):
    """Those and the metrics."""
    metrics = [keras.ops.convert_to_numpy(variable).copy() for variable in model.metrics_variables]
    return weights(model) + metrics


# name, (x, y, sample_weight), error, match
BATCHES = [
    ("ids of floats", (X * 1.0, X, None), TypeError, "ids must be integers.*float"),
    ("ids of booleans", (X > 3, X, None), TypeError, "ids must be integers.*bool"),
    ("ids of three axes", (X[..., None], X, None), ValueError, r"ids must be \[batch, length\]"),
    ("too long", (np.ones((4, 9), int), np.ones((4, 9), int), None), ValueError, "ids must be at most max_length=8"),
    ("labels of floats", (X, X * 1.0, None), TypeError, "Labels must be integers.*float"),
    ("labels of another length", (X, X[:, :5], None), ValueError, r"Labels must be integers of shape \(4, 6\)"),
    ("rows of several lengths", ([[1, 2], [3]], [[1, 2], [3]], None), ValueError, r"Rows must be of one length.*\[1, 2\]"),
    ("no rows", (X[:0], X[:0], None), ValueError, r"x must be arrays with at least one row.*\(0, 6\)"),
    ("rows of no token", (X[:, :0], X[:, :0], None), ValueError, "ids must hold at least one token a row"),
    ("a number for ids", (np.int64(3), np.int64(3), None), ValueError, r"x must be arrays.*shape=\(\)"),
    ("text for ids", ("to be", X, None), TypeError, "x must be ids, not text"),
    ("a data set of PyTorch", (TensorDataset(torch.tensor(X), torch.tensor(X)), None, None), TypeError, r"torch.utils.data.DataLoader\(dataset, batch_size=...\)"),
    ("an iterator", (iter([(X, X)]), None, None), TypeError, r"x must be .* such as \(batch for batch in iterator\)"),
    ("no lists", ([], [], None), ValueError, r"x must be arrays.*\[\]"),
    ("ids None", (None, X, None), ValueError, "x must be arrays.*None"),
    ("labels None", (X, None, None), ValueError, r"needs labels: fit\(ids, labels\)"),
    ("labels of a dictionary", (X, {"y": X}, None), TypeError, "Labels must be one array. Received: a dict"),
    ("weight of a number", (X, X, 3.0), TypeError, "sample_weight must be an array"),
    ("weight NaN", (X, X, np.where(X[0, 0] == X, NAN, WEIGHTS)), ValueError, "sample_weight must be finite"),
    ("weight infinite", (X, X, WEIGHTS * INF), ValueError, "sample_weight must be finite"),
    ("weight below 0", (X, X, -WEIGHTS), ValueError, "sample_weight must not be negative"),
]  # fmt: skip


# After a few shapes TensorFlow's graph knows none, and checks of shapes see nothing.
@pytest.mark.not_tensorflow
@pytest.mark.parametrize("entrance", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
@pytest.mark.parametrize(
    ("batch", "error", "match"), [row[1:] for row in BATCHES], ids=[row[0] for row in BATCHES]
)
@pytest.mark.sampled(3)
def test_a_refused_batch_changes_nothing(model, entrance, batch, error, match):
    refused(model, entrance, batch, error, match)


def refused(model, entrance, batch, error, match):
    x, y, sample_weight = batch
    options = {} if "batch" in entrance else {"verbose": 0}
    # Keras begins `fit` and `evaluate` with new metrics; on JAX each of its other calls too.
    kept = state if "batch" in entrance and keras.backend.backend() != "jax" else weights
    before = kept(model)
    with pytest.raises(error, match=match):
        getattr(model, entrance)(x, y, sample_weight=sample_weight, **options)
    for got, want in zip(kept(model), before, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.torch_only
def test_rows_of_hugging_face_are_given_by_columns(model):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"input_ids": X.tolist(), "labels": X.tolist()})
    refused(model, "fit", (rows, None, None), TypeError, r"dataset\['input_ids'\].*a Dataset")
    given = model.evaluate(rows["input_ids"], rows["labels"], verbose=0)
    assert given == model.evaluate(X, X, verbose=0)


# Where values can be seen: on JAX, TensorFlow and a GPU the loss is NaN and weights are spared.
SEEN = [
    ("id beyond the vocabulary", (with_one(V), X, None), ValueError, r"ids must be in \[0, 20\).*Received: 20 at position \(\d, 3\)"),
    ("id below 0", (with_one(-1), X, None), ValueError, r"ids must be in \[0, 20\).*Received: -1"),
    ("label beyond the vocabulary", (X, with_one(V), None), ValueError, r"Labels must be in \[0, 20\).*Received: 20"),
    ("label below 0", (X, with_one(-1), None), ValueError, r"Labels must be in \[0, 20\).*Received: -1"),
    ("ids of text", (X.astype(str), X, None), TypeError, "Arrays must hold numbers"),
    ("ids of objects", (X.astype(object), X, None), TypeError, "Arrays must hold numbers.*object"),
    ("labels of objects", (X, X.astype(object), None), TypeError, "Arrays must hold numbers.*object"),
    ("a list with None", ([[1, None]], [[1, 2]], None), TypeError, "Arrays must hold numbers"),
]  # fmt: skip


@pytest.mark.torch_only
@pytest.mark.parametrize("entrance", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
@pytest.mark.parametrize(
    ("batch", "error", "match"), [row[1:] for row in SEEN], ids=[row[0] for row in SEEN]
)
def test_a_batch_that_can_be_seen(model, entrance, batch, error, match):
    refused(model, entrance, batch, error, match)


# name, arguments of fit, error, match
FITS = [
    ("half an epoch", {"epochs": 1.5}, ValueError, "epochs must be a non-negative integer"),
    ("no rows", {"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
    ("half a row", {"batch_size": 1.5}, ValueError, "batch_size must be a positive integer"),
    ("no steps", {"steps": 0}, ValueError, "steps must be a positive integer"),
    ("steps and tokens", {"steps": 1, "tokens": 1}, ValueError, "give one of them"),
    ("all for validation", {"validation_split": 1.0}, ValueError, r"validation_split must be a number in \[0, 1\)"),
    ("validation by a data set", {"validation_data": TensorDataset(torch.tensor(X))}, TypeError, "validation_data must be a loader"),
    ("class weights of a list", {"class_weight": [1.0]}, TypeError, "class_weight must be a dictionary"),
    ("class weight NaN", {"class_weight": {1: NAN}}, ValueError, r"class_weight\[1\] must be a number"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "match"), [row[1:] for row in FITS], ids=[row[0] for row in FITS]
)
def test_arguments_of_fit(model, options, error, match):
    before = state(model)
    with pytest.raises(error, match=match):
        model.fit(X, X, verbose=0, **options)
    for got, want in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(got, want)


# name, call, error, match
MODELS = [
    ("width and heads", lambda m, s: models.CausalTransformer(V, 7, 1, 2), ValueError, "d_model must be a multiple of num_heads"),
    ("dropout of all", lambda m, s: models.CausalTransformer(V, 8, 1, 2, dropout=1), ValueError, r"dropout must be a number in \[0, 1\)"),
    ("theta 0", lambda m, s: models.CausalTransformer(V, 8, 1, 2, rope_theta=0), ValueError, "rope_theta must be a number"),
    ("width as text", lambda m, s: models.CausalTransformer(V, 8, 1, 2, d_ff="8"), ValueError, "d_ff must be a positive integer"),
    ("padding that is true", lambda m, s: models.CausalTransformer(V, 8, 1, 2, pad_id=True), ValueError, r"pad_id must be in \[0, 20\).*True"),
    ("tied as text", lambda m, s: models.CausalTransformer(V, 8, 1, 2, tie_embeddings="no"), TypeError, "tie_embeddings must be True or False"),
    ("no prompt", lambda m, s: m.generate([]), ValueError, "ids must hold at least one token in every row"),
    ("prompt of floats", lambda m, s: m.generate([1.5]), TypeError, "ids must be integers"),
    ("prompt of text", lambda m, s: m.generate("a b"), TypeError, r"tokenizer.encode\(text\) makes them"),
    ("prompt None", lambda m, s: m.generate(None), TypeError, "ids must be integers"),
    ("prompt beyond the vocabulary", lambda m, s: m.generate([V]), ValueError, r"ids must be in \[0, 20\)"),
    ("nothing to generate", lambda m, s: m.generate([1], max_new_tokens=0), ValueError, "max_new_tokens must be a positive integer"),
    ("more than there is room", lambda m, s: m.generate([1], max_new_tokens=99), ValueError, "max_new_tokens must be at most 7"),
    ("end beyond the vocabulary", lambda m, s: m.generate([1], 2, end_id=V), ValueError, r"end_id must be in \[0, 20\)"),
    ("end that is true", lambda m, s: m.generate([1], 2, end_id=True), ValueError, "end_id=True"),
    ("k beyond the vocabulary", lambda m, s: m.generate([1], 2, top_k=21), ValueError, "top_k must be at most 20"),
    ("no beams", lambda m, s: s.generate([1], 1, 2, num_beams=0), ValueError, "num_beams must be a positive integer"),
    ("penalty NaN", lambda m, s: s.generate([1], 1, 2, length_penalty=NAN), ValueError, "length_penalty must be a number"),
    ("start None", lambda m, s: s.generate([1], None, 2), ValueError, "start_id=None"),
    ("a source alone", lambda m, s: s(X), ValueError, 'inputs must be a dictionary of "encoder_ids" and "decoder_ids"'),
    ("a teacher by its name", lambda m, s: models.Distillation("gpt2", m), TypeError, "teacher must be a LanguageModel"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "match"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS]
)
def test_models(model, sequences, call, error, match):
    with pytest.raises(error, match=match):
        call(model, sequences)


def test_a_tokenizer_of_more_ids_than_the_model(model):
    text = " ".join(f"w{i}" for i in range(40))
    larger = data.train_tokenizer([text], unit="word")
    with pytest.raises(ValueError, match=r"ids must be in \[0, 20\), the vocabulary"):
        model.generate(larger.encode("w39"), max_new_tokens=2)
    with pytest.raises(ValueError, match="tokenizer must have at most vocab_size=20 ids"):
        model.save_pretrained("never", larger)


@pytest.mark.torch_only
def test_a_weight_that_cannot_be_seen_spares_the_weights(monkeypatch):
    """As on a GPU, where to look at a value is to wait for it: the update is skipped."""
    monkeypatch.setattr("keras_llm.counted_tokens.host_values", lambda tensor: None)
    monkeypatch.setattr("keras_llm.backend.ids.host_values", lambda tensor: None)
    monkeypatch.setattr("keras_llm.training.arrays.host_values", lambda tensor: None)
    for bad in (0.0, NAN, INF, -1.0):
        sample_weight = WEIGHTS.copy()
        sample_weight[1, 1] = bad
        keras.utils.set_random_seed(0)
        model = models.CausalTransformer(V, 8, 1, 2, max_length=8)
        model.compile(keras.optimizers.SGD(0.1), CE(0), jit_compile=False)
        before = model.get_weights()
        told = contextlib.nullcontext() if bad == 0 else pytest.warns(UserWarning, match=SKIPPED)
        with told:
            loss = model.train_on_batch(X, X, sample_weight=sample_weight)
        assert np.isnan(loss) == (bad != 0)
        kept = [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
        assert all(kept) == (bad != 0)


@pytest.mark.not_tensorflow
@pytest.mark.parametrize("make", [models.CausalTransformer, models.Seq2SeqTransformer])
def test_a_dtype_that_keras_rounds_is_refused(make):
    """Before, logits were of float32, and generate failed."""
    product = keras.ops.matmul(*np.full((2, 1, 1), 1 + 2.0**-40))
    assert keras.backend.standardize_dtype(product.dtype) == "float32"
    with pytest.raises(ValueError, match=r"products of float64 in float32\. Received: dtype="):
        make(V, 8, 1, 2, dtype="float64")
