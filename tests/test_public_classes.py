"""Everything that `compile` takes can be named, saved and rebuilt."""

import keras
import numpy as np
import pytest

from keras_llm import losses, metrics

OBJECTS = [
    losses.MaskedSparseCategoricalCrossentropy(3, 0.1, 1e-4, True, "sum", "a"),
    losses.MaskedSparseCategoricalCrossentropy(from_logits=False),
    losses.MaskedSparseCategoricalFocalCrossentropy(
        1.0, [0.5, 1.0, 2.0, 1.0, 3.0, 0.1], 3, 0.1, 1e-4, True, "none"
    ),
    losses.MaskedSparseCategoricalFocalCrossentropy(alpha=0.25),
    losses.MaskedKLDivergence(2.0, True, False, 3, True, "sum", "c"),
    losses.MaskedKLDivergence(2.0, False, True),
    metrics.Perplexity(3, True, "d"),
    metrics.MaskedTokenAccuracy(5, 3, True, "e"),
    metrics.BitsPerByte(np.array([0, 1, 2, 1, 3, 1]), 3, True, "f"),
]


def value(thing):
    """What it makes of two rows of labels, or of a teacher's probabilities, and of predictions."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (2, 9))
    teacher, predictions = rng.dirichlet(np.ones(6), (2, 2, 9)).astype("float32")
    is_taught = isinstance(thing, losses.MaskedKLDivergence)
    return keras.ops.convert_to_numpy(thing(teacher if is_taught else labels, predictions))


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: type(thing).__name__)
@pytest.mark.sampled(3)
def test_config_round_trip(thing):
    serialize = keras.saving.serialize_keras_object
    again = keras.saving.deserialize_keras_object(serialize(thing))
    assert type(again) is type(thing)
    assert serialize(again) == serialize(thing)
    np.testing.assert_array_equal(value(again), value(thing))


@pytest.mark.parametrize(
    "name, cls",
    [
        ("masked_sparse_categorical_crossentropy", losses.MaskedSparseCategoricalCrossentropy),
        (
            "masked_sparse_categorical_focal_crossentropy",
            losses.MaskedSparseCategoricalFocalCrossentropy,
        ),
        ("masked_kl_divergence", losses.MaskedKLDivergence),
    ],
)
@pytest.mark.backend_free
def test_losses_have_strings(name, cls):
    for known in (name, cls.__name__):
        assert isinstance(keras.losses.get(known), cls)


@pytest.mark.parametrize(
    "name, cls",
    [
        ("perplexity", metrics.Perplexity),
        ("masked_token_accuracy", metrics.MaskedTokenAccuracy),
    ],
)
@pytest.mark.backend_free
def test_metrics_have_strings(name, cls):
    for known in (name, cls.__name__):
        assert isinstance(keras.metrics.get(known), cls)


def test_a_plain_keras_model_compiles_by_string_and_survives_saving(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 9, (2, 6, 4))
    model = keras.Sequential([keras.layers.Embedding(9, 8), keras.layers.Dense(9)])
    model.compile(
        optimizer="sgd",
        loss="masked_sparse_categorical_crossentropy",
        metrics=["perplexity", "masked_token_accuracy"],
    )
    model.fit(x, y, verbose=0)
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    after = keras.models.load_model(tmp_path / "model.keras").evaluate(
        x, y, verbose=0, return_dict=True
    )
    assert after == pytest.approx(before, rel=1e-6)
    assert before["perplexity"] == pytest.approx(np.exp(before["loss"]), rel=1e-5)
