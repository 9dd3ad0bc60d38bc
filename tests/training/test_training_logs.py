"""What the logs have beside the loss, and when they are computed."""

import keras
import numpy as np
import pytest

from keras_llm import losses, metrics, models, optimizers, schedules
from keras_llm.training import training_logs

VOCAB, PAD = 31, 0
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (24, 7))
Y = np.where(RNG.random((24, 7)) < 0.3, PAD, RNG.integers(1, VOCAB, (24, 7)))
SCHEDULE = schedules.WarmupLinearDecay(1e-2, warmup_steps=3, total_steps=40)


def build(optimizer=None):
    model = models.CausalTransformer(VOCAB, 16, 1, 2, max_length=8)
    model.compile(
        optimizer=optimizer or optimizers.AdamW(SCHEDULE),
        loss=losses.MaskedSparseCategoricalCrossentropy(PAD),
        metrics=[metrics.Perplexity(PAD)],
    )
    return model


@pytest.fixture
def clock(monkeypatch):
    """By it everything happens at once, but an epoch takes 2 seconds and validation 100."""
    now = [0.0]
    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(training_logs.time, name, lambda: now[0])

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            now[0] += 2.0

        def on_test_end(self, logs=None):
            now[0] += 100.0

    return Clock()


def test_history_has_the_learning_rate_and_the_tokens_of_a_second(clock):
    model = build()
    some = (X[:5], Y[:5])
    logs = model.fit(
        X, Y, batch_size=8, epochs=2, verbose=0, validation_data=some, callbacks=[clock]
    )
    assert logs.history["tokens_per_second"] == pytest.approx([(Y != PAD).sum() / 2.0] * 2)
    assert model.step.tokens_per_update == (Y != PAD).sum() / 3
    assert logs.history["learning_rate"] == pytest.approx([float(SCHEDULE(3)), float(SCHEDULE(6))])
    assert not [name for name in logs.history if name.startswith("val_l") and "rate" in name]
    assert "peak_memory_gb" not in logs.history
    assert "mfu" not in logs.history


def test_callbacks_find_the_numbers_and_a_loss_of_others_has_none():
    seen = []
    build().fit(
        X,
        Y,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(logs))],
    )
    assert {"loss", "perplexity", "learning_rate", "tokens_per_second"} <= set(seen[0])
    model = build()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert set(model.fit(X, Y, verbose=0).history) == {"loss"}


@pytest.mark.backend_free
def test_a_given_callback_list_gets_them_too():
    model = build()
    history = keras.callbacks.History()
    callbacks = keras.callbacks.CallbackList([history], model=model, epochs=1, steps=1)
    model.fit(X, Y, verbose=0, callbacks=callbacks)
    assert "tokens_per_second" in history.history


@pytest.mark.torch_only
def test_metrics_are_computed_when_somebody_looks(clock, monkeypatch):
    results = []
    result = metrics.Perplexity.result
    monkeypatch.setattr(
        metrics.Perplexity, "result", lambda self: results.append(1) or result(self)
    )
    model = build()
    model.fit(X, Y, batch_size=2, epochs=1, verbose=0, callbacks=[clock])
    # At the first step, for the log points after 10 and 12 steps, and for the epoch.
    assert len(results) == 4

    seen = []

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["perplexity"])

    model.fit(X, Y, batch_size=1, epochs=1, verbose=0, callbacks=[clock, Looks()])
    assert len(seen) == 24
    assert len(set(seen)) == 24


@pytest.mark.torch_only
def test_logs_that_were_left_for_later_are_known_when_asked():
    from keras_llm.training.torch.log_throttle import LazyLogs

    model = build()
    want = {name: float(value) for name, value in model.get_metrics_result().items()}
    for read in (dict, lambda logs: {**logs}, lambda logs: dict(logs.items())):
        assert read(LazyLogs(model, dict.fromkeys(want), is_known=False)) == pytest.approx(want)
    logs = LazyLogs(model, dict.fromkeys(want), is_known=False)
    assert (logs or {}) == {}
    assert float(logs["loss"]) == want["loss"]
    assert logs.get("other", 3) == 3
    assert [float(value) for value in logs.values()] == list(want.values())


@pytest.mark.torch_only
def test_a_step_by_the_users_own_train_step_has_its_logs():
    class Mine(models.CausalTransformer):
        def train_step(self, data):
            return {**super().train_step(data), "mine": 1.0}

    model = Mine(VOCAB, 16, 1, 2, max_length=8)
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(PAD))
    history = model.fit(X, Y, batch_size=4, verbose=0).history
    assert history["mine"] == [1.0]
    assert history["loss"][0] == pytest.approx(np.log(VOCAB), rel=0.05)


@pytest.mark.torch_only
def test_the_norm_is_the_gradients_before_they_are_scaled_and_clipped():
    norms = []
    for dtype, clip in (("float32", None), ("float32", 1e-3), ("mixed_float16", None)):
        keras.utils.set_random_seed(0)
        model = models.CausalTransformer(VOCAB, 16, 1, 2, max_length=8, dtype=dtype)
        model.compile(
            keras.optimizers.SGD(1e-3, global_clipnorm=clip),
            losses.MaskedSparseCategoricalCrossentropy(PAD),
        )
        norms.append(model.fit(X, Y, verbose=0).history["gradient_norm"][0])
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    assert norms[2] == pytest.approx(norms[0], rel=2e-2)


@pytest.mark.backend_free
def test_operations_of_a_token():
    # GPT-2's shape: 124M parameters, of which 0.8M are positions, which ours has no table for.
    # nanoGPT's `estimate_mfu` counts 6 N + 12 L H Q T.
    model = models.CausalTransformer(50257, 16, 12, 2, max_length=8, d_ff=32)
    parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert model.flops_per_token(1024) == 6 * parameters + 12 * 12 * 2 * 8 * 1024
    untied = models.CausalTransformer(101, 16, 1, 2, max_length=8, tie_embeddings=False)
    tied = models.CausalTransformer(101, 16, 1, 2, max_length=8)
    assert untied.flops_per_token(8) == tied.flops_per_token(8)


@pytest.mark.torch_only
def test_a_known_device_has_a_peak_and_tells_its_utilisation(clock, monkeypatch):
    from keras_llm.backend.torch import device

    assert device.peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert device.peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert device.peak_of("NVIDIA L40S") == 362e12
    assert device.peak_of("a toaster") is None

    monkeypatch.setattr(training_logs.backend, "peak_flops", lambda dtype: 1e12)
    model = build()
    history = model.fit(X, Y, verbose=0, callbacks=[clock]).history
    want = (Y != PAD).sum() / 2.0 * model.flops_per_token(7) / 1e12
    assert history["mfu"] == pytest.approx([want])
