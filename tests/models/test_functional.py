"""Models and their parts in Keras's functional and sequential API, with lengths still open."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm import models

IDS = np.random.default_rng(0).integers(1, 23, (3, 6))


def causal():
    model = models.CausalTransformer(23, 16, 1, 2, max_length=8, pad_id=0)
    return model, IDS, keras.Input((None,), dtype="int32")


def seq2seq():
    model = models.Seq2SeqTransformer(23, 16, 1, 2, max_length=8, target_vocab_size=19)
    names = ("encoder_ids", "decoder_ids")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    return model, {"encoder_ids": IDS, "decoder_ids": IDS[:, :4] % 19}, inputs


@pytest.mark.parametrize("build", [causal, seq2seq])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.sampled(3)
@pytest.mark.quick(3)
def test_symbolic_ids_of_any_length(build, whole):
    model, ids, inputs = build()
    outputs = model(inputs) if whole else model.head(model.backbone(inputs))
    functional = keras.Model(inputs, outputs)
    want = ops.convert_to_numpy(model(ids))
    assert functional.output_shape == (None, None, want.shape[-1])
    got = ops.convert_to_numpy(functional(ids))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    functional.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    functional.fit(ids, np.ones(want.shape[:2]), verbose=0)
    assert not np.allclose(ops.convert_to_numpy(model(ids)), want)


def test_sequential():
    model, ids, _ = causal()
    sequential = keras.Sequential(
        [keras.Input((None,), dtype="int32"), model.backbone, keras.layers.Dense(5)]
    )
    assert sequential.output_shape == (None, None, 5)
    assert tuple(sequential(ids).shape) == (3, 6, 5)


def test_the_dtype_is_the_models():
    model = models.CausalTransformer(23, 16, 1, 2, max_length=8, dtype="mixed_bfloat16")
    assert model(keras.Input((None,), dtype="int32")).dtype == "bfloat16"


@pytest.mark.parametrize("build", [causal, seq2seq])
@pytest.mark.backend_free
def test_too_long_is_known_at_once(build):
    model, _, inputs = build()
    long = keras.tree.map_structure(lambda x: keras.Input((9,), dtype="int32"), inputs)
    with pytest.raises(ValueError, match=r"at most max_length=8 tokens long\. Received: length=9"):
        model(long)


def test_a_call_of_ones_own_has_the_shape_that_it_returns():
    @keras.saving.register_keras_serializable(package="tests")
    class LastToken(models.LanguageModel):
        def call(self, inputs, training=None):
            return super().call(inputs, training=training)[:, -1]

    model = LastToken(keras.layers.Embedding(23, 4), keras.layers.Dense(23))
    model(IDS)
    assert tuple(model(keras.Input((6,), dtype="int32")).shape) == (None, 23)
