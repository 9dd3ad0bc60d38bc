"""The one pass of JAX and TensorFlow against float64 numpy on whole logits."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm import losses
from keras_llm.backend import divergence_pass
from keras_llm.backend.head_matrix import HeadMatrix
from keras_llm.backend.ops import vocabulary_pass as module
from keras_llm.token_statistics import TokenStatistics
from keras_llm.training.ops.gradients import value_and_gradients

pytestmark = pytest.mark.not_torch


def vocabulary_pass(hidden, kernel, bias, labels, weights, loss, top_k, training, soft_cap=None):
    """The sums of the pass by name, the loss to be differentiated; and the nll of each token."""
    arguments = hidden, kernel, bias, labels, weights, loss.formula, 1.0, top_k, training
    objective, sums, nll = module.vocabulary_pass(*arguments, soft_cap=soft_cap)
    return TokenStatistics(*sums)._replace(loss=objective), nll


TOKENS, WIDTH, VOCAB = 23, 6, 9
RNG = np.random.default_rng(0)
HIDDEN, KERNEL = RNG.normal(size=(TOKENS, WIDTH)), RNG.normal(size=(WIDTH, VOCAB))
BIAS = RNG.normal(size=VOCAB)
INPUTS = HIDDEN, KERNEL, BIAS
LABELS = RNG.integers(0, VOCAB, TOKENS)
WEIGHTS = RNG.random(TOKENS) * (RNG.random(TOKENS) > 0.3)
ALPHA = np.linspace(0.5, 2.0, VOCAB)


class Own(losses.TokenLoss):
    """A temperature-squared focal variant that no paper knows."""

    def token_loss(self, nll, lse, mean_logit):
        return (1 - ops.exp(-nll)) ** 1.5 * nll**2 + 0.1 * (lse - mean_logit) ** 2


def crossentropy(nll, lse, mean, labels, smoothing=0.0, z_loss=0.0):
    return (1 - smoothing) * nll + smoothing * (lse - mean) + z_loss * lse**2


def focal(nll, lse, mean, labels):
    return ALPHA[labels] * (1 - np.exp(-nll)) ** 2 * crossentropy(nll, lse, mean, labels, 0.1)


def own(nll, lse, mean, labels):
    return (1 - np.exp(-nll)) ** 1.5 * nll**2 + 0.1 * (lse - mean) ** 2


CASES = {
    "crossentropy": (losses.MaskedSparseCategoricalCrossentropy(), crossentropy),
    "smoothed": (
        losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1, z_loss=0.01),
        lambda *numbers: crossentropy(*numbers, 0.1, 0.01),
    ),
    "focal": (
        losses.MaskedSparseCategoricalFocalCrossentropy(2.0, ALPHA, label_smoothing=0.1),
        focal,
    ),
    "own": (Own(), own),
}


def whole(formula, hidden, kernel, bias=0, top_k=1, soft_cap=None):
    """The four sums, from float64 logits."""
    logits = hidden @ kernel + bias
    logits = logits if soft_cap is None else soft_cap * np.tanh(logits / soft_cap)
    lse = np.log(np.exp(logits).sum(1))
    label_logit = logits[np.arange(TOKENS), LABELS]
    nll = lse - label_logit
    per_token = formula(nll, lse, logits.mean(1), LABELS)
    correct = (np.argsort(-logits, axis=1)[:, :top_k] == LABELS[:, None]).any(1)
    return np.array([(x * WEIGHTS).sum() for x in (per_token, nll, correct)] + [WEIGHTS.sum()])


def slopes(formula, *inputs, **options):
    """The gradients of the summed loss, by central differences."""
    inputs = [x.copy() for x in inputs]
    gradients = [np.zeros_like(x) for x in inputs]
    for x, gradient in zip(inputs, gradients, strict=True):
        for index in np.ndindex(x.shape):
            kept, sides = x[index], []
            for step in (1e-6, -1e-6):
                x[index] = kept + step
                sides.append(whole(formula, *inputs, **options)[0])
            x[index] = kept
            gradient[index] = (sides[0] - sides[1]) / 2e-6
    return gradients


def evaluate(*inputs, weights=WEIGHTS, top_k=1, soft_cap=None):
    """The pass's statistics and each token's nll."""
    inputs = [ops.convert_to_tensor(x, "float32") for x in (*inputs, weights)]
    labels = ops.convert_to_tensor(LABELS)
    arguments = *inputs[:3], labels, inputs[3], CASES["own"][0], top_k
    return vocabulary_pass(*arguments, training=False, soft_cap=soft_cap)


def take(loss, *inputs, weights=WEIGHTS, compiled=True, dtype="float32", soft_cap=None):
    """The pass's statistics, and the gradients of 3 times its loss; with compiled=True by XLA."""
    given = [ops.cast(ops.convert_to_tensor(x), dtype) for x in inputs]
    labels, weights = ops.convert_to_tensor(LABELS), ops.convert_to_tensor(weights, "float32")

    def objective(*given):
        bias = given[2] if len(given) > 2 else None
        arguments = (*given[:2], bias, labels, weights, loss, 1)
        statistics, _ = vocabulary_pass(*arguments, training=True, soft_cap=soft_cap)
        return 3 * statistics.loss, statistics

    if keras.backend.backend() == "jax":
        import jax

        step = jax.value_and_grad(objective, argnums=tuple(range(len(given))), has_aux=True)
        (_, statistics), gradients = (jax.jit(step) if compiled else step)(*given)
        return statistics, gradients

    import tensorflow as tf

    def step(*given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            value, statistics = objective(*given)
        return statistics, tape.gradient(value, given)

    return (tf.function(step, jit_compile=True) if compiled else step)(*given)


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Chunks of 4 rows, of which 23 is not a multiple, where one would do for all."""
    assert module.chunk_rows(VOCAB, "cpu") > TOKENS
    monkeypatch.setattr(module, "chunk_rows", lambda vocab_size, device_type: 4)


def assert_close(got, want, **tolerance):
    np.testing.assert_allclose(np.asarray(ops.cast(got, "float32")), want, **tolerance)


@pytest.mark.parametrize("name", CASES)
def test_statistics_and_gradients(name):
    check(*CASES[name], *INPUTS)


def test_without_a_compiler():
    check(*CASES["own"], *INPUTS, compiled=False)


# Logits reach 8 in size.
@pytest.mark.parametrize("name", ["smoothed", "own"])
def test_under_a_soft_cap(name):
    check(*CASES[name], *INPUTS, soft_cap=3.0)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_one_chunk_and_no_bias(soft_cap, monkeypatch):
    monkeypatch.undo()
    check(*CASES["smoothed"], HIDDEN, KERNEL, compiled=soft_cap is None, soft_cap=soft_cap)


def check(loss, formula, *inputs, compiled=True, soft_cap=None):
    statistics, gradients = take(loss, *inputs, compiled=compiled, soft_cap=soft_cap)
    assert_close(ops.stack(statistics), whole(formula, *inputs, soft_cap=soft_cap), rtol=1e-5)
    wanted = slopes(formula, *inputs, soft_cap=soft_cap)
    for got, expected in zip(gradients, wanted, strict=True):
        assert_close(got, 3 * expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_vectors_have_float32_statistics():
    loss, formula = CASES["smoothed"]
    statistics, gradients = take(loss, HIDDEN, KERNEL, BIAS, dtype="bfloat16")
    rounded = [np.asarray(ops.cast(ops.cast(x, "bfloat16"), "float32"), "float64") for x in INPUTS]
    assert {keras.backend.standardize_dtype(x.dtype) for x in statistics} == {"float32"}
    assert {keras.backend.standardize_dtype(x.dtype) for x in gradients} == {"bfloat16"}
    assert_close(ops.stack(statistics), whole(formula, *rounded), rtol=1e-2)
    for got, expected in zip(gradients, slopes(formula, *rounded), strict=True):
        assert_close(got, 3 * expected, rtol=3e-2, atol=6e-2)


def test_ignored_rows_may_hold_anything():
    loss, formula = CASES["smoothed"]
    hidden = np.where(WEIGHTS[:, None] == 0, np.nan, HIDDEN)
    statistics, gradients = take(loss, hidden, KERNEL, BIAS)
    assert_close(ops.stack(statistics), whole(formula, HIDDEN, KERNEL, BIAS), rtol=1e-5)
    assert all(np.isfinite(np.asarray(g)).all() for g in gradients)
    assert not np.asarray(gradients[0])[WEIGHTS == 0].any()


def test_ignored_rows_of_student_and_teacher_may_hold_anything():
    taught = RNG.normal(size=(TOKENS, WIDTH))
    p, q = (np.exp(h @ KERNEL / 2) for h in (HIDDEN, taught))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = HIDDEN.T @ (2 * WEIGHTS[:, None] * (p - q))
    student, teacher = (
        ops.convert_to_tensor(np.where(WEIGHTS[:, None] == 0, np.nan, h), "float32")
        for h in (HIDDEN, taught)
    )
    kernel = keras.Variable(KERNEL, dtype="float32")

    def objective():
        mine, its = HeadMatrix(kernel.value, None, None), HeadMatrix(kernel.value + 0.0, None, None)
        weights = ops.convert_to_tensor(WEIGHTS, "float32")
        return divergence_pass(student, mine, teacher, its, weights, 2.0, True), None

    (total, _), (gradient,) = value_and_gradients(objective, [kernel], [])
    each = 4 * (q * np.log(q / p)).sum(1)
    assert float(total) == pytest.approx((WEIGHTS * each).sum(), rel=1e-5)
    assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_nothing_to_count():
    statistics, gradients = take(CASES["own"][0], *INPUTS, weights=np.zeros(TOKENS))
    assert [float(x) for x in statistics] == [0.0] * 4
    assert not any(np.asarray(g).any() for g in gradients)


def test_no_tokens_at_all():
    arguments = [np.zeros(shape, "float32") for shape in ((0, WIDTH), (WIDTH, VOCAB), VOCAB)]
    none = np.zeros(0, "int32"), np.zeros(0, "float32")
    arguments = [ops.convert_to_tensor(x) for x in (*arguments, *none)]
    statistics, nll = vocabulary_pass(*arguments, CASES["own"][0], 1, training=True)
    assert [float(x) for x in statistics] == [0.0] * 4
    assert tuple(nll.shape) == (0,)


@pytest.mark.parametrize(("top_k", "soft_cap"), [(1, None), (3, None), (3, 3.0)])
def test_guesses(top_k, soft_cap):
    statistics, _ = evaluate(*INPUTS, top_k=top_k, soft_cap=soft_cap)
    want = whole(own, *INPUTS, top_k=top_k, soft_cap=soft_cap)
    assert float(statistics.correct) == pytest.approx(want[2], rel=1e-6)
    assert 0 < want[2] < want[3]
    # Of equals the first is the guess, and what is not a number is never one.
    equal, _ = evaluate(0 * HIDDEN, KERNEL, 0 * BIAS, weights=np.ones(TOKENS), top_k=top_k)
    assert float(equal.correct) == (top_k > LABELS).sum()
    diverged, _ = evaluate(np.nan * HIDDEN, KERNEL, BIAS, top_k=top_k)
    assert float(diverged.correct) == 0


def test_the_nll_of_each_token_is_in_its_place():
    _, nll = evaluate(*INPUTS)
    logits = HIDDEN @ KERNEL + BIAS
    want = np.log(np.exp(logits).sum(1)) - logits[np.arange(TOKENS), LABELS]
    assert_close(nll[WEIGHTS != 0], want[WEIGHTS != 0], rtol=1e-5)


def test_evaluation_makes_no_gradients(monkeypatch):
    monkeypatch.undo()
    products = []
    matmul = ops.matmul
    monkeypatch.setattr(ops, "matmul", lambda *x: products.append(1) or matmul(*x))
    arguments = [ops.convert_to_tensor(x, "float32") for x in INPUTS]
    arguments += [ops.convert_to_tensor(LABELS), ops.convert_to_tensor(WEIGHTS, "float32")]
    for training, count in ((False, 1), (True, 3)):
        products.clear()
        vocabulary_pass(*arguments, CASES["own"][0], 1, training)
        assert len(products) == count
