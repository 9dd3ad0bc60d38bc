"""What JAX is told and where it runs: int64, float16 on a CPU, without a compiler."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models
from keras_llm.backend.attention import attend

pytestmark = pytest.mark.jax_only

VOCAB, D_MODEL, RATE = 9, 8, 0.5
RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, VOCAB, (2, 4, 5))


def build(**arguments):
    """A table of vectors and a matrix, whose gradients PyTorch finds in float64 too."""
    keras.utils.set_random_seed(0)
    body, head = keras.layers.Embedding(VOCAB, D_MODEL), keras.layers.Dense(VOCAB, use_bias=False)
    model = models.LanguageModel(body, head)
    model(X)
    measured = [metrics.Perplexity(), metrics.MaskedTokenAccuracy()]
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)
    optimizer = keras.optimizers.SGD(
        RATE, gradient_accumulation_steps=arguments.pop("accumulation", None)
    )
    model.compile(optimizer, loss, metrics=measured, **arguments)
    return model


def in_float64(weights):
    """Loss and weights after one step, by PyTorch in float64."""
    table, kernel = (torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in weights)
    logits = (table[torch.tensor(X)] @ kernel).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(Y).flatten(), ignore_index=0)
    loss.backward()
    return float(loss.detach()), [(t - RATE * t.grad).detach().numpy() for t in (table, kernel)]


@pytest.mark.parametrize("arguments", [{}, {"micro_batch_size": 2}, {"run_eagerly": True}])
def test_training_with_int64(arguments):
    """Where JAX is told to have it, ids and places are of int64."""
    import jax

    with jax.enable_x64(True):
        model = build(**arguments)
        loss, after = in_float64(model.get_weights())
        logs = model.train_on_batch(X, Y, return_dict=True)
    assert logs["loss"] == pytest.approx(loss, rel=1e-5)
    assert logs["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    for ours, theirs in zip(model.get_weights(), after, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_generating_with_int64():
    """Chosen ids are of int64 there, and were written among those of int32."""
    import jax

    with jax.enable_x64(True):
        model = models.CausalTransformer(VOCAB, D_MODEL, 1, 2, max_length=8)
        ids = [1, 2]
        for _ in range(3):
            ids.append(int(model.predict(np.array([ids]), verbose=0)[0, -1].argmax()))
        assert model.generate([1, 2], max_new_tokens=3).tolist() == ids


@pytest.mark.parametrize("shared", [1, 2])
def test_attention_of_float16_on_a_cpu(shared):
    """Compiled, it failed: The precision 'F16_F16_F32' is not supported by dot_general on CPU."""
    import jax

    shapes = [(2, 5, 2, 4), (2, 5, shared, 4), (2, 5, shared, 4), (2, 5, 2, 4)]
    *inputs, upstream = [RNG.normal(size=shape).astype("float16") for shape in shapes]

    def output(*inputs):
        return attend(*inputs, causal=True)

    def total(*inputs):
        return (output(*inputs).astype("float32") * upstream).sum()

    got = [jax.jit(output)(*inputs), *jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs)]
    assert {str(x.dtype) for x in got} == {"float16"}

    tensors = [torch.tensor(x.astype("float64"), requires_grad=True) for x in inputs]
    query, key, value = (t.expand(-1, -1, 2, -1).swapaxes(1, 2) for t in tensors)
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    want = want.swapaxes(1, 2)
    want.backward(torch.tensor(upstream.astype("float64")))
    wanted = [want.detach(), *(t.grad for t in tensors)]
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(ours, "float64"), theirs, atol=4e-3)


@pytest.mark.parametrize("arguments", [{}, {"micro_batch_size": 2}, {"accumulation": 2}])
def test_a_step_without_a_compiler_compiles_nothing_again(arguments):
    """Each step had another function as the body of its loop."""
    import jax

    compiled = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    model = build(run_eagerly=True, **arguments)
    for _ in range(4):
        model.train_on_batch(X, Y)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 3)(2.0)
        assert len(compiled) == 1
        for _ in range(2):
            model.train_on_batch(X, Y)
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
