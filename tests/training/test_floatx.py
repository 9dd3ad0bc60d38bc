"""`keras.config.set_floatx`: Keras makes integers and constants as narrow as its floats.

In float16 positions and rows would be counted in int16.
"""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models
from keras_llm.models.causal_backbone import reordered
from tests.models.llama import to_llama
from tests.models.weights import randomize

VOCAB, PAD = 23, 0
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (14, 6))
Y = np.where(RNG.random(X.shape) < 0.4, PAD, RNG.integers(1, VOCAB, X.shape))


@pytest.fixture(
    params=[pytest.param("float64", marks=pytest.mark.not_jax), "float16"], autouse=True
)
def floatx(request):
    policy, before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy("float32")
    yield request.param
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


def test_an_update_of_several_passes_is_that_of_one_batch():
    model = models.LanguageModel(
        keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB, use_bias=False)
    )
    model(X)
    start = model.get_weights()
    table, kernel = (torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in start)
    loss = torch.nn.functional.cross_entropy(
        (table[torch.tensor(X)] @ kernel).flatten(0, 1), torch.tensor(Y).flatten(), ignore_index=PAD
    )
    gradients = torch.autograd.grad(loss, (table, kernel))
    model.compile(
        keras.optimizers.SGD(0.5, gradient_accumulation_steps=2),
        losses.MaskedSparseCategoricalCrossentropy(PAD),
        metrics=[metrics.Perplexity()],
        micro_batch_size=3,
    )
    history = model.fit(X, Y, batch_size=7, shuffle=False, verbose=0).history
    assert history["perplexity"][0] == pytest.approx(float(loss.detach().exp()), rel=1e-5)
    for got, before, gradient in zip(model.get_weights(), start, gradients, strict=True):
        np.testing.assert_allclose(got, before - 0.5 * gradient.numpy(), rtol=1e-4, atol=1e-6)


def test_a_transformer_is_llama_and_writes_its_tokens():
    sizes = dict(vocab_size=VOCAB, d_model=16, num_layers=1, num_heads=2, max_length=12)
    model = randomize(models.CausalTransformer(**sizes), scale=0.25)
    llama, ids = to_llama(model), X[:2].tolist()
    with torch.no_grad():
        want = llama(torch.tensor(ids)).logits
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(model(np.array(ids))), want, rtol=1e-4, atol=1e-5
        )
        for row in ids:
            written = list(row)
            for _ in range(4):
                written.append(int(llama(torch.tensor([written])).logits[0, -1].argmax()))
            assert model.generate(row, max_new_tokens=4).tolist() == written


def test_more_rows_than_int16_counts_are_put_in_order():
    x = RNG.normal(size=(200, 200, 1)).astype("float32")
    order = np.argsort(RNG.random((200, 200)), axis=1).astype("int32")
    got = reordered(keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(order))
    want = np.take_along_axis(x, order[..., None], axis=1)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(got), want)
