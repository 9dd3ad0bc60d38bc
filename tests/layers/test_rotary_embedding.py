"""Rotary positions against complex rotations in float64 and against Hugging Face's Llama."""

import numpy as np
import pytest
import torch
from keras import ops
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from keras_llm.layers import RotaryEmbedding
from keras_llm.layers.rotary_embedding import rotate

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 7, 3, 10)).astype("float32")  # batch, length, heads, head_dim


def rotated(x, positions, theta=10_000.0):
    cos_sin = RotaryEmbedding(x.shape[-1], theta)(positions)
    return ops.convert_to_numpy(rotate(ops.convert_to_tensor(x), cos_sin))


def test_a_plane_is_a_complex_number_times_a_unit():
    theta, positions = 100.0, np.array([[0, 1, 2, 3, 50, 51, 200], [5, 4, 3, 2, 1, 0, 9]])
    frequencies = theta ** (-np.arange(5) / 5)
    units = np.exp(1j * positions[:, :, None, None] * frequencies)
    expected = (X[..., :5] + 1j * X[..., 5:]) * units
    expected = np.concatenate([expected.real, expected.imag], axis=-1)
    np.testing.assert_allclose(rotated(X, positions, theta), expected, rtol=1e-4, atol=2e-5)


def test_equals_hugging_face():
    config = LlamaConfig(hidden_size=30, num_attention_heads=3)
    positions = torch.arange(7)[None]
    x = torch.tensor(X).transpose(1, 2)
    cos, sin = LlamaRotaryEmbedding(config)(x, positions)
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    expected = expected.transpose(1, 2).numpy()
    np.testing.assert_allclose(rotated(X, np.arange(7)), expected, rtol=1e-6, atol=1e-6)


def test_products_depend_on_the_distance_alone():
    def products(shift):
        turned = rotated(X, np.arange(7) + shift)
        return np.einsum("bthd,bshd->bhts", turned, turned)

    np.testing.assert_allclose(products(100), products(0), rtol=1e-4, atol=1e-4)


def test_an_odd_head_is_an_error():
    with pytest.raises(ValueError, match=r"head_dim .* must be even.* Received: head_dim=5"):
        RotaryEmbedding(5)
