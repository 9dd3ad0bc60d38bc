"""Tensors of PyTorch, weights of rows that are held out, data with nothing in it."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models

VOCAB, D_MODEL = 9, 8
RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, VOCAB, (2, 8, 5))


def build():
    """A table of vectors and a matrix, which nothing trains."""
    keras.utils.set_random_seed(0)
    body, head = keras.layers.Embedding(VOCAB, D_MODEL), keras.layers.Dense(VOCAB, use_bias=False)
    model = models.LanguageModel(body, head)
    model(X)
    model.compile(keras.optimizers.SGD(0.0), losses.MaskedSparseCategoricalCrossentropy())
    return model


def mean_nll(model, weights, rows=slice(None)):
    """The weighted mean of the labels' nll, in float64."""
    table, kernel = (w.astype("float64") for w in model.get_weights())
    logits = table[X] @ kernel
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, Y[..., None], -1)[..., 0]
    return (nll * weights)[rows].sum() / weights[rows].sum()


WEIGHTS = RNG.random((8, 5)).astype("float32")
ENTRANCES = {
    "fit": lambda m, *batch: m.fit(*batch[:2], sample_weight=batch[2], verbose=0).history["loss"],
    "validation": lambda m, *batch: m.fit(X, Y, validation_data=batch, verbose=0).history[
        "val_loss"
    ],
    "evaluate": lambda m, *batch: m.evaluate(*batch[:2], sample_weight=batch[2], verbose=0),
    "train_on_batch": lambda m, *batch: m.train_on_batch(*batch),
    "test_on_batch": lambda m, *batch: m.test_on_batch(*batch),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_tensors_of_pytorch_are_arrays(entrance):
    """On JAX the methods of one batch failed; `fit`, with weights, ended the process."""
    model = build()
    got = ENTRANCES[entrance](model, *map(torch.tensor, (X, Y, WEIGHTS)))
    assert float(np.ravel(got)[0]) == pytest.approx(mean_nll(model, WEIGHTS), rel=1e-5)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_bytes_in_the_other_order(entrance):
    """As files of other machines have them, such as IDX's."""
    model = build()
    batch = X.astype(">i4"), Y.astype(">i8"), WEIGHTS.astype(">f4")
    got = ENTRANCES[entrance](model, *batch)
    assert float(np.ravel(got)[0]) == pytest.approx(mean_nll(model, WEIGHTS), rel=1e-5)


@pytest.mark.parametrize("method", ["predict", "predict_on_batch"])
def test_predictions_for_tensors_of_pytorch(method):
    model = build()
    table, kernel = model.get_weights()
    got = getattr(model, method)(torch.tensor(X))
    np.testing.assert_allclose(got, table[X] @ kernel, rtol=1e-5, atol=1e-7)


def test_weights_of_bfloat16():
    """numpy has no such dtype."""
    model, weights = build(), torch.tensor(WEIGHTS).bfloat16()
    got = model.train_on_batch(X, Y, sample_weight=weights)
    assert got == pytest.approx(mean_nll(model, weights.double().numpy()), rel=1e-5)


@pytest.mark.parametrize("are_classes", [True, False])
def test_weights_of_classes_are_of_what_is_trained(are_classes):
    """As in Keras, where weights of rows are split with them, and weights of classes are not."""
    model, of_class = build(), {2: 5.0, 3: 0.0, 4: 0.5}
    if are_classes:
        weights = np.array([of_class.get(label, 1.0) for label in range(VOCAB)])[Y]
        held_out, given = np.ones(Y.shape), {"class_weight": of_class}
    else:
        weights = held_out = WEIGHTS
        given = {"sample_weight": WEIGHTS}
    logs = model.fit(X, Y, validation_split=0.25, verbose=0, **given).history
    assert logs["loss"][0] == pytest.approx(mean_nll(model, weights, slice(6)), rel=1e-5)
    want = mean_nll(model, held_out, slice(6, None))
    assert logs["val_loss"][0] == pytest.approx(want, rel=1e-5)


class PyDatasetOf(keras.utils.PyDataset):
    """No batches."""

    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


@pytest.mark.parametrize("read", [PyDatasetOf, lambda: torch.utils.data.DataLoader([])])
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_a_loader_without_batches_is_named(call, read):
    """They failed by StopIteration or UnboundLocalError, or returned nothing."""
    with pytest.raises(ValueError, match=r"at least one batch\. Received: a loader of 0"):
        getattr(build(), call)(read(), verbose=0)


@pytest.mark.not_tensorflow
@pytest.mark.parametrize("call", ["predict", "call"])
def test_ids_without_rows_are_named(call):
    model = models.CausalTransformer(VOCAB, D_MODEL, 1, 2)
    batches = torch.utils.data.DataLoader([X[:0]], batch_size=None)
    with pytest.raises(ValueError, match=r"ids must hold at least one row. Received: .*\(0, 5\)"):
        model.predict(batches, verbose=0) if call == "predict" else model(X[:0])


@pytest.mark.parametrize("call", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
def test_floats_are_named_before_anything_is_built(call):
    """Keras advised to build the model."""
    model = models.CausalTransformer(VOCAB, D_MODEL, 1, 2)
    loss, accuracy = losses.MaskedSparseCategoricalCrossentropy(), metrics.MaskedTokenAccuracy()
    model.compile("sgd", loss, metrics=[accuracy, "sparse_categorical_accuracy"])
    with pytest.raises(TypeError, match=r"ids must be integers.*float32"):
        getattr(model, call)(X.astype("float32"), Y)


@pytest.mark.not_torch
@pytest.mark.parametrize("kind", ["no logits", "logits", "of Keras"])
def test_a_label_outside_the_vocabulary_is_in_no_number(kind):
    """Where labels have no values, accuracy took it for a label 0, or left it out."""
    measured = [metrics.Perplexity(), metrics.MaskedTokenAccuracy()]
    if kind == "logits":
        measured.append(metrics.MaskedTokenAccuracy(top_k=2))
    body, head = keras.layers.Embedding(VOCAB, D_MODEL), keras.layers.Dense(VOCAB)
    model = models.LanguageModel(body, head)
    if kind == "of Keras":
        model = keras.Sequential([body, head])
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(), metrics=measured)
    model(X)
    # Always the guess 0.
    head.bias.assign(50.0 * np.eye(VOCAB)[0])
    y = np.zeros_like(Y)
    assert model.evaluate(X, y, verbose=0)[1:] == pytest.approx([1.0] * len(measured), rel=1e-5)
    y[1, 2] = VOCAB
    assert np.isnan(model.evaluate(X, y, verbose=0)).all()
