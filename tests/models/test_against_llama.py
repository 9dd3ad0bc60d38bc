"""`CausalTransformer` against Hugging Face's Llama with the same weights."""

import numpy as np
import pytest
import torch

from keras_llm.models import CausalTransformer
from tests.logits import logits_of
from tests.models.llama import to_llama
from tests.models.weights import randomize

SIZES = [
    dict(num_heads=4, tie_embeddings=True),
    dict(num_heads=4, num_key_value_heads=2, tie_embeddings=False, rope_theta=500.0, d_ff=24),
    dict(num_heads=4, num_key_value_heads=1, epsilon=1e-2),
]


def build(**options):
    return randomize(
        CausalTransformer(vocab_size=37, d_model=16, num_layers=2, max_length=64, **options),
        scale=0.2,
    )


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.sampled(3)
@pytest.mark.quick(2)
def test_logits(sizes):
    model = build(**sizes)
    ids = np.random.default_rng(1).integers(0, 37, (3, 20))
    with torch.no_grad():
        expected = to_llama(model)(torch.tensor(ids)).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(model, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.sampled(3)
@pytest.mark.quick(2)
def test_greedy_generation(sizes):
    model = build(**sizes)
    prompt = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    expected = to_llama(model).generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(prompt.shape, dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
    )
    np.testing.assert_array_equal(model.generate(prompt, max_new_tokens=12), expected.numpy())
