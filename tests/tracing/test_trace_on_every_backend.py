"""trace by stages on PyTorch, JAX and TensorFlow: PyTorch's numbers, and nothing is changed."""

import random

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import ops

import keras_llm
from keras_llm import losses, optimizers
from tests.explanation.small_models import CROSSENTROPY, PAD, V, X, Y, causal, plain, token_metrics

WEIGHTS = np.random.default_rng(3).random((8, 6)).astype("float32")
RATE, DECAY, CLIP, EPSILON = 1e-2, 0.1, 0.05, 1e-6
FOCAL = losses.MaskedSparseCategoricalFocalCrossentropy(2.0, ignore_index=PAD)
STOCK = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD)


def adamw(**kwargs):
    kwargs |= {"weight_decay": DECAY, "global_clipnorm": CLIP, "epsilon": EPSILON}
    return optimizers.AdamW(RATE, **kwargs)


def trace(model, batch):
    return keras_llm.trace(model, batch, show=False)


def column(section, name):
    return [row[name] for row in section.to_dict()["table"]]


def token_losses(loss, logits, labels):
    """Of each token, in float64."""
    nll = F.cross_entropy(logits.mT, labels, reduction="none")
    return (1 - torch.exp(-nll)) ** 2 * nll if loss is FOCAL else nll


@pytest.mark.parametrize("loss", [CROSSENTROPY, FOCAL, STOCK], ids=["cross", "focal", "stock"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.sampled(4)
def test_the_numbers_are_those_of_pytorch_in_float64(loss, weighted):
    model = plain()
    model.compile(adamw(), loss, metrics=token_metrics())
    batch = (X, Y, WEIGHTS) if weighted else (X, Y)
    given = [array.copy() for array in batch]
    traced = trace(model, batch)
    # On PyTorch, Keras's own losses multiply the weights by their mask, in place.
    for array, kept in zip(batch, given, strict=True):
        np.testing.assert_array_equal(array, kept)

    norm = model.layers[1]
    parameters = [
        torch.tensor(ops.convert_to_numpy(v)).double().requires_grad_()
        for v in model.trainable_variables
    ]
    table, gamma, beta, kernel, bias = parameters
    hidden = F.layer_norm(F.embedding(torch.tensor(X), table), (8,), gamma, beta, norm.epsilon)
    logits, labels = hidden @ kernel + bias, torch.tensor(Y)
    weights = torch.tensor(WEIGHTS * (Y != PAD) if weighted else Y != PAD).double()
    each = token_losses(loss, logits, labels)
    # Keras divides by positions, whatever their weights.
    divisor = (labels != PAD).sum() if loss is STOCK else weights.sum()
    expected = (each * weights).sum() / divisor
    section = traced["3 Loss"]
    assert section["sum"].value == pytest.approx((each * weights).sum().item(), rel=1e-5)
    for name in ("mean", "loss"):
        assert section[name].value == pytest.approx(expected.item(), rel=1e-5)
    counts = labels != PAD
    assert section["right"].value == int((logits.argmax(-1) == labels)[counts].sum())
    shown = [row for row in section.to_dict()["table"] if not row["struck"]]
    np.testing.assert_allclose(
        [row["loss"] for row in shown], each[0, : len(shown)].detach(), rtol=1e-5
    )

    expected.backward()
    blocks = [[table], [gamma, beta], [kernel, bias]]

    def norms(tensors):
        return [float(torch.cat([t.flatten() for t in some]).norm()) for some in tensors]

    gradients = norms([[p.grad for p in some] for some in blocks])
    assert column(traced["4 Backward"], "gradient") == pytest.approx(gradients, rel=1e-4)
    whole = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    assert traced["4 Backward"]["gradient norm"].value == pytest.approx(float(whole), rel=1e-5)
    clipped = norms([[p.grad for p in some] for some in blocks])
    assert column(traced["4 Backward"], "clipped") == pytest.approx(clipped, rel=1e-4)

    before = [parameter.detach().clone() for parameter in parameters]
    groups = [
        {"params": [table, kernel], "weight_decay": DECAY},
        {"params": [gamma, beta, bias], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=RATE, eps=EPSILON).step()
    moved = iter([p.detach() - b for p, b in zip(parameters, before, strict=True)])
    updates = norms([[next(moved) for _ in some] for some in blocks])
    section = traced["5 Optimizer"]
    assert column(section, "update") == pytest.approx(updates, rel=1e-4)
    assert section["learning rate"].value == pytest.approx(RATE)
    assert section["state"].value == 2 * 4 * model.count_params()


def noisy():
    """Keras's own dropout, layers with state, and a term that they add to the loss."""
    model = keras.Sequential(
        [
            keras.layers.Embedding(V, 8, embeddings_regularizer="l2"),
            keras.layers.ActivityRegularization(l2=0.1),
            keras.layers.Dropout(0.4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(V),
        ]
    )
    model.build((None, 6))
    return model


def masked():
    layers = [keras.layers.Embedding(V, 8, mask_zero=True), keras.layers.Dense(V)]
    model = keras.Sequential(layers)
    model.build((None, 6))
    return model


def half():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return plain()
    finally:
        keras.config.set_dtype_policy(policy.name)


CASES = {
    "causal": (lambda: causal(dropout=0.3), adamw),
    "window": (causal, lambda: adamw(gradient_accumulation_steps=3)),
    "plain": (plain, lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True)),
    "accumulating": (plain, lambda: keras.optimizers.Adam(gradient_accumulation_steps=3)),
    "noisy": (noisy, adamw),
    "half": (half, optimizers.Adafactor),
}


def state(model):
    """All that training changes, as bytes."""
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return (
        [ops.convert_to_numpy(variable).tobytes() for variable in variables],
        [id(variable) for variable in variables],
        str(np.random.get_state()),
        random.getstate(),
        torch.get_rng_state().numpy().tobytes(),
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.sampled(3)
def test_nothing_is_changed(name):
    make, optimizer = CASES[name]
    model = make()
    model.compile(optimizer(), CROSSENTROPY, metrics=token_metrics())
    if name != "plain":
        # An optimizer that is built and has begun.
        model.train_on_batch(X, Y)
    keras.utils.set_random_seed(7)
    expected = ops.convert_to_numpy(keras.random.normal((3,)))
    keras.utils.set_random_seed(7)
    before = state(model)
    trace(model, (X, Y))
    assert state(model) == before
    np.testing.assert_array_equal(ops.convert_to_numpy(keras.random.normal((3,))), expected)


def test_nothing_is_changed_where_it_fails():
    model = causal(dropout=0.3)
    model.compile(adamw(), CROSSENTROPY)
    before = state(model)
    with pytest.raises(ValueError, match="Labels must be in"):
        trace(model, (X, np.full_like(Y, V)))
    assert state(model) == before


@pytest.mark.parametrize("name", ["causal", "noisy"])
def test_the_loss_and_the_update_are_those_of_the_step(name):
    make, optimizer = CASES[name]
    model = make()
    model.compile(optimizer(), CROSSENTROPY)
    model.train_on_batch(X, Y)
    traced = trace(model, (X, Y))
    before = [ops.convert_to_numpy(v).astype("float64") for v in model.trainable_variables]
    model.reset_metrics()
    logged = np.ravel(model.train_on_batch(X, Y))[0]
    assert traced["3 Loss"]["loss"].value == pytest.approx(float(logged), rel=1e-5)
    after = [ops.convert_to_numpy(v).astype("float64") for v in model.trainable_variables]
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True)))
    size = np.sqrt(sum((b**2).sum() for b in before))
    ratio = traced["5 Optimizer"]["update / weights"].value
    assert ratio == pytest.approx(moved / size, rel=1e-3)
    assert traced["5 Optimizer"]["learning rate"].note == "of update 2"


def test_what_a_keras_mask_hides_does_not_count():
    ids = X.copy()
    ids[:, -2:] = 0
    model = masked()
    model.compile(adamw(), losses.MaskedSparseCategoricalCrossentropy(-100))
    traced = trace(model, (ids, Y))
    assert traced["1 Batch"]["tokens that count"].value == 8 * 4
    section = traced["3 Loss"]
    assert section["mean"].value == pytest.approx(section["loss"].value, rel=1e-5)


def test_float16_gradients_are_those_of_the_loss_before_it_was_scaled():
    # Without a loss scale the norm of the same weights in float32, but for float16's three digits.
    scaled, single = half(), plain()
    single.set_weights(scaled.get_weights())
    norms = []
    for model in (scaled, single):
        model.compile(adamw(), CROSSENTROPY)
        norms.append(trace(model, (X, Y))["4 Backward"]["gradient norm"].value)
    assert norms[0] == pytest.approx(norms[1], rel=2e-2)


def test_what_a_backend_does_not_know_is_left_out():
    model = plain()
    model.compile(adamw(), CROSSENTROPY)
    traced = trace(model, (X, Y))
    backend = keras.backend.backend()
    names = {fact.name for fact in traced["2 Forward"].facts}
    assert ("kept for backward" in names) == (backend == "torch")
    # On JAX forward, loss and backward are one program, which has one time.
    assert ("took" in names) == (backend != "jax")
    for title in ("1 Batch", "4 Backward", "5 Optimizer"):
        assert traced[title]["took"].value > 0
    assert ("one program" in traced["4 Backward"]["took"].note) == (backend == "jax")
