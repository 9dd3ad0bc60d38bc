"""`micro_batch_size`: the update of the whole batch, whatever of it is in memory at once."""

import functools

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models, optimizers

pytestmark = pytest.mark.torch_only

VOCAB, PAD = 31, 0
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (20, 7))
Y = np.where(RNG.random((20, 7)) < 0.3, PAD, RNG.integers(1, VOCAB, (20, 7)))
# In the rows of one micro-batch nothing counts.
Y[6:8] = PAD


def build(micro_batch_size=None, optimizer=None, cls=models.CausalTransformer, **arguments):
    keras.utils.set_random_seed(0)
    model = cls(VOCAB, 16, 1, 2, max_length=8)
    model.compile(
        optimizer=optimizer or optimizers.AdamW(1e-3, weight_decay=0.1, global_clipnorm=0.5),
        loss=losses.MaskedSparseCategoricalCrossentropy(PAD),
        metrics=[metrics.Perplexity(PAD), metrics.MaskedTokenAccuracy(1, PAD)],
        micro_batch_size=micro_batch_size,
        **arguments,
    )
    return model


@functools.cache
def by_hand(batch_size, epochs):
    """Weights, losses and gradient norms of the loop that people write, with whole batches."""
    model = build()
    tensors = [variable.value for variable in model.trainable_variables]
    matrices = [t for t in tensors if t.ndim > 1]
    vectors = [t for t in tensors if t.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-3,
        eps=model.optimizer.epsilon,
        betas=(model.optimizer.beta_1, model.optimizer.beta_2),
    )
    history, norms = [], []
    for _ in range(epochs):
        total, tokens, epoch_norms = 0.0, 0, []
        for start in range(0, len(X), batch_size):
            x, y = (torch.tensor(a[start : start + batch_size]) for a in (X, Y))
            loss = torch.nn.functional.cross_entropy(
                model(x).flatten(0, 1), y.flatten(), ignore_index=PAD
            )
            optimizer.zero_grad()
            loss.backward()
            epoch_norms.append(float(torch.nn.utils.clip_grad_norm_(tensors, 0.5)))
            optimizer.step()
            count = int((y != PAD).sum())
            total, tokens = total + float(loss.detach()) * count, tokens + count
        history.append(total / tokens)
        norms.append(np.mean(epoch_norms))
    return model.get_weights(), history, norms


@pytest.mark.parametrize("size", [None, 1, 3, 8, 99, "auto"])
@pytest.mark.parametrize("with_logits", [False, True])
@pytest.mark.quick(5)
def test_any_split_is_the_loop_by_hand(size, with_logits):
    cls = WithLogits if with_logits else models.CausalTransformer
    model = build(size, cls=cls)
    history = model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0).history
    weights, losses_by_hand, norms = by_hand(8, 3)
    assert history["loss"] == pytest.approx(losses_by_hand, rel=1e-5)
    assert history["gradient_norm"] == pytest.approx(norms, rel=1e-4)
    for got, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class WithLogits(models.CausalTransformer):
    """The same model, whose `call` might do anything: it takes the path of whole logits."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=training)


def test_micro_batches_and_accumulation_go_together():
    accumulating = optimizers.AdamW(
        1e-3, weight_decay=0.1, global_clipnorm=0.5, gradient_accumulation_steps=2
    )
    model = build(3, accumulating)
    model.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    for got, want in zip(model.get_weights(), by_hand(8, 3)[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class Fails(torch.autograd.Function):
    """Runs out of memory with more than some rows, forward or backward."""

    @staticmethod
    def forward(ctx, x, limit, forward):
        ctx.fails = len(x) > limit
        if forward and ctx.fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return gradient, None, None


@pytest.fixture
def small_memory(monkeypatch):
    """Makes a model's step fail with more than `limit` rows."""

    def shrink(model, limit, forward):
        hidden_vectors = model.step.hidden_vectors

        def limited(x, training):
            hidden, penalty = hidden_vectors(x, training)
            return Fails.apply(hidden, limit, forward), penalty

        monkeypatch.setattr(model.step, "hidden_vectors", limited)
        return model

    return shrink


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.quick(3)
def test_auto_halves_when_memory_runs_out_and_loses_nothing(small_memory, forward, steps):
    optimizer = optimizers.AdamW(
        1e-3, weight_decay=0.1, global_clipnorm=0.5, gradient_accumulation_steps=steps
    )
    model = small_memory(build("auto", optimizer), 3, forward)
    size = 8 if steps is None else 4
    history = model.fit(X, Y, batch_size=size, epochs=3, shuffle=False, verbose=0).history
    assert model.step.micro_batches.size == 2
    weights, losses_by_hand, _ = by_hand(8, 3)
    assert history["loss"] == pytest.approx(losses_by_hand, rel=1e-5)
    for got, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_row_that_does_not_fit_and_other_errors_are_raised(small_memory):
    model = small_memory(build("auto"), 0, forward=True)
    with pytest.raises(torch.OutOfMemoryError):
        model.fit(X, Y, batch_size=8, verbose=0)
    model = small_memory(build(4), 2, forward=True)
    with pytest.raises(torch.OutOfMemoryError):
        model.fit(X, Y, batch_size=8, verbose=0)
    model = build("auto")
    model.step.hidden_vectors = lambda x, training: (_ for _ in ()).throw(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        model.fit(X, Y, batch_size=8, verbose=0)


def test_bad_sizes_are_named():
    for size in (0, -1, 2.0, True, "Auto"):
        with pytest.raises(ValueError, match="micro_batch_size must be a positive number of rows"):
            build(size)
    model = models.CausalTransformer(VOCAB, 16, 1, 2, max_length=8)
    with pytest.raises(ValueError, match="micro_batch_size needs a loss of keras_llm"):
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), micro_batch_size=2)


def test_the_size_is_saved(tmp_path):
    model = build(5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.step.micro_batch_size == 5
