"""Ids outside the vocabulary on a GPU: the loss is NaN, and the device goes on.

A device-side assert would end the process's use of the GPU. Without a GPU, the library is told that
values cannot be seen, and the CPU's own checks of an index would raise an error.
"""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models
from keras_llm.backend.torch import tensors

pytestmark = pytest.mark.torch_only

VOCAB = 11
GOOD = np.random.default_rng(0).integers(1, VOCAB, (4, 6))
PLACES = ["host", pytest.param("cuda", marks=pytest.mark.cuda_only)]


@pytest.fixture(params=PLACES)
def place(request, monkeypatch):
    if request.param == "host":
        monkeypatch.setattr(tensors, "is_on_host", lambda tensor: False)
    return request.param


def with_one(bad):
    ids = GOOD.copy()
    ids[1, 2] = bad
    return ids


def build(kind):
    keras.utils.set_random_seed(0)
    if kind == "encoder-decoder":
        model = models.Seq2SeqTransformer(VOCAB, 16, 1, 2, max_length=8)
    else:
        options = {"padding": {"pad_id": 0}, "documents": {"document_end_id": 2}}.get(kind, {})
        model = models.CausalTransformer(VOCAB, 16, 1, 2, max_length=8, **options)
    model.compile(
        optimizer=keras.optimizers.SGD(0.0),
        loss=losses.MaskedSparseCategoricalFocalCrossentropy(2.0, [0.5] * VOCAB, ignore_index=0),
        metrics=[
            metrics.Perplexity(),
            metrics.MaskedTokenAccuracy(top_k=2),
            metrics.BitsPerByte(np.ones(VOCAB, int)),
        ],
    )
    return model


def inputs(kind, ids, of="decoder_ids"):
    if kind != "encoder-decoder":
        return ids
    return {"encoder_ids": GOOD, "decoder_ids": GOOD} | {of: ids}


@pytest.mark.parametrize("bad", [-1, VOCAB, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("kind", ["plain", "padding", "documents", "encoder-decoder"])
@pytest.mark.parametrize("what", ["encoder_ids", "decoder_ids", "labels"])
def test_an_id_outside_the_vocabulary(what, kind, bad, place):
    if what == "encoder_ids" and kind != "encoder-decoder":
        return
    model = build(kind)
    x = inputs(kind, GOOD if what == "labels" else with_one(bad), what)
    y = with_one(bad) if what == "labels" else GOOD
    # A graph from the second batch on.
    for _ in range(3):
        assert np.isnan(model.train_on_batch(x, y, return_dict=True)["loss"])
    if place == "cuda" or bad == VOCAB:
        good = build(kind).evaluate(inputs(kind, GOOD), GOOD, verbose=0)
        assert np.isfinite(good).all()
    if place == "cuda":
        torch.cuda.synchronize()
