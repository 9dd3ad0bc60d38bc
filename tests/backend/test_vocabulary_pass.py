"""The one pass over the vocabulary against float64 autograd on whole logits."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keras_llm import losses
from keras_llm.backend import chunks as sizes
from keras_llm.backend.torch import rows as rows_module
from keras_llm.backend.torch import vocabulary_pass as module
from keras_llm.token_statistics import TokenStatistics
from tests import reference
from tests.backend.cases import Own, cases

pytestmark = pytest.mark.torch_only


def vocabulary_pass(hidden, kernel, bias, labels, weights, loss, scale, top_k, soft_cap=None):
    """The pass of a training step; its sums by name."""
    arguments = hidden, kernel, bias, labels, weights, loss.formula, scale, top_k
    objective, sums, nll = module.vocabulary_pass(*arguments, training=True, soft_cap=soft_cap)
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


def whole_logits(hidden, kernel, bias, soft_cap=None):
    """The logits of all tokens."""
    logits = hidden @ kernel if bias is None else hidden @ kernel + bias
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)


def whole(hidden, kernel, bias, formula, soft_cap=None):
    """The same from whole logits, by float64 autograd: objective and statistics."""
    logits = whole_logits(hidden, kernel, bias, soft_cap)
    per_token = formula(logits, LABELS)
    nll = torch.nn.functional.cross_entropy(logits, LABELS, reduction="none")
    correct = (logits.argmax(-1) == LABELS).double()
    sums = [(x * WEIGHTS).sum() for x in (per_token, nll, correct)]
    return SCALE * sums[0], [*sums, WEIGHTS.sum()]


@pytest.fixture(params=[(4, 5), (512, 1024)], ids=["six chunks of tiles", "one chunk"])
def chunks(request, monkeypatch):
    """Small chunks and tiles, the last of them short; and one for all."""
    rows, columns = request.param
    monkeypatch.setattr(rows_module, "chunk_rows", lambda vocab_size, device: rows)
    monkeypatch.setattr(sizes, "CPU_TILE_COLUMNS", columns)


# Logits reach 8 in size: most of them saturate.
@pytest.mark.parametrize("soft_cap", [None, 0.9])
@pytest.mark.parametrize("tied, bias", [(False, True), (True, False)], ids=["own", "tied"])
@pytest.mark.parametrize("loss, formula", list(cases()))
@pytest.mark.quick(7)
def test_objective_statistics_and_gradients(loss, formula, tied, bias, soft_cap, chunks):
    ours, theirs = inputs(tied=tied, bias=bias), inputs(tied=tied, bias=bias)
    objective, statistics, _ = vocabulary_pass(*ours, LABELS, WEIGHTS, loss, SCALE, 1, soft_cap)
    want, sums = whole(*theirs, formula, soft_cap)
    torch.testing.assert_close(objective, want)
    for got, expected in zip(statistics, sums, strict=True):
        torch.testing.assert_close(got, expected.detach())
    (3 * objective).backward()
    (3 * want).backward()
    for mine, reference_leaf in zip(ours, theirs, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad, reference_leaf.grad, rtol=1e-6, atol=1e-9)
            assert mine.grad.stride() == mine.stride()


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_float32_is_close_to_float64(soft_cap):
    loss = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1)
    ours, theirs = inputs(torch.float32), inputs()
    objective, *_ = vocabulary_pass(*ours, LABELS, WEIGHTS.float(), loss, SCALE, 0, soft_cap)
    want, _ = whole(*theirs, lambda z, t: reference.crossentropy(z, t, 0.1), soft_cap)
    objective.backward()
    want.backward()
    assert objective.item() == pytest.approx(want.item(), rel=1e-6)
    for mine, reference_leaf in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), reference_leaf.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_bfloat16_inputs_have_float32_statistics(soft_cap):
    loss = losses.MaskedSparseCategoricalCrossentropy()
    ours = inputs(torch.bfloat16)
    arguments = LABELS, WEIGHTS.float(), loss, SCALE, 1, soft_cap
    objective, statistics, _ = vocabulary_pass(*ours, *arguments)
    exact = [x.detach().double().requires_grad_() for x in ours]
    want, sums = whole(*exact, reference.crossentropy, soft_cap)
    assert objective.dtype == torch.float32
    assert objective.item() == pytest.approx(want.item(), rel=1e-5)
    assert statistics.correct.item() == pytest.approx(sums[2].item(), rel=1e-6)
    objective.backward()
    want.backward()
    for mine, reference_leaf in zip(ours, exact, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.double(), reference_leaf.grad, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_ignored_rows_may_hold_anything(soft_cap):
    loss = losses.MaskedSparseCategoricalCrossentropy()
    hidden, kernel, bias = inputs()
    with torch.no_grad():
        hidden[WEIGHTS == 0] = float("nan")
    objective, *_ = vocabulary_pass(hidden, kernel, bias, LABELS, WEIGHTS, loss, SCALE, 1, soft_cap)
    objective.backward()
    assert objective.isfinite()
    assert kernel.grad.isfinite().all()
    assert torch.equal(hidden.grad[WEIGHTS == 0], torch.zeros_like(hidden.grad[WEIGHTS == 0]))


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_nothing_to_count(soft_cap):
    loss = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1)
    hidden, kernel, bias = inputs()
    arguments = LABELS, torch.zeros_like(WEIGHTS), loss, 1.0, 1, soft_cap
    objective, statistics, _ = vocabulary_pass(hidden, kernel, bias, *arguments)
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
        for rows, soft_cap in ((module.Rows, None), (module.CappedRows, 3.0)):
            patch.setattr(rows, "accumulate", None)
            vocabulary_pass(*inputs(), LABELS, WEIGHTS, loss, SCALE, 1, soft_cap)


def test_the_first_of_equal_logits_is_the_guess():
    hidden, kernel = torch.zeros(VOCAB, WIDTH), torch.zeros(WIDTH, VOCAB)
    loss = losses.MaskedSparseCategoricalCrossentropy()
    labels, weights = torch.arange(VOCAB), torch.ones(VOCAB)
    _, statistics, _ = vocabulary_pass(hidden, kernel, None, labels, weights, loss, 1.0, 1)
    assert statistics.correct.item() == 1.0


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_each_token_has_its_nll_and_the_best_guesses_are_counted(soft_cap):
    loss = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1)
    logits = whole_logits(*inputs(), soft_cap).detach()
    want = torch.nn.functional.cross_entropy(logits, LABELS, reduction="none")
    for k in (1, 3, VOCAB):
        arguments = LABELS, WEIGHTS, loss, SCALE, k, soft_cap
        _, statistics, nll = vocabulary_pass(*inputs(), *arguments)
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


class Largest(TorchDispatchMode):
    """The most numbers that a tensor of the pass has had."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_no_tensor_has_the_logits_of_all_tokens(soft_cap, monkeypatch):
    monkeypatch.setattr(rows_module, "chunk_rows", lambda *_: 8)
    generator = torch.Generator().manual_seed(0)
    hidden, kernel = (
        torch.randn(64, 4, generator=generator),
        torch.randn(4, 50, generator=generator),
    )
    leaves = hidden.requires_grad_(), kernel.requires_grad_(), None
    with Largest() as largest:
        arguments = torch.arange(64) % 50, torch.ones(64), Own(), 1.0, 1, soft_cap
        vocabulary_pass(*leaves, *arguments)[0].backward()
    # A chunk's logits; hidden vectors and the kernel have fewer numbers.
    assert largest.numbers == 8 * 50
