"""`export`: a SavedModel, which TensorFlow runs without Keras, against references of others."""

import numpy as np
import pytest
import torch

from keras_llm.models import CausalTransformer, Seq2SeqTransformer
from tests.models import encoder_decoder
from tests.models.llama import to_llama
from tests.models.weights import randomize

pytestmark = [pytest.mark.not_torch, pytest.mark.not_jax]

SIZES = dict(vocab_size=23, d_model=16, num_layers=1, num_heads=2, max_length=12)
IDS = np.random.default_rng(0).integers(1, 23, (3, 7)).astype("int32")


def exported(model, path):
    import tensorflow as tf

    model.export(str(path), verbose=False)
    return tf.saved_model.load(str(path))


@pytest.mark.parametrize("rows, length", [(3, 7), (1, 2)])
def test_a_causal_model_is_llama_for_ids_of_any_length(tmp_path, rows, length):
    model = randomize(CausalTransformer(**SIZES), scale=0.25)
    saved, ids = exported(model, tmp_path / "saved"), IDS[:rows, :length]
    with torch.no_grad():
        want = to_llama(model)(torch.tensor(ids).long()).logits
    np.testing.assert_allclose(saved.serve(ids), want, rtol=1e-4, atol=1e-5)


def test_an_encoder_decoder_reads_both_ids(tmp_path):
    model = randomize(Seq2SeqTransformer(**SIZES), scale=0.25)
    saved, target = exported(model, tmp_path / "saved"), IDS[:, :4]
    got = saved.serve({"encoder_ids": IDS, "decoder_ids": target}).numpy()
    for row, source, given in zip(got, IDS, target, strict=True):
        want = encoder_decoder.logits(model, source, given)
        np.testing.assert_allclose(row, want, rtol=1e-4, atol=1e-5)
