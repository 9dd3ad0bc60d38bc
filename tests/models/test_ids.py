"""Ids of every integer dtype, with special ids that the dtype cannot hold."""

import numpy as np
import pytest

from keras_llm.models import CausalTransformer, Seq2SeqTransformer
from tests.logits import logits_of
from tests.models.weights import randomize

# In uint8, 299 would be 43 and 298 would be 42: ordinary ids here.
IDS = np.array([[43, 5, 42, 7], [42, 1, 43, 9]])
SIZES = dict(vocab_size=300, d_model=8, num_layers=1, num_heads=2, max_length=8)
DTYPES = ["uint8", "int8", "int16", "uint16", "uint32"]


logits = logits_of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sampled(4)
def test_special_ids_that_the_dtype_cannot_hold(dtype):
    plain = randomize(CausalTransformer(**SIZES))
    model = CausalTransformer(**SIZES, pad_id=299, document_end_id=298)
    model.set_weights(plain.get_weights())
    # None of the ids is padding or an end, so neither option changes anything.
    want = logits(plain, IDS)
    np.testing.assert_allclose(logits(model, IDS.astype(dtype)), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sampled(4)
def test_the_padding_of_a_source_that_the_dtype_cannot_hold(dtype):
    plain = randomize(Seq2SeqTransformer(**SIZES, pad_id=None))
    model = Seq2SeqTransformer(**SIZES, pad_id=299)
    model.set_weights(plain.get_weights())
    want = logits(plain, {"encoder_ids": IDS, "decoder_ids": IDS})
    small = IDS.astype(dtype)
    got = logits(model, {"encoder_ids": small, "decoder_ids": small})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "uint64"])
@pytest.mark.sampled(4)
def test_prompts_of_every_dtype(dtype):
    model = randomize(CausalTransformer(**SIZES, pad_id=299))
    want = model.generate(IDS, max_new_tokens=3)
    np.testing.assert_array_equal(model.generate(IDS.astype(dtype), max_new_tokens=3), want)
