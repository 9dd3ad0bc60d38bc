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
from tests.models import keras_hub_tasks, transformers_zoo

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


BAD = [-1, VOCAB, 2**31 - 1, -(2**31)]
KINDS = ["plain", "padding", "documents", "encoder-decoder"]
# What is made wrong, in which model, to what: every two of them.
WRONG = [
    *(("decoder_ids", kind, bad) for kind in KINDS for bad in BAD),
    *(("labels", kind, bad) for kind, bad in zip(KINDS, BAD, strict=True)),
    *(("encoder_ids", "encoder-decoder", bad) for bad in BAD),
]


@pytest.mark.filterwarnings("ignore:train_on_batch has skipped:UserWarning")
@pytest.mark.parametrize(("what", "kind", "bad"), WRONG)
@pytest.mark.quick(5)
def test_an_id_outside_the_vocabulary(what, kind, bad, place):
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


def outside_model(kind):
    """A model from outside, its batch, and the name of the ids that are made wrong."""
    if kind == "llama":
        model = models.from_transformers(transformers_zoo.make(kind))
        x = {"input_ids": GOOD}
        y, name = GOOD, "input_ids"
    else:
        task = keras_hub_tasks.task(kind)
        model = models.from_keras_hub(task)
        x, y = keras_hub_tasks.batch(task)
        name = "encoder_token_ids" if kind == "bart" else "token_ids"
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=-100)
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model, x, y, name


def with_wrong_ids(x, name, bad):
    ids = np.array(x[name])
    ids[1, 2] = bad
    return x | {name: ids}


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_ids_of_kerashubs_models_are_checked_before_they_are_copied(kind, place):
    model, x, y, name = outside_model(kind)
    wrong = with_wrong_ids(x, name, 99)
    for call in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match=rf"{name} must be in .*99 at position \(1, 2\)"):
            call(wrong, y)
    assert np.isfinite(model.test_on_batch(x, y))


@pytest.mark.cuda_only
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_ids_of_arrays_are_checked_before_they_are_copied(kind):
    model, x, y, name = outside_model(kind)
    with pytest.raises(ValueError, match=f"{name} must be in"):
        model.fit(with_wrong_ids(x, name, 99), y, verbose=0)
    assert np.isfinite(model.evaluate(x, y, verbose=0))


def test_the_batches_of_a_generator_are_read_before_they_are_copied():
    model, x, y, name = outside_model("llama")
    wrong = with_wrong_ids(x, name, 99)
    for batch in ((wrong, y), {**wrong, "labels": y}):
        batches, _ = model.reader.data((each for each in [batch]), None, -100, None, False)
        with pytest.raises(ValueError, match="input_ids must be in"):
            next(batches)


@pytest.mark.filterwarnings("ignore:train_on_batch has skipped:UserWarning")
@pytest.mark.parametrize("bad", [-1, keras_hub_tasks.V, 2**31 - 1])
@pytest.mark.parametrize("kind", ["gpt2", "bart"])
@pytest.mark.quick(4)
def test_ids_that_only_the_device_has_make_the_loss_of_kerashubs_models_nan(kind, bad, place):
    model, x, y, name = outside_model(kind)

    def on_device(inputs):
        device = "cuda" if place == "cuda" else "cpu"
        return {key: torch.as_tensor(value, device=device) for key, value in inputs.items()}

    wrong = on_device(with_wrong_ids(x, name, bad))
    for _ in range(3):
        assert np.isnan(model.train_on_batch(wrong, y, return_dict=True)["loss"])
    if bad == keras_hub_tasks.V:
        assert np.isfinite(outside_model(kind)[0].test_on_batch(on_device(x), y))
    if place == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("bad", [-1, transformers_zoo.VOCAB, 2**31 - 1])
@pytest.mark.parametrize("name", ["llama", "bart"])
@pytest.mark.quick(4)
@pytest.mark.filterwarnings("ignore:train_on_batch has skipped:UserWarning")
def test_ids_that_only_the_device_has_make_the_loss_of_a_model_of_transformers_nan(
    name, bad, place
):
    device = "cuda" if place == "cuda" else "cpu"
    good = {k: v.to(device) for k, v in transformers_zoo.batch(name).items()}
    wrong = {**good, "input_ids": good["input_ids"].clone()}
    wrong["input_ids"][1, 2] = bad
    model = models.from_transformers(transformers_zoo.make(name))
    model.compile(keras.optimizers.SGD(0.0), losses.MaskedSparseCategoricalCrossentropy())
    assert np.isfinite(model.train_on_batch(good))
    for call in (model.train_on_batch, model.test_on_batch):
        assert np.isnan(call(wrong))
    logits = model({k: v for k, v in wrong.items() if k != "labels" or name == "bart"})
    assert logits[1].isnan().all() and logits[[0, 2, 3]].isfinite().all()
    if place == "cuda":
        torch.cuda.synchronize()
