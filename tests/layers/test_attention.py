"""Attention against float64 numpy, with every kind of mask and of heads."""

import numpy as np
import pytest
import torch
from keras import ops

from keras_llm.layers import Attention, KeyValues
from keras_llm.layers.attention import causal_mask
from tests.models.weights import arrays, randomize

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, 16)).astype("float32")
SOURCE = RNG.standard_normal((3, 6, 16)).astype("float32")
KEEP = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)[:, None, None, :]

MASKS = {
    "none": None,
    "pairs": np.tril(np.ones((5, 5), bool), 1) & KEEP,
    "keys": KEEP[..., ::-1].copy(),  # with causal, the first tokens of a row see nothing
    "queries": KEEP.transpose(0, 1, 3, 2).copy(),
}


def expected(layer, x, source, mask):
    """softmax(Q K^T / sqrt(head_dim)) V, head by head; zeros for a query that may see nothing."""
    w = arrays(layer)
    width, heads = layer.head_dim, []
    for head in range(layer.num_heads):
        shared = head * layer.num_key_value_heads // layer.num_heads
        own, theirs = (slice(i * width, (i + 1) * width) for i in (head, shared))
        q = x @ w["query/kernel"][:, own]
        k, v = source @ w["key/kernel"][:, theirs], source @ w["value/kernel"][:, theirs]
        weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(width)) * mask
        heads.append(weights @ v / np.maximum(weights.sum(-1, keepdims=True), 1e-300))
    return np.concatenate(heads, axis=-1) @ w["output/kernel"]


def built(num_key_value_heads):
    layer = Attention(16, 4, num_key_value_heads)
    layer.build()
    return randomize(layer)


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.sampled(5)
def test_self_attention(num_key_value_heads, causal, mask):
    layer, mask = built(num_key_value_heads), MASKS[mask]
    allowed = np.ones((3, 5, 5), bool)
    if causal:
        allowed &= np.tril(np.ones((5, 5), bool))
    if mask is not None:
        allowed &= mask[:, 0]
    actual = layer(X, layer.keys_values(X), attention_mask=mask, causal=causal)
    want = expected(layer, X, X, allowed)
    np.testing.assert_allclose(ops.convert_to_numpy(actual), want, rtol=1e-4, atol=1e-5)


def test_attention_to_a_source_of_another_length():
    layer = built(2)
    keep = np.arange(6) < np.array([[6], [2], [0]])
    actual = layer(X, layer.keys_values(SOURCE), attention_mask=keep[:, None, None, :])
    want = expected(layer, X, SOURCE, keep[:, None, :])
    np.testing.assert_allclose(ops.convert_to_numpy(actual), want, rtol=1e-4, atol=1e-5)
    assert not ops.convert_to_numpy(actual)[2].any()


@pytest.mark.torch_only
def test_nothing_to_see_has_a_gradient_of_zero_and_not_nan():
    layer = built(2)
    x = torch.tensor(X, requires_grad=True)
    layer(x, layer.keys_values(x), attention_mask=KEEP).sum().backward()
    gradients = [x.grad, *(w.value.grad for w in layer.trainable_weights)]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert not x.grad[2].any() and x.grad[0].any()


def test_a_cache_is_written_where_it_is_told():
    cache = KeyValues.empty(batch=1, capacity=5, num_heads=2, head_dim=3, dtype="float32")
    ones = ops.ones((1, 2, 2, 3))
    written = cache.write(KeyValues(ones, 2 * ones), cache_position=1)
    key, value = (ops.convert_to_numpy(x)[0, :, 0, 0].tolist() for x in written)
    assert (key, value) == ([0, 1, 1, 0, 0], [0, 2, 2, 0, 0])


def test_causal_mask():
    np.testing.assert_array_equal(
        ops.convert_to_numpy(causal_mask(length=2, source_length=4)),
        [[True, False, False, False], [True, True, False, False]],
    )


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((10, 4), "d_model must be a multiple of num_heads. Received: d_model=10, num_heads=4"),
        (
            (16, 4, 3),
            "multiple of num_key_value_heads. Received: num_heads=4, num_key_value_heads=3",
        ),
    ],
)
@pytest.mark.backend_free
def test_heads_that_do_not_divide_are_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        Attention(*sizes)
