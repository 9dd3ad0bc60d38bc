"""Models whose layers Keras has quantized, or given low-rank adapters."""

import gc

import keras
import numpy as np
import pytest
import torch
from keras import ops

from keras_llm import losses
from keras_llm.models import CausalTransformer, Seq2SeqTransformer
from tests.models.weights import randomize

SIZES = dict(vocab_size=23, d_model=16, num_layers=1, num_heads=2, max_length=12)
IDS = np.array([[3, 1, 4, 1], [5, 9, 2, 6]])
MODELS = {
    CausalTransformer: IDS,
    Seq2SeqTransformer: {"encoder_ids": IDS, "decoder_ids": IDS},
}


@pytest.fixture(autouse=True, scope="module")
def freeze():
    """Keras collects garbage for each weight that it replaces: not among what is here already."""
    gc.collect()
    gc.freeze()


def logits(model, inputs):
    return ops.convert_to_numpy(model(inputs))


def quantized(cls):
    """A model that was never called, quantized; Keras says which layers it cannot."""
    model = randomize(cls(**SIZES), scale=0.2)
    with pytest.warns(UserWarning, match="does not have a `quantize` method implemented") as seen:
        model.quantize("int8")
    assert any("VocabularyHead" in str(warning.message) for warning in seen)
    return model


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize`")
@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.sampled(2)
@pytest.mark.quick(2)
def test_a_quantized_model_is_saved_and_loaded(cls, tmp_path):
    want = logits(randomize(cls(**SIZES), scale=0.2), MODELS[cls])
    model = quantized(cls)
    got = logits(model, MODELS[cls])
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits(loaded, MODELS[cls]), got)


def test_generation_sees_low_rank_adapters():
    model = randomize(CausalTransformer(**SIZES))
    before = logits(model, IDS)
    for block in model.backbone.blocks:
        for projection in (block.self_attention.query, block.self_attention.value):
            projection.enable_lora(rank=2)
            projection.lora_kernel_b.assign(np.ones(projection.lora_kernel_b.shape))
    after = logits(model, IDS)
    assert np.abs(after - before).max() > 0.1
    new = model.generate(IDS, max_new_tokens=1)[:, -1]
    np.testing.assert_array_equal(new, after[:, -1].argmax(axis=-1))


@pytest.mark.torch_only
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize`")
@pytest.mark.filterwarnings("ignore::keras_llm.checks.sanity_warning.SanityWarning")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_what_is_below_a_quantized_layer_has_the_gradient_that_keras_defines(
    jit_compile, monkeypatch
):
    monkeypatch.setattr("keras_llm.training.torch.compile_policy.compiled", lambda module: module)
    model = randomize(CausalTransformer(**SIZES), scale=0.2)
    model.quantize("int8")
    loss = losses.MaskedSparseCategoricalCrossentropy()
    model.compile(keras.optimizers.SGD(0.5), loss, jit_compile=jit_compile)
    tensors = [variable.value for variable in model.trainable_variables]
    labels = torch.tensor(IDS[:, ::-1].copy())
    for _ in range(3):
        # By Keras, layer by layer.
        truth = torch.nn.functional.cross_entropy(model(IDS).flatten(0, 1), labels.ravel())
        gradients = torch.autograd.grad(truth, tensors)
        wanted = [t.detach() - 0.5 * g for t, g in zip(tensors, gradients, strict=True)]
        model.train_on_batch(IDS, labels.numpy())
        for tensor, want in zip(tensors, wanted, strict=True):
            torch.testing.assert_close(tensor.detach(), want, rtol=1e-5, atol=1e-6)
    # A compiled pass has the gradient in it.
    assert ("is quantised" in model.step.describe().why_layers) != jit_compile
