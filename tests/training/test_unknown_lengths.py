"""Lengths and shapes that only TensorFlow's running step knows."""

import keras
import numpy as np
import pytest

from keras_llm import losses, models

pytestmark = [pytest.mark.not_torch, pytest.mark.not_jax]


def compiled(function, *shapes_and_dtypes):
    import tensorflow as tf

    signature = [tf.TensorSpec(shape, dtype) for shape, dtype in shapes_and_dtypes]
    return tf.function(function, input_signature=signature)


def test_labels_of_one_column_are_nan_under_a_divergence():
    loss = losses.MaskedKLDivergence(ignore_index=0, target_from_logits=True)
    logits = ((None, None, 5), "float32")
    run = compiled(lambda t, y, s: loss((t, y), s), logits, ((None, None), "int32"), logits)
    drawn = np.random.default_rng(0)
    teacher, student = drawn.normal(size=(2, 2, 3, 5)).astype("float32")
    labels = np.array([[1, 2, 0], [3, 0, 0]], "int32")
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (teacher, student))
    each = (p * np.log(p / q)).sum(-1)
    expected = each[labels != 0].mean()
    assert float(run(teacher, labels, student)) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(run(teacher, labels[:, :1], student))


@pytest.mark.parametrize("name", ["encoder_ids", "decoder_ids"])
def test_ids_longer_than_max_length_are_nan(name):
    model = models.Seq2SeqTransformer(9, 8, num_layers=1, num_heads=2, max_length=6, dropout=0.0)
    other = {"encoder_ids", "decoder_ids"} - {name}
    ones = dict.fromkeys(other, keras.ops.ones((2, 3), "int32"))
    run = compiled(lambda ids: model({name: ids, **ones}), ((None, None), "int32"))
    assert np.isfinite(run(np.ones((2, 6), "int32"))).all()
    assert np.isnan(run(np.ones((2, 8), "int32"))).all()


def generated(*shapes):
    import tensorflow as tf

    ones = tuple(np.ones((2, 3), "int32") for _ in shapes)
    signature = tuple(tf.TensorSpec(shape, tf.int32) for shape in shapes)
    return tf.data.Dataset.from_generator(lambda: iter([ones]), output_signature=signature)


def ragged(which):
    import tensorflow as tf

    parts = [np.ones((2, 3), "int32")] * 3
    parts[which] = tf.ragged.constant([[1, 2, 3], [1]])
    return tf.data.Dataset.from_tensor_slices(tuple(parts)).batch(2)


@pytest.mark.parametrize("call", ["fit", "evaluate"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: generated(None, (2, 3)), r"ids must have a known number of dimensions: .*"),
        (lambda: generated((2, 3), None), r"^Labels must have a known number of dimensions: .*"),
        (lambda: ragged(0), r"ids must be one dense array: .* Received: a RaggedTensor"),
        (lambda: ragged(1), r"^Labels must be one dense array: .* Received: a RaggedTensor"),
        (lambda: ragged(2), r"^sample_weight must be one dense array: .* Received: a RaggedTensor"),
    ],
)
def test_tensors_without_one_shape_are_named(call, data, message):
    model = models.CausalTransformer(9, 8, num_layers=1, num_heads=2, max_length=6)
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(0))
    with pytest.raises(TypeError, match=message):
        getattr(model, call)(data(), verbose=0)


def test_a_backbone_that_does_not_know_its_rank_is_named():
    model = models.LanguageModel(keras.layers.Embedding(9, 4), keras.layers.Dense(9))
    model(np.ones((2, 3), "int32"))
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(0))
    with pytest.raises(TypeError, match=r"^What the backbone returns must have a known number"):
        model.fit(generated(None, (2, 3)), verbose=0)


def test_weights_in_a_dictionary_are_named():
    loss = losses.MaskedSparseCategoricalCrossentropy(0)
    with pytest.raises(TypeError, match=r"^sample_weight must be one array. Received: a dict"):
        loss(np.ones((1, 2), "int32"), np.ones((1, 2, 3)), sample_weight={"a": np.ones(1)})
