"""The small layers against formulas in float64, and all layers through their configs."""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from keras_llm import layers
from tests.models.weights import arrays, randomize

X = np.random.default_rng(0).standard_normal((2, 3, 8)).astype("float32")


def test_gated_feed_forward():
    layer = layers.GatedFeedForward(8, 12)
    layer.build()
    w = arrays(randomize(layer))
    gate = X @ w["gate/kernel"]
    want = (gate / (1 + np.exp(-gate)) * (X @ w["up/kernel"])) @ w["down/kernel"]
    np.testing.assert_allclose(ops.convert_to_numpy(layer(X)), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d_model, d_ff", [(48, 128), (256, 704), (512, 1408), (4096, 10944)])
@pytest.mark.backend_free
def test_default_width_has_the_parameters_of_four_times_d_model(d_model, d_ff):
    assert layers.GatedFeedForward(d_model).d_ff == d_ff
    assert 0 <= 3 * d_ff - 8 * d_model < 3 * 64  # three matrices of d_ff for two of 4 d_model


def test_rms_norm_equals_torch():
    layer = layers.RMSNorm(1e-3, name="norm")
    layer.build((None, 8))
    scale = arrays(randomize(layer))["norm/scale"]
    want = torch.rms_norm(torch.tensor(X, dtype=torch.float64), (8,), torch.tensor(scale), 1e-3)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(X)), want.numpy(), rtol=1e-5)


def test_rms_norm_does_not_round_its_scale_to_bfloat16():
    layer = layers.RMSNorm(dtype="mixed_bfloat16")
    layer.build((None, 64))
    layer.scale.assign(np.full(64, 1.003))  # 1.0 in bfloat16
    x = torch.randn(64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    scale = torch.full((64,), 1.003, dtype=torch.float64)
    want = torch.rms_norm(x.double(), (64,), scale, 1e-6).bfloat16()
    got = layer(ops.cast(x.float().numpy()[None], "bfloat16"))[0]
    got = ops.convert_to_numpy(ops.cast(got, "float32"))
    np.testing.assert_array_equal(got, want.float().numpy())


@pytest.mark.parametrize(
    "layer",
    [
        layers.Attention(8, 4, 2, 0.1),
        layers.GatedFeedForward(8, 12, 0.1),
        layers.RMSNorm(1e-3),
        layers.RotaryEmbedding(8, 500.0),
        layers.TokenEmbedding(11, 8),
        layers.TransformerBlock(8, 4, 2, 12, 0.1, 1e-5, 0.1, True),
        layers.VocabularyHead(11, 8, use_bias=True, soft_cap=30.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.backend_free
def test_config_round_trip(layer):
    serialize = keras.saving.serialize_keras_object
    again = keras.saving.deserialize_keras_object(serialize(layer))
    assert type(again) is type(layer)
    assert serialize(again) == serialize(layer)
    assert set(dir(again)) == set(dir(layer))
