"""A plain keras.Model's `fit` with our optimizers, on every backend, against PyTorch's loop."""

import keras
import numpy as np
import pytest
import torch
from transformers.optimization import Adafactor as HuggingFaceAdafactor

from keras_llm import optimizers, schedules

IDS = np.random.default_rng(0).integers(0, 7, (8, 5))
TARGETS = np.random.default_rng(1).normal(size=(8, 5, 3)).astype("float32")
EPOCHS = 6


def model():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 4, name="embedding"),
            keras.layers.Dense(3, name="head"),
        ]
    )


def torch_model(net):
    twin = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 3)).double()
    embeddings, kernel, bias = net.get_weights()
    twin[0].weight.data = torch.tensor(embeddings).double()
    twin[1].weight.data = torch.tensor(kernel.T).double()
    twin[1].bias.data = torch.tensor(bias).double()
    return twin


def train_in_torch(twin, optimizer, max_norm=None, scheduler=None):
    for _ in range(EPOCHS):
        for start in (0, 4):
            optimizer.zero_grad()
            rows = slice(start, start + 4)
            outputs = twin(torch.tensor(IDS[rows]))
            torch.nn.functional.mse_loss(outputs, torch.tensor(TARGETS[rows]).double()).backward()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()


def fit(net, optimizer, jit_compile="auto", **arguments):
    arguments = {"batch_size": 4, "epochs": EPOCHS, "shuffle": False, "verbose": 0} | arguments
    net.compile(optimizer, "mse", jit_compile=jit_compile)
    return net.fit(IDS, TARGETS, **arguments)


def assert_same_weights(net, twin):
    theirs = [twin[0].weight, twin[1].weight.T, twin[1].bias]
    for ours, their in zip(net.get_weights(), theirs, strict=True):
        np.testing.assert_allclose(ours, their.detach().numpy(), rtol=0, atol=3e-6)


# On JAX and TensorFlow `True` compiles the whole step, the update included.
compiled = pytest.mark.parametrize(
    "jit", [False] if keras.backend.backend() == "torch" else [False, True]
)


@compiled
def test_adamw_with_schedule_and_clipping(jit):
    net = model()
    twin = torch_model(net)
    fit(
        net,
        optimizers.AdamW(
            schedules.WarmupLinearDecay(0.1, 4, 16), weight_decay=0.1, global_clipnorm=0.05
        ),
        jit,
    )
    matrices, bias = [twin[0].weight, twin[1].weight], [twin[1].bias]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": bias, "weight_decay": 0.0}], lr=0.1, weight_decay=0.1
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / 4 if step < 4 else (16 - step) / 12
    )
    train_in_torch(twin, optimizer, max_norm=0.05, scheduler=scheduler)
    assert_same_weights(net, twin)


@compiled
def test_adafactor(jit):
    net = model()
    twin = torch_model(net)
    fit(net, optimizers.Adafactor(beta_1=0.5), jit)
    train_in_torch(twin, HuggingFaceAdafactor(twin.parameters(), beta1=0.5))
    assert_same_weights(net, twin)


@pytest.mark.parametrize("cls", [optimizers.AdamW, optimizers.Adafactor])
@pytest.mark.sampled(2)
def test_frozen_variables_have_no_state_and_stay(cls):
    net = model()
    net.get_layer("embedding").trainable = False
    before = net.get_layer("embedding").get_weights()[0]
    fit(net, cls(weight_decay=0.1))
    np.testing.assert_array_equal(net.get_layer("embedding").get_weights()[0], before)
    assert not any("embedding" in variable.path for variable in net.optimizer.variables)
    assert not net.optimizer.decays(net.get_layer("embedding").embeddings)


def test_the_first_average_is_the_weights_to_the_last_bit():
    """The batches before the first update have left the average at the initial weights."""
    net, updated = model(), []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: updated.append(net.get_weights())
    )
    optimizer = optimizers.AdamW(0.1, gradient_accumulation_steps=4, use_ema=True)
    fit(net, optimizer, jit_compile=False, batch_size=2, epochs=1, callbacks=[watch])
    # fit ends with the averages.
    for ours, expected in zip(net.get_weights(), updated[-1], strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.AdamW(schedules.WarmupCosineDecay(0.1, 3, 30), global_clipnorm=0.1),
        lambda: optimizers.Adafactor(warmup_init=True, beta_1=0.9, weight_decay=0.1),
        lambda: optimizers.AdamW(0.1, gradient_accumulation_steps=4, use_ema=True),
    ],
    ids=["AdamW", "Adafactor", "accumulation and EMA"],
)
@pytest.mark.sampled(2)
def test_a_saved_model_goes_on_as_if_it_had_not_stopped(make, tmp_path):
    # Not compiled: with the suite's XLA flags two compilations of a step may differ in a last bit.
    net = model()
    weights = net.get_weights()
    # Three batches an epoch, so that with accumulation it stops within a window.
    fit(net, make(), jit_compile=False, batch_size=3, epochs=4)
    whole = net.get_weights()

    net = model()
    net.set_weights(weights)
    fit(net, make(), jit_compile=False, batch_size=3, epochs=2)
    net.save(tmp_path / "model.keras")
    net = keras.models.load_model(tmp_path / "model.keras")
    net.fit(IDS, TARGETS, batch_size=3, epochs=2, shuffle=False, verbose=0)
    for ours, expected in zip(net.get_weights(), whole, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.sampled(2)
def test_mixed_precision_trains(policy):
    keras.config.set_dtype_policy(policy)
    try:
        net = model()
    finally:
        keras.config.set_dtype_policy("float32")
    fit(net, optimizers.AdamW(schedules.WarmupLinearDecay(0.1, 0, 60), weight_decay=0), epochs=30)
    # All that can be learned is each token's mean target.
    means = np.array([TARGETS[token == IDS].mean(0) for token in range(7)])
    np.testing.assert_allclose(net.predict(IDS, verbose=0), means[IDS], atol=0.05)
    assert {variable.dtype for variable in net.trainable_variables} == {"float32"}
