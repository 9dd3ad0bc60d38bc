"""The one pass over the vocabulary against float64 autograd on whole logits."""

import numpy as np
import pytest
import torch

from keras_llm import losses
from keras_llm.backend import chunks as sizes
from keras_llm.backend.torch import vocabulary_pass as module
from keras_llm.token_statistics import TokenStatistics
from tests import reference
from tests.backend.cases import cases

pytestmark = pytest.mark.torch_only


def vocabulary_pass(hidden, kernel, bias, labels, weights, loss, scale, top_k):
    """The pass of a training step; its sums by name."""
    objective, sums, nll = module.vocabulary_pass(
        hidden, kernel, bias, labels, weights, loss.formula, scale, top_k, training=True
    )
    return objective, TokenStatistics(*sums), nll


TOKENS, WIDTH, VOCAB = 23, 6, 9
RNG = np.random.default_rng(0)
LABELS = torch.tensor(RNG.integers(0, VOCAB, TOKENS))
WEIGHTS = torch.tensor(RNG.random(TOKENS) * (RNG.random(TOKENS) > 0.3))
SCALE = 0.37


def inputs(dtype=torch.float64, tied=False, bias=True):
    """Hidden vectors, kernel and bias, as leaves."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    kernel = torch.randn(WIDTH, VOCAB, generator=generator, dtype=torch.float64)
    if tied:
        kernel = kernel.T.contiguous().T
    bias = torch.randn(VOCAB, generator=generator, dtype=torch.float64) if bias else None
    return [x if x is None else x.to(dtype).requires_grad_() for x in (hidden, kernel, bias)]


def whole(hidden, kernel, bias, formula):
    """The same from whole logits, by float64 autograd: objective and statistics."""
    logits = hidden @ kernel if bias is None else hidden @ kernel + bias
    per_token = formula(logits, LABELS)
    nll = torch.nn.functional.cross_entropy(logits, LABELS, reduction="none")
    correct = (logits.argmax(-1) == LABELS).double()
    sums = [(x * WEIGHTS).sum() for x in (per_token, nll, correct)]
    return SCALE * sums[0], [*sums, WEIGHTS.sum()]


@pytest.fixture(params=[(4, 5), (512, 1024)], ids=["six chunks of tiles", "one chunk"])
def chunks(request, monkeypatch):
    """Small chunks and tiles, the last of them short; and one for all."""
    rows, columns = request.param
    monkeypatch.setattr(module, "chunk_rows", lambda vocab_size, device: rows)
    monkeypatch.setattr(sizes, "CPU_TILE_COLUMNS", columns)


@pytest.mark.parametrize("tied, bias", [(False, True), (True, False)], ids=["own", "tied"])
@pytest.mark.parametrize("loss, formula", list(cases()))
def test_objective_statistics_and_gradients(loss, formula, tied, bias, chunks):
    ours, theirs = inputs(tied=tied, bias=bias), inputs(tied=tied, bias=bias)
    objective, statistics, _ = vocabulary_pass(*ours, LABELS, WEIGHTS, loss, SCALE, 1)
    want, sums = whole(*theirs, formula)
    torch.testing.assert_close(objective, want)
    for got, expected in zip(statistics, sums, strict=True):
        torch.testing.assert_close(got, expected.detach())
    (3 * objective).backward()
    (3 * want).backward()
    for mine, reference_leaf in zip(ours, theirs, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad, reference_leaf.grad, rtol=1e-6, atol=1e-9)
            assert mine.grad.stride() == mine.stride()


def test_float32_is_close_to_float64():
    loss = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1)
    ours, theirs = inputs(torch.float32), inputs()
    objective, *_ = vocabulary_pass(*ours, LABELS, WEIGHTS.float(), loss, SCALE, 0)
    want, _ = whole(*theirs, lambda z, t: reference.crossentropy(z, t, 0.1))
    objective.backward()
    want.backward()
    assert objective.item() == pytest.approx(want.item(), rel=1e-6)
    for mine, reference_leaf in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), reference_leaf.grad, rtol=1e-4, atol=1e-6)


def test_bfloat16_inputs_have_float32_statistics():
    loss = losses.MaskedSparseCategoricalCrossentropy()
    ours = inputs(torch.bfloat16)
    objective, statistics, _ = vocabulary_pass(*ours, LABELS, WEIGHTS.float(), loss, SCALE, 1)
    exact = [x.detach().double().requires_grad_() for x in ours]
    want, sums = whole(*exact, reference.crossentropy)
    assert objective.dtype == torch.float32
    assert objective.item() == pytest.approx(want.item(), rel=1e-5)
    assert statistics.correct.item() == pytest.approx(sums[2].item(), rel=1e-6)
    objective.backward()
    want.backward()
    for mine, reference_leaf in zip(ours, exact, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.double(), reference_leaf.grad, rtol=1e-2, atol=1e-2)


def test_ignored_rows_may_hold_anything():
    loss = losses.MaskedSparseCategoricalCrossentropy()
    hidden, kernel, bias = inputs()
    with torch.no_grad():
        hidden[WEIGHTS == 0] = float("nan")
    objective, *_ = vocabulary_pass(hidden, kernel, bias, LABELS, WEIGHTS, loss, SCALE, 1)
    objective.backward()
    assert objective.isfinite()
    assert kernel.grad.isfinite().all()
    assert torch.equal(hidden.grad[WEIGHTS == 0], torch.zeros_like(hidden.grad[WEIGHTS == 0]))


def test_nothing_to_count():
    loss = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1)
    hidden, kernel, bias = inputs()
    zeros = torch.zeros_like(WEIGHTS)
    objective, statistics, _ = vocabulary_pass(hidden, kernel, bias, LABELS, zeros, loss, 1.0, 1)
    objective.backward()
    assert [float(s) for s in statistics] == [0.0] * 4
    assert not hidden.grad.any()
    assert not kernel.grad.any()


def test_evaluation_makes_no_gradients():
    loss = losses.MaskedSparseCategoricalCrossentropy()
    with torch.no_grad():
        objective, *_ = vocabulary_pass(*inputs(), LABELS, WEIGHTS, loss, SCALE, 1)
    assert not objective.requires_grad
    # Not even inside, where autograd would not show them.
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Rows, "accumulate", None)
        vocabulary_pass(*inputs(), LABELS, WEIGHTS, loss, SCALE, 1)


def test_the_first_of_equal_logits_is_the_guess():
    hidden, kernel = torch.zeros(VOCAB, WIDTH), torch.zeros(WIDTH, VOCAB)
    loss = losses.MaskedSparseCategoricalCrossentropy()
    labels, weights = torch.arange(VOCAB), torch.ones(VOCAB)
    _, statistics, _ = vocabulary_pass(hidden, kernel, None, labels, weights, loss, 1.0, 1)
    assert statistics.correct.item() == 1.0


def test_each_token_has_its_nll_and_the_best_guesses_are_counted():
    loss = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1)
    hidden, kernel, bias = inputs()
    logits = (hidden @ kernel + (0 if bias is None else bias)).detach()
    want = torch.nn.functional.cross_entropy(logits, LABELS, reduction="none")
    for k in (1, 3, VOCAB):
        _, statistics, nll = vocabulary_pass(hidden, kernel, bias, LABELS, WEIGHTS, loss, SCALE, k)
        torch.testing.assert_close(nll, want * (WEIGHTS != 0))
        hits = (logits.topk(k).indices == LABELS[:, None]).any(1)
        torch.testing.assert_close(statistics.correct, (hits * WEIGHTS).sum())


def test_a_loss_scale_saves_small_float16_gradients():
    # Without one, a gradient below 6e-8 is 0 in float16: it must be scaled before it is cast.
    loss = losses.MaskedSparseCategoricalCrossentropy()
    hidden, kernel, bias = inputs(torch.float16)
    objective, *_ = vocabulary_pass(
        hidden, kernel, bias, LABELS, WEIGHTS.float(), loss, 1e-9, False
    )
    (objective * 2.0**24).backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, kernel, bias)]
    want, _ = whole(*exact, reference.crossentropy)
    (want * 2.0**24 * 1e-9 / SCALE).backward()
    torch.testing.assert_close(hidden.grad.double(), exact[0].grad, rtol=1e-2, atol=1e-5)
    assert hidden.grad.any()
