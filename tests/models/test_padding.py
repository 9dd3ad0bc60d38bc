"""Padding anywhere in a row: no token sees it, it sees none, and no mask of all pairs is made."""

import numpy as np
import pytest
import torch
from keras import ops

from keras_llm import models
from keras_llm.layers import attention
from tests.logits import logits_of
from tests.models.llama import to_llama
from tests.models.weights import randomize
from tests.torch_operations import Shapes

SIZES = dict(vocab_size=23, d_model=16, num_layers=2, num_heads=4, max_length=64)
IDS = np.array(
    [
        [0, 0, 0, 5, 3, 8, 2],  # before
        [7, 9, 4, 6, 0, 0, 0],  # after
        [0, 3, 0, 0, 1, 22, 0],  # between
        [0, 0, 0, 0, 0, 0, 0],
        [8, 6, 7, 5, 3, 2, 9],
    ]
)


def build(**options):
    options = {"pad_id": 0, **options}
    return randomize(models.CausalTransformer(**SIZES, **options), scale=0.2)


def alone(llama, row):
    """Hugging Face's logits of a row's tokens without the padding, each at its own position."""
    at = torch.tensor(np.flatnonzero(row))[None]
    return llama(torch.tensor(row)[at], position_ids=at).logits[0]


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.sampled(2)
def test_tokens_get_what_they_would_get_without_padding(heads):
    model = build(num_key_value_heads=heads)
    llama, got = to_llama(model), logits_of(model, IDS)
    for row, logits in zip(IDS[[0, 1, 2, 4]], got[[0, 1, 2, 4]], strict=True):
        want = alone(llama, row).detach().numpy()
        np.testing.assert_allclose(logits[row != 0], want, rtol=1e-5, atol=1e-5)


def test_padding_sees_nothing():
    model = build()
    padding = ops.convert_to_numpy(model(np.zeros((1, 1), int)))[0, 0]
    np.testing.assert_allclose(
        logits_of(model, IDS)[IDS == 0],
        np.broadcast_to(padding, (np.count_nonzero(IDS == 0), 23)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.torch_only
def test_gradients_are_those_of_the_tokens_alone():
    model = build()
    llama, factors = to_llama(model), torch.randn(*IDS.shape, 23)
    (model(IDS) * factors)[torch.tensor(IDS != 0)].sum().backward()
    for row, factor in zip(IDS, factors, strict=True):
        if row.any():
            (alone(llama, row) * factor[torch.tensor(row != 0)]).sum().backward()
    ours = [model.backbone.token_embedding.embeddings.value.grad]
    theirs = [llama.model.embed_tokens.weight.grad]
    for block, layer in zip(model.backbone.blocks, llama.model.layers, strict=True):
        ours.append(block.self_attention.key.kernel.value.grad.T)
        theirs.append(layer.self_attn.k_proj.weight.grad)
        ours.append(block.self_attention_norm.scale.value.grad)
        theirs.append(layer.input_layernorm.weight.grad)
    for mine, hers in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, hers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pad_id", [None, 0])
def test_the_decoder_needs_no_mask(pad_id, monkeypatch):
    masks = []

    def spy(*args, causal=False, segment_ids=None):
        masks.append((len(args), causal))
        return attend(*args, causal=causal)

    attend = attention.attend
    monkeypatch.setattr(attention, "attend", spy)
    build(pad_id=pad_id)(IDS, training=True)
    assert masks == [(3, True)] * 2


@pytest.mark.torch_only
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_nothing_of_the_size_of_all_pairs_is_made(dtype):
    rng = np.random.default_rng(0)
    long, longer = (rng.integers(0, 23, (2, length)) for length in (59, 61))
    decoder = build(dtype=dtype)
    both = models.Seq2SeqTransformer(**SIZES, dtype=dtype)
    with Shapes() as shapes:
        decoder(longer, training=True).float().square().sum().backward()
        inputs = {"encoder_ids": long, "decoder_ids": longer}
        both(inputs, training=True).float().square().sum().backward()
    assert (2, 61, 23) in shapes.seen
    pairs = {(s, t) for s in (59, 61) for t in (59, 61)}
    assert not [shape for shape in shapes.seen if shape[-2:] in pairs]
