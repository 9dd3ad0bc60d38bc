"""The embedding and the head: look-ups, ids that are not there, tying."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm.layers import TokenEmbedding, VocabularyHead
from tests.models.weights import randomize


def built(layer):
    layer.build()
    return randomize(layer)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_looks_up_rows(dtype):
    layer = built(TokenEmbedding(7, 4))
    ids = np.array([[0, 6], [3, 3]], dtype)
    want = layer.embeddings.numpy()[ids]
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(ids)), want)


@pytest.mark.parametrize("wrong", [7, -1])
def test_an_id_outside_the_vocabulary_is_an_error(wrong):
    with pytest.raises(ValueError, match=rf"\[0, 7\), the vocabulary. Received: {wrong}"):
        built(TokenEmbedding(7, 4))(np.array([[0, wrong]]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bool"])
def test_ids_that_are_not_integers_are_an_error(dtype):
    with pytest.raises(TypeError, match="ids must be integers"):
        built(TokenEmbedding(7, 4))(np.array([[0, 1]], dtype))


def in_a_graph(layer, ids):
    """The layer's output where a graph hides the values of the ids."""
    if keras.backend.backend() == "torch":
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        with torch.no_grad():
            graph = make_fx(lambda x: layer(x), tracing_mode="fake", _allow_non_fake_inputs=True)
            return graph(torch.zeros(ids.shape, dtype=torch.int64))(torch.tensor(ids))
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(lambda x: layer(x))(ids)
    import tensorflow as tf

    return tf.function(lambda x: layer(x))(tf.constant(ids))


def test_where_values_are_hidden_a_wrong_id_is_nan_and_harms_no_other():
    layer = built(TokenEmbedding(7, 4))
    got = ops.convert_to_numpy(in_a_graph(layer, np.array([[0, 7, 6], [-1, 3, 1000]])))
    assert np.isnan(got).all(axis=-1).tolist() == [[False, True, False], [True, False, True]]
    table = layer.embeddings.numpy()
    np.testing.assert_array_equal(got[[0, 0, 1], [0, 2, 1]], table[[0, 6, 3]])


def test_mixed_precision_casts_vectors_and_keeps_the_table():
    layer = built(TokenEmbedding(7, 4, dtype="mixed_bfloat16"))
    vectors = layer(np.array([1]))
    assert keras.backend.standardize_dtype(vectors.dtype) == "bfloat16"
    assert layer.embeddings.dtype == "float32"


@pytest.mark.parametrize("soft_cap", [None, 0.5])
@pytest.mark.parametrize("tied, use_bias", [(True, False), (True, True), (False, True)])
@pytest.mark.sampled(3)
def test_head_is_a_product_perhaps_with_a_cap(tied, use_bias, soft_cap):
    embedding = built(TokenEmbedding(7, 4))
    tied_to = embedding if tied else None
    head = built(VocabularyHead(7, 4, tied_to=tied_to, use_bias=use_bias, soft_cap=soft_cap))
    head.set_weights([10 * weight.numpy() + 0.1 for weight in head.weights])
    assert len(head.weights) == (not tied) + use_bias
    hidden = np.random.default_rng(0).standard_normal((2, 3, 4)).astype("float32")
    kernel = embedding.embeddings.numpy().T if tied else head.weights[0].numpy()
    want = hidden @ kernel + (head.bias.numpy() if use_bias else 0.0)
    want = want if soft_cap is None else soft_cap * np.tanh(want / soft_cap)
    np.testing.assert_allclose(ops.convert_to_numpy(head(hidden)), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ops.convert_to_numpy(head.kernel), kernel)


@pytest.mark.parametrize("soft_cap", [0, -30.0, float("inf"), float("nan"), True, "30"])
@pytest.mark.backend_free
def test_a_soft_cap_is_a_positive_number(soft_cap):
    with pytest.raises(ValueError, match=r"soft_cap must be a number in \(0, inf\). Received: "):
        VocabularyHead(7, 4, soft_cap=soft_cap)


@pytest.mark.backend_free
def test_a_tied_head_cannot_be_saved_alone():
    with pytest.raises(ValueError, match="save the model that has both"):
        VocabularyHead(7, 4, tied_to=TokenEmbedding(7, 4)).get_config()


@pytest.mark.backend_free
def test_a_tied_head_must_have_the_embedding_s_sizes():
    with pytest.raises(ValueError, match=r"vocab_size=7 and d_model=4. .* d_model=5"):
        VocabularyHead(7, 4, tied_to=TokenEmbedding(7, 5))
