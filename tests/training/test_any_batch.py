"""Any labels and weights: the number is that of a float64 reference, or there is an error of ours.

The reference is NumPy, over whole logits; what is a right batch is decided here, by the docstrings.
"""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import losses, metrics, models

ON_TORCH = keras.backend.backend() == "torch"
WEIGHTS = [0.0, 0.25, 1.0, 2.0]
BAD_WEIGHTS = [-1.0, float("nan"), float("inf")]
NAMES = ("Labels", "sample_weight")


def nll_of(logits, labels):
    """The negative log-likelihood of each label in float64; labels outside count as 0."""
    logits = logits.astype("float64")
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    inside = np.where((labels >= 0) & (labels < logits.shape[-1]), labels, 0).astype("int64")
    return -np.take_along_axis(log_p, inside[..., None], -1)[..., 0]


def in_full(weights, shape):
    """Weights that broadcast to a shape from the left, as that shape; None if they do not."""
    if weights.ndim == len(shape) + 1 and weights.shape[-1] == 1:
        weights = weights[..., 0]
    if weights.ndim > len(shape):
        return None
    weights = weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
    fits = all(a in (1, b) for a, b in zip(weights.shape, shape, strict=True))
    return np.broadcast_to(weights, shape).astype("float64") if fits else None


@st.composite
def batches(draw):
    """Labels, logits, weights or None, and `ignore_index`."""
    rows, length, vocab = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(["int64", "int32", "uint8", "int8", "float32", "bool"]))
    lowest = draw(st.sampled_from([0, 0, -1]))
    labels = rng.integers(lowest, vocab + draw(st.sampled_from([0, 0, 1])), (rows, length))
    labels = labels.astype(dtype)
    ignore_index = draw(st.sampled_from([-100, -1, 0, 1]))
    logits = draw(st.sampled_from([0.1, 3.0, 10.0])) * rng.standard_normal((rows, length, vocab))
    shapes = [None, (rows, length), (rows,), (rows, 1), (1, length), (rows, length, 1), ()]
    shapes += [(length + 1,), (rows + 1, length), (rows, length, 2)]
    shape = draw(st.sampled_from(shapes))
    weights = None
    if shape is not None:
        weights = rng.choice(WEIGHTS, shape)
        if draw(st.booleans()):
            weights = np.array(weights)
            weights.flat[0] = draw(st.sampled_from(BAD_WEIGHTS))
    return labels, logits.astype("float32"), weights, ignore_index


def reference(labels, logits, weights, ignore_index):
    """The sum of the weighted nll and of the weights; None for a batch that must be refused."""
    if labels.dtype.kind not in "iu":
        return None
    wide = labels.astype("int64")
    counts = (wide != ignore_index).astype("float64")
    if weights is not None:
        full = in_full(weights, labels.shape)
        if full is None or not (np.isfinite(full).all() and (counts * full >= 0).all()):
            return None
        counts = counts * full
    if ((counts != 0) & ((wide < 0) | (wide >= logits.shape[-1]))).any():
        return None
    return (nll_of(logits, labels) * counts).sum(), counts.sum()


@given(batches())
@settings(max_examples=100 if ON_TORCH else 15)
def test_losses_and_metrics(batch):
    labels, logits, weights, ignore_index = batch
    want = reference(*batch)
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index)
    metric = metrics.Perplexity(ignore_index)
    if want is None:
        for call in (loss, metric.update_state):
            with pytest.raises((ValueError, TypeError)) as raised:
                call(labels, logits, sample_weight=weights)
            assert str(raised.value).startswith(NAMES)
        assert float(metric.result()) == 1.0
        return
    mean = want[0] / want[1] if want[1] else 0.0
    assert float(loss(labels, logits, weights)) == pytest.approx(mean, rel=1e-5, abs=1e-5)
    metric.update_state(labels, logits, weights)
    assert float(metric.result()) == pytest.approx(np.exp(mean), rel=1e-4)


VOCAB, WIDTH, RATE = 7, 4, 0.5


@pytest.fixture(scope="module")
def model():
    model = models.LanguageModel(
        keras.layers.Embedding(VOCAB, WIDTH), keras.layers.Dense(VOCAB, use_bias=False)
    )
    model(np.zeros((1, 1), "int32"))
    model.compile(
        keras.optimizers.SGD(RATE),
        losses.MaskedSparseCategoricalCrossentropy(0),
        weighted_metrics=[metrics.Perplexity()],
    )
    return model


def after_a_step(weights, x, labels, counts):
    """Table and matrix after one update, by the gradient written out."""
    table, matrix = (w.astype("float64") for w in weights)
    hidden = table[x]
    logits = hidden @ matrix
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    gradient = (p - np.eye(VOCAB)[labels]) * (counts / max(counts.sum(), 1e-300))[..., None]
    of_table = np.zeros_like(table)
    np.add.at(of_table, x, gradient @ matrix.T)
    of_matrix = hidden.reshape(-1, WIDTH).T @ gradient.reshape(-1, VOCAB)
    return table - RATE * of_table, matrix - RATE * of_matrix


# After a few shapes TensorFlow's graph knows not even the number of axes.
@pytest.mark.not_tensorflow
@given(st.integers(0, 999), st.sampled_from([1, 2, 5]), st.booleans())
@settings(max_examples=15 if ON_TORCH else 3)
def test_training_and_evaluation(model, seed, batch_size, by_row):
    rng = np.random.default_rng(seed)
    table = [rng.standard_normal(w.shape).astype("float32") for w in model.get_weights()]
    model.set_weights(table)
    x, y = rng.integers(0, VOCAB, (2, 4, 3))
    weights = rng.choice(WEIGHTS, (4,) if by_row else (4, 3)).astype("float32")
    counts = in_full(weights, (4, 3)) * (y != 0)
    total = (nll_of(table[0][x].astype("float64") @ table[1].astype("float64"), y) * counts).sum()
    mean = total / counts.sum() if counts.any() else 0.0
    logs = model.evaluate(x, y, batch_size, 0, sample_weight=weights, return_dict=True)
    assert logs["loss"] == pytest.approx(mean, rel=1e-5, abs=1e-6)
    assert logs["perplexity"] == pytest.approx(np.exp(mean), rel=1e-4)
    logs = model.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    assert logs["loss"] == pytest.approx(mean, rel=1e-5, abs=1e-6)
    for got, want in zip(model.get_weights(), after_a_step(table, x, y, counts), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
