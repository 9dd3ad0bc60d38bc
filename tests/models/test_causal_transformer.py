"""`CausalTransformer`: sizes, contracts, saving, precision, padding, errors."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm.layers import VocabularyHead
from keras_llm.models import CausalTransformer, LanguageModel
from tests.logits import logits_of
from tests.models.weights import randomize

SIZES = dict(vocab_size=23, d_model=16, num_layers=2, num_heads=4, max_length=12)
IDS = np.random.default_rng(0).integers(1, 23, (3, 9))


def build(**options):
    return randomize(CausalTransformer(**{**SIZES, **options}))


output = logits_of


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.backend_free
def test_all_weights_exist_at_once(tied, capsys):
    model = CausalTransformer(
        vocab_size=100,
        d_model=32,
        num_layers=3,
        num_heads=4,
        num_key_value_heads=2,
        d_ff=50,
        tie_embeddings=tied,
    )
    attention = 2 * 32 * 32 + 2 * 32 * 16
    expected = 3 * (attention + 3 * 32 * 50 + 2 * 32) + 32 + (1 if tied else 2) * 100 * 32
    assert model.count_params() == expected
    model.summary()
    assert f"Total params: {expected:,}" in capsys.readouterr().out
    before = len(model.weights)
    model(IDS)
    assert len(model.weights) == before


@pytest.mark.backend_free
def test_initial_sizes():
    model = CausalTransformer(vocab_size=500, d_model=128, num_layers=8, num_heads=4, d_ff=256)
    stddevs = {
        "/".join(w.path.split("/")[-2:]): float(w.numpy().std())
        for w in model.backbone.blocks[3].weights
        if len(w.shape) == 2
    }
    for name, stddev in stddevs.items():
        expected = 0.02 / np.sqrt(16) if name.split("/")[0] in ("output", "down") else 0.02
        assert stddev == pytest.approx(expected, rel=0.05), name
    table = model.backbone.token_embedding.embeddings.numpy()
    assert table.std() == pytest.approx(0.02, rel=0.05)
    starts = [block.self_attention.query.kernel.numpy() for block in model.backbone.blocks]
    assert not np.array_equal(starts[0], starts[1])


def test_is_a_backbone_and_a_head_with_nothing_between():
    model = build(tie_embeddings=False)
    assert isinstance(model, LanguageModel) and isinstance(model.head, VocabularyHead)
    hidden = ops.convert_to_numpy(model.backbone(IDS))
    assert hidden.shape == (3, 9, 16) and tuple(model.head.kernel.shape) == (16, 23)
    logits = hidden @ ops.convert_to_numpy(model.head.kernel)
    np.testing.assert_allclose(output(model, IDS), logits, rtol=1e-5, atol=1e-5)


def test_the_hidden_vectors_are_normed():
    model = build()
    model.backbone.norm.scale.assign(np.ones(16))
    hidden = ops.convert_to_numpy(model.backbone(IDS))
    np.testing.assert_allclose(np.square(hidden).mean(-1), 1, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(tie_embeddings=False, num_key_value_heads=2, rope_theta=50.0, epsilon=1e-3, d_ff=20),
        dict(dropout=0.1, pad_id=0, dtype="mixed_bfloat16"),
    ],
)
@pytest.mark.sampled(2)
@pytest.mark.quick(3)
def test_saved_and_loaded_it_is_the_same(options, tmp_path):
    model = build(**options)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(output(again, IDS), output(model, IDS))
    if model.tie_embeddings:
        table = again.backbone.token_embedding.embeddings
        np.testing.assert_array_equal(ops.convert_to_numpy(again.head.kernel), table.numpy().T)


@pytest.mark.backend_free
def test_a_new_model_from_the_config():
    model = build(num_key_value_heads=2, name="mine")
    again = CausalTransformer.from_config(model.get_config())
    assert again.name == "mine" and again.count_params() == model.count_params()


def test_random_states_are_repeatable():
    def outputs():
        keras.utils.set_random_seed(3)
        model = CausalTransformer(**SIZES, dropout=0.5)
        return [ops.convert_to_numpy(model(IDS, training=t)) for t in (False, True, True)]

    first, second = outputs(), outputs()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(first[0], first[1]) and not np.allclose(first[1], first[2])


@pytest.mark.parametrize("given", ["argument", "global policy"])
@pytest.mark.sampled(2)
def test_mixed_precision(given):
    if given == "argument":
        model = build(dtype="mixed_bfloat16")
    else:
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            model = build()
        finally:
            keras.config.set_dtype_policy("float32")
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    layers = list(model._flatten_layers())
    assert {layer.compute_dtype for layer in layers} == {"bfloat16"}
    logits = model(IDS)
    assert keras.backend.standardize_dtype(logits.dtype) == "bfloat16"
    exact = output(build(), IDS)
    rounded = ops.convert_to_numpy(ops.cast(logits, "float32"))
    assert np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_no_token_sees_what_comes_after_it():
    model, changed = build(), IDS.copy()
    changed[:, 5:] = 22 - changed[:, 5:]
    before, after = output(model, IDS), output(model, changed)
    np.testing.assert_allclose(after[:, :5], before[:, :5], rtol=1e-5, atol=1e-5)
    assert not np.allclose(after[:, 5:], before[:, 5:], atol=1e-2)


def test_padding_at_the_end_changes_nothing():
    model = build()
    padded = np.pad(IDS, [(0, 0), (0, 3)])
    np.testing.assert_allclose(output(model, padded)[:, :9], output(model, IDS), atol=1e-5)


@pytest.mark.parametrize("padding", [[3, 0], [1, 2], [0, 3]])
@pytest.mark.sampled(2)
def test_a_padding_id_is_never_seen(padding):
    model = build(pad_id=0)
    padded = np.pad(IDS, [(0, 0), padding])
    got = output(model, padded)[:, padding[0] : padding[0] + 9]
    np.testing.assert_allclose(got, output(model, IDS), rtol=1e-4, atol=1e-4)
    assert np.isfinite(output(model, padded)).all()
    # That the mask, and not luck, does it: without it the padding before a token shows.
    unmasked = randomize(CausalTransformer(**SIZES))
    seen = output(unmasked, padded)[:, padding[0] : padding[0] + 9]
    assert np.allclose(seen, output(unmasked, IDS), atol=1e-4) == (padding[0] == 0)


def test_rows_do_not_depend_on_each_other():
    model = build()
    alone = np.concatenate([output(model, row[None]) for row in IDS])
    np.testing.assert_allclose(output(model, IDS), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(d_model=18), "d_model must be a multiple of num_heads"),
        (dict(num_key_value_heads=3), "num_heads must be a multiple of num_key_value_heads"),
        (dict(d_model=12), "head_dim .* must be even.* Received: head_dim=3"),
        (dict(num_key_value_heads=0), "num_key_value_heads must be a positive integer"),
        (dict(pad_id=23), r"pad_id must be in \[0, 23\), the vocabulary. Received: pad_id=23"),
        (dict(num_layers=0), "num_layers must be a positive integer. Received: num_layers=0"),
        (dict(vocab_size=23.0), "vocab_size must be a positive integer. Received: vocab_size=23.0"),
    ],
)
@pytest.mark.backend_free
def test_sizes_that_do_not_fit_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        CausalTransformer(**{**SIZES, **options})


@pytest.mark.parametrize(
    "ids, error, message",
    [
        (
            np.ones((1, 13), int),
            ValueError,
            "at most max_length=12 tokens long. Received: length=13",
        ),
        (np.ones(3, int), ValueError, r"must be \[batch, length\]. Received: shape=\(3,\)"),
        (
            np.full((1, 3), 23),
            ValueError,
            r"ids must be in \[0, 23\), the vocabulary. Received: 23",
        ),
        (np.ones((1, 3)), TypeError, "ids must be integers"),
    ],
)
def test_wrong_ids_are_errors(ids, error, message):
    with pytest.raises(error, match=message):
        build()(ids)


@pytest.mark.torch_only
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_learns(tied):
    model = build(tie_embeddings=tied, dropout=0.1)
    model(IDS, training=True).square().mean().backward()
    for weight in model.trainable_weights:
        assert weight.value.grad.abs().max() > 0, weight.path
