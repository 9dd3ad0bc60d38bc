"""`Seq2SeqTransformer` against a float64 reference; padding, vocabularies, saving, errors."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm.models import Seq2SeqTransformer
from tests.logits import logits_of
from tests.models import encoder_decoder
from tests.models.weights import randomize

SIZES = dict(vocab_size=23, d_model=16, num_layers=2, num_heads=4, max_length=12)
RNG = np.random.default_rng(0)
LENGTHS = np.array([7, 4, 1])
SOURCE = np.where(np.arange(7) < LENGTHS[:, None], RNG.integers(1, 23, (3, 7)), 0)
TARGET = RNG.integers(1, 19, (3, 5))
VARIANTS = [
    dict(),
    dict(num_key_value_heads=2, tie_embeddings=False, rope_theta=50.0, epsilon=1e-3, d_ff=20),
    dict(target_vocab_size=19),
    dict(target_vocab_size=19, tie_embeddings=False, num_key_value_heads=1),
]


def build(**options):
    return randomize(Seq2SeqTransformer(**{**SIZES, **options}), scale=0.25)


def output(model, source, target):
    return logits_of(model, {"encoder_ids": source, "decoder_ids": target})


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.sampled(2)
def test_padded_batches_equal_the_reference_on_each_pair_alone(options):
    model = build(**options)
    got = output(model, SOURCE, TARGET)
    assert got.shape == (3, 5, options.get("target_vocab_size", 23))
    for row, length in enumerate(LENGTHS):
        want = encoder_decoder.logits(model, SOURCE[row, :length], TARGET[row])
        np.testing.assert_allclose(got[row], want, rtol=1e-4, atol=1e-4)


def test_padding_after_a_target_changes_nothing():
    model = build()
    padded = np.pad(TARGET, [(0, 0), (0, 3)])
    got = output(model, SOURCE, padded)[:, :5]
    np.testing.assert_allclose(got, output(model, SOURCE, TARGET), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [[4, 0], [0, 4]])
@pytest.mark.sampled(2)
def test_padding_of_a_source_changes_nothing(padding):
    model = build()
    got = output(model, np.pad(SOURCE, [(0, 0), padding]), TARGET)
    np.testing.assert_allclose(got, output(model, SOURCE, TARGET), rtol=1e-4, atol=1e-4)


def test_a_source_of_padding_alone_is_no_source():
    model = build()
    results = [output(model, np.zeros((3, n), int), TARGET) for n in (1, 7)]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert np.isfinite(results[0]).all()


def test_without_a_padding_id_every_source_token_counts():
    model = build(pad_id=None)
    got = output(model, SOURCE, TARGET)
    for row in range(3):
        want = encoder_decoder.logits(model, SOURCE[row], TARGET[row])
        np.testing.assert_allclose(got[row], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", VARIANTS[::3])
@pytest.mark.sampled(2)
@pytest.mark.quick(2)
def test_saved_and_loaded_it_is_the_same(options, tmp_path):
    model = build(**options)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(output(again, SOURCE, TARGET), output(model, SOURCE, TARGET))


def test_all_weights_exist_at_once():
    model = Seq2SeqTransformer(vocab_size=23, d_model=16, num_layers=2, num_heads=4, d_ff=40)
    attention, feed_forward = 4 * 16 * 16, 3 * 16 * 40
    encoder = 2 * (attention + feed_forward + 2 * 16) + 16
    decoder = 2 * (2 * attention + feed_forward + 3 * 16) + 16
    assert model.count_params() == 23 * 16 + encoder + decoder
    output(model, SOURCE, TARGET)
    assert model.count_params() == 23 * 16 + encoder + decoder


@pytest.mark.backend_free
def test_one_embedding_serves_source_target_and_head():
    def tables(**options):
        model = Seq2SeqTransformer(**SIZES, **options)
        return [tuple(w.shape) for w in model.weights if {23, 19} & set(w.shape)]

    assert tables() == [(23, 16)]
    assert tables(tie_embeddings=False) == [(23, 16), (16, 23)]
    assert tables(target_vocab_size=19) == [(23, 16), (19, 16)]


@pytest.mark.torch_only
def test_mixed_precision():
    model = build(dtype="mixed_bfloat16")
    logits = model({"encoder_ids": SOURCE, "decoder_ids": TARGET})
    assert keras.backend.standardize_dtype(logits.dtype) == "bfloat16"
    exact = output(build(), SOURCE, TARGET)
    rounded = ops.convert_to_numpy(ops.cast(logits, "float32"))
    assert np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    "ids, message",
    [
        (SOURCE, 'inputs must be a dictionary of "encoder_ids" and "decoder_ids"'),
        ({"encoder_ids": SOURCE}, r"Received: \['encoder_ids'\]"),
        (
            {"encoder_ids": SOURCE, "decoder_ids": np.ones((3, 13), int)},
            "decoder_ids must be at most",
        ),
        (
            {"encoder_ids": np.ones((3, 13), int), "decoder_ids": TARGET},
            "encoder_ids must be at most",
        ),
        ({"encoder_ids": SOURCE + 22, "decoder_ids": TARGET}, "the vocabulary"),
    ],
)
def test_wrong_ids_are_errors(ids, message):
    with pytest.raises(ValueError, match=message):
        build()(ids)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(target_vocab_size=0), "target_vocab_size must be a positive integer. Received"),
        (dict(target_vocab_size=5, pad_id=5), r"pad_id must be in \[0, 5\)"),
    ],
)
@pytest.mark.backend_free
def test_sizes_that_do_not_fit_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Seq2SeqTransformer(**{**SIZES, **options})


@pytest.mark.torch_only
@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.quick(3)
def test_every_weight_learns(options):
    model = build(**options)
    ids = {"encoder_ids": SOURCE, "decoder_ids": TARGET}
    model(ids, training=True).square().mean().backward()
    for weight in model.trainable_weights:
        assert weight.value.grad.abs().max() > 0, weight.path
