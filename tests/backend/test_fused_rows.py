"""The pass of a GPU against float64, under Triton's interpreter where there is none.

What the device would multiply, read and write is counted on tensors without values.
"""

import collections

import keras
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from keras_llm import losses, models
from keras_llm.backend import chunks
from keras_llm.backend.torch import fused_rows, row_kernels
from keras_llm.backend.torch import vocabulary_pass as vocabulary_pass_module
from keras_llm.backend.torch.fused_rows import FusedRows
from keras_llm.backend.torch.vocabulary_pass import vocabulary_pass
from tests import reference
from tests.backend.cases import cases
from tests.backend.row_kernels_on import DEVICE, kernels  # noqa: F401

pytestmark = [
    pytest.mark.torch_only,
    # What NumPy says to the interpreter, of infinities and NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

CASES = [case.values for case in cases()]
# Without those that weigh the classes, which have a vocabulary of their own.
OF_ANY_VOCABULARY = [case for case in CASES if case[0].class_weights is None]
PLAIN = losses.MaskedSparseCategoricalCrossentropy()
SCALE = 0.37


@pytest.fixture(autouse=True)
def products(monkeypatch):
    """Products that add in float32, as a GPU's; a CPU has none of narrow matrices."""
    if DEVICE == "cpu":
        wide = lambda left, right, to: left.to(to) @ right.to(to)  # noqa: E731
        monkeypatch.setattr(
            fused_rows, "product", lambda a, b, out: out.copy_(wide(a, b, torch.float64))
        )
        monkeypatch.setattr(
            fused_rows, "add_product", lambda total, a, b: total.add_(wide(a, b, total.dtype))
        )


@pytest.fixture
def chunks_of_seven(monkeypatch):
    """Rows of logits three at a time, of their softmax seven."""
    monkeypatch.setattr(fused_rows, "LOGITS_ROWS", 3)
    monkeypatch.setattr(fused_rows, "chunk_rows", lambda *_: 7)


def make_inputs(tokens, width, vocab_size, dtype, seed=0, tied=False, bias=True):
    """Leaves, labels, and weights of which some are 0."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator)
    kernel = torch.randn(width, vocab_size, generator=generator)
    if tied:
        kernel = kernel.T.contiguous().T
    bias = torch.randn(vocab_size, generator=generator) if bias else None
    labels = torch.randint(0, vocab_size, (tokens,), generator=generator).to(DEVICE)
    weights = torch.rand(tokens, generator=generator)
    weights = (weights * (torch.rand(tokens, generator=generator) > 0.3)).to(DEVICE)
    leaves = [x if x is None else x.to(DEVICE, dtype) for x in (hidden, kernel, bias)]
    with torch.no_grad():
        leaves[0][weights == 0] = torch.nan
    return [x if x is None else x.requires_grad_() for x in leaves], labels, weights


def whole(leaves, labels, weights, formula, top_k, soft_cap=None):
    """The same in float64, of the rows that count: objective, sums, leaves, and logits."""
    counts = weights != 0
    exact = [x if x is None else x.detach().double().requires_grad_() for x in leaves]
    logits = exact[0][counts] @ exact[1] + (0 if exact[2] is None else exact[2])
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    weights, labels = weights[counts].double(), labels[counts]
    losses = formula(logits, labels)
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    best = logits.topk(min(top_k, logits.shape[1])).indices
    sums = losses, nll, (best == labels[:, None]).any(1), torch.ones_like(nll)
    sums = [(x * weights).sum() for x in sums]
    return SCALE * sums[0], sums, exact


def relative(got, want):
    """The largest error, in units of the largest number."""
    scale = want.abs().max().clamp(min=1e-30)
    return ((got.double() - want).abs().max() / scale).item() if want.numel() else 0.0


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 14),
    width=st.integers(1, 6),
    vocab_size=st.integers(2, 300),
    case=st.sampled_from(OF_ANY_VOCABULARY),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    top_k=st.integers(0, 5),
    tied=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
    rows=st.sampled_from([2, 5, 512]),
    # Small enough to bend logits of up to 10, not so small that different ones become equal.
    soft_cap=st.sampled_from([None, 4.3]),
)
def test_shapes_and_formulas(
    tokens, width, vocab_size, case, dtype, top_k, tied, bias, seed, rows, soft_cap
):
    loss, formula = case
    leaves, labels, weights = make_inputs(tokens, width, vocab_size, dtype, seed, tied, bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_rows, "LOGITS_ROWS", rows)
        patch.setattr(fused_rows, "chunk_rows", lambda *_: 2 * rows)
        arguments = labels, weights, loss.formula, SCALE, top_k, True
        objective, sums, _ = vocabulary_pass(*leaves, *arguments, soft_cap=soft_cap)
    (3 * objective).backward()
    want, exact_sums, exact = whole(leaves, labels, weights, formula, top_k, soft_cap)
    (3 * want).backward()
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    assert objective.dtype == dtype
    assert objective.item() == pytest.approx(want.item(), rel=limit, abs=limit)
    for got, expected in zip(sums, exact_sums, strict=True):
        assert got.item() == pytest.approx(expected.item(), rel=limit, abs=limit)
    # A gradient is a sum of terms that cancel: its digits are those of the largest of them.
    largest = 3 * SCALE * leaves[1].abs().max().item() * max(leaves[0].nan_to_num().abs().max(), 1)
    for mine, theirs in zip(leaves, exact, strict=True):
        if mine is not None:
            wanted = theirs.grad.nan_to_num()
            assert mine.grad.stride() == mine.stride()
            assert (mine.grad - wanted).abs().max() <= limit * max(wanted.abs().max(), largest)
    assert not leaves[0].grad[weights == 0].any()


@pytest.mark.parametrize(
    ("share", "more"), [(0.0, 0), (0.0, 70), (0.1, 0), (0.6, 0), (0.6, 70), (1.0, 0)]
)
@pytest.mark.slow
def test_only_the_rows_that_may_count_are_multiplied(share, more, monkeypatch):
    # As on a GPU, where nobody can ask how many rows have a weight.
    monkeypatch.setattr(vocabulary_pass_module.facts, "is_on_host", lambda tensor: False)
    multiplied = []
    monkeypatch.setattr(
        vocabulary_pass_module,
        "FusedRows",
        lambda hidden, *others: multiplied.append(len(hidden)) or FusedRows(hidden, *others),
    )
    leaves, labels, weights = make_inputs(140, 5, 30, torch.float64)
    weights = weights * (torch.arange(140, device=weights.device) % 10 < 10 * share)
    known = min(int((weights != 0).sum()) + more, 140)
    arguments = labels, weights, PLAIN.formula, SCALE, 1, True
    objective, sums, nll = vocabulary_pass(*leaves, *arguments, at_most=known)
    objective.backward()
    want, exact_sums, exact = whole(leaves, labels, weights, reference.crossentropy, 1)
    want.backward()
    torch.testing.assert_close(objective, want)
    torch.testing.assert_close(torch.stack(sums), torch.stack(exact_sums))
    assert not nll[weights == 0].any() and not leaves[0].grad[weights == 0].any()
    for mine, theirs in zip(leaves, exact, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad.nan_to_num(), rtol=1e-9, atol=1e-11)
    rounded = 64 * -(-known // 64)
    assert multiplied == [rounded if rounded < 0.95 * 140 else 140]


# What a cap does to the logits does not depend on the formula.
@pytest.mark.parametrize(
    ("case", "soft_cap"),
    [(case, None) for case in CASES] + [(case, 0.7) for case in CASES[::5]],
    ids=lambda value: value[0].name if isinstance(value, tuple) else str(value),
)
@pytest.mark.quick(17)
def test_every_formula(case, soft_cap, chunks_of_seven):
    loss, formula = case
    leaves, labels, weights = make_inputs(11, 4, 9, torch.float64)
    arguments = labels, weights, loss.formula, SCALE, 1, True
    objective, _, nll = vocabulary_pass(*leaves, *arguments, soft_cap=soft_cap)
    objective.backward()
    want, _, exact = whole(leaves, labels, weights, formula, 1, soft_cap)
    want.backward()
    torch.testing.assert_close(objective, want)
    assert not nll[weights == 0].any()
    for mine, theirs in zip(leaves, exact, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad.nan_to_num(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("logits_dtype", "soft_cap"), [(torch.float32, None), (None, None), (torch.float32, 4.3)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.slow
def test_half_precision_is_as_good_as_its_roundings(dtype, logits_dtype, soft_cap, monkeypatch):
    monkeypatch.setattr(fused_rows, "LOGITS_DTYPE", logits_dtype)
    leaves, labels, weights = make_inputs(20, 16, 300, dtype)
    arguments = labels, weights, PLAIN.formula, SCALE, 1, True
    objective, sums, _ = vocabulary_pass(*leaves, *arguments, soft_cap=soft_cap)
    objective.backward()
    want, exact_sums, exact = whole(leaves, labels, weights, reference.crossentropy, 1, soft_cap)
    want.backward()
    assert objective.dtype == torch.float32
    hidden, kernel, bias = (x.detach().nan_to_num() for x in exact)
    logits = hidden @ kernel
    # Half a step, or a whole one under the interpreter, which cuts bfloat16.
    step = torch.finfo(dtype).eps
    shift = 0.0 if logits_dtype == torch.float32 else step * logits.abs().max().item() / 2
    nll_error = 1e-5 + 2 * shift
    assert abs(objective.item() - want.item()) <= nll_error * SCALE * weights.sum().item()
    if not shift:
        torch.testing.assert_close(sums[2].double(), exact_sums[2])

    # Shares are rounded once, after their logits; hidden vectors once, with the row's weight; and
    # the gradient at last.
    logits, slope = logits + bias, 1.0
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
        slope = 1 - (logits / soft_cap) ** 2
    share = logits.softmax(1)
    share[torch.arange(len(labels)), labels] -= 1
    share *= slope
    share = share.abs() * weights[:, None].double() * SCALE
    of_share = torch.expm1(torch.tensor(2 * shift)).item() + step
    bounds = (
        (of_share * share @ kernel.abs().T),
        ((of_share + step) * hidden.abs().T @ share),
        ((of_share + step) * share.sum(0)),
    )
    smallest = torch.finfo(dtype).smallest_normal * step
    for mine, theirs, bound in zip(leaves, exact, bounds, strict=True):
        wanted = theirs.grad.nan_to_num()
        error = (mine.grad.double() - wanted).abs()
        assert (error <= 1.05 * bound + step * wanted.abs() + 50 * smallest + 1e-6).all()


def test_small_float16_gradients_wait_for_the_loss_scale():
    leaves, labels, weights = make_inputs(40, 16, 300, torch.float16)
    objective, *_ = vocabulary_pass(*leaves, labels, weights, PLAIN.formula, 1e-9, 0, True)
    (objective * 2.0**24).backward()
    want, _, exact = whole(leaves, labels, weights, reference.crossentropy, 1)
    (want * 2.0**24 * 1e-9 / SCALE).backward()
    for mine, theirs in zip(leaves, exact, strict=True):
        assert relative(mine.grad, theirs.grad.nan_to_num()) < 2e-3


def test_a_sure_model_still_learns_in_bfloat16():
    # p is 1 in bfloat16, and 1 - p is 3e-4.
    hidden = torch.tensor([[8.0]], dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    kernel = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    labels, weights = torch.zeros(1, dtype=torch.long, device=DEVICE), torch.ones(1, device=DEVICE)
    arguments = labels, weights, PLAIN.formula, 1.0, 1, True
    vocabulary_pass(hidden, kernel, None, *arguments)[0].backward()
    doubt = 1 / (1 + torch.tensor(8.0).double().exp())
    torch.testing.assert_close(hidden.grad.double().cpu(), -doubt[None, None], rtol=8e-3, atol=0)


def test_evaluation_holds_few_rows_and_makes_no_gradients(monkeypatch):
    leaves, labels, weights = make_inputs(11, 4, 9, torch.float32)
    monkeypatch.setattr(fused_rows.FusedRows, "accumulate", None)
    with torch.no_grad():
        objective, sums, _ = vocabulary_pass(
            *leaves, labels, weights, PLAIN.formula, SCALE, 2, True
        )
    _, exact_sums, _ = whole(leaves, labels, weights, reference.crossentropy, 2)
    assert not objective.requires_grad
    for got, expected in zip(sums, exact_sums, strict=True):
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("tokens", [0, 3])
def test_nothing_to_count(tokens):
    leaves, labels, _ = make_inputs(tokens, 4, 9, torch.float32)
    weights = torch.zeros(tokens, device=DEVICE)
    objective, sums, _ = vocabulary_pass(*leaves, labels, weights, PLAIN.formula, 1.0, 1, True)
    objective.backward()
    assert [float(s) for s in sums] == [0.0] * 4
    assert not any(x.grad.any() for x in leaves)


@pytest.mark.cuda_only
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float32, 1e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)],
    ids=str,
)
@pytest.mark.parametrize("soft_cap", [None, 30.0])
@pytest.mark.parametrize("case", OF_ANY_VOCABULARY[1::6], ids=lambda case: case[0].name)
def test_on_a_gpu_as_it_is(case, soft_cap, dtype, limit, monkeypatch):
    loss, formula = case
    monkeypatch.undo()
    leaves, labels, weights = make_inputs(1300, 64, 5003, dtype)
    arguments = labels, weights, loss.formula, SCALE, 3, True
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective, sums, _ = vocabulary_pass(*leaves, *arguments, soft_cap=soft_cap)
        objective.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    want, exact_sums, exact = whole(leaves, labels, weights, formula, 3, soft_cap)
    want.backward()
    assert objective.item() == pytest.approx(want.item(), rel=1e-5)
    for got, expected in zip(sums, exact_sums, strict=True):
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(leaves, exact, strict=True):
        assert relative(mine.grad, theirs.grad.nan_to_num()) < limit


class Count(TorchDispatchMode):
    """The products by dtype, the bytes that are read and written, and the operations."""

    NOTHING_MOVES = ("alias", "slice", "t", "transpose", "view", "select", "unsqueeze", "squeeze")
    NOTHING_MOVES += ("detach", "expand", "permute", "_unsafe_view", "unbind")
    NOTHING_MOVES += ("empty", "new_empty", "empty_like")

    def __init__(self):
        super().__init__()
        self.products, self.bytes, self.launches = collections.Counter(), 0, 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        result, name = operation(*arguments, **options), operation.overloadpacket.__name__
        tensors = [x for x in (*arguments, result) if isinstance(x, torch.Tensor)]
        if name in ("mm", "addmm", "addmm_"):
            left, right = [x for x in arguments if isinstance(x, torch.Tensor)][-2:]
            self.products[left.dtype] += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        if name not in self.NOTHING_MOVES:
            self.add(tensors)
        return result

    def add(self, tensors):
        """One operation that reads or writes the tensors."""
        self.launches += 1
        self.bytes += sum(x.numel() * x.element_size() for x in tensors)


@pytest.fixture
def count(monkeypatch):
    """Counts on the device `meta`, whose tensors have no values: the kernels have none to read."""
    monkeypatch.undo()
    counts = Count()
    monkeypatch.setattr(row_kernels, "can_launch", lambda tensor: tensor.is_meta)
    monkeypatch.setattr(
        row_kernels,
        "reduce_rows",
        lambda z, v, b, t, w, k, out, softmax=None: counts.add([z, w, out, softmax]),
    )
    monkeypatch.setattr(fused_rows, "reduce_rows", row_kernels.reduce_rows)
    return counts


def test_no_product_is_of_float32_and_few_bytes_are_moved(count):
    tokens, width, vocab_size = 16_384, 768, 50_304
    options = {"dtype": torch.bfloat16, "device": "meta", "requires_grad": True}
    hidden, kernel = (
        torch.empty(tokens, width, **options),
        torch.empty(width, vocab_size, **options),
    )
    labels = torch.zeros(tokens, dtype=torch.long, device="meta")
    weights = torch.ones(tokens, device="meta")
    with count:
        objective, *_ = vocabulary_pass(
            hidden, kernel, None, labels, weights, PLAIN.formula, 1.0, 1, True
        )
        objective.backward()
    assert count.products == {torch.bfloat16: 3 * 2 * tokens * width * vocab_size}
    # Logits are written and read in float32, their softmax is written once and read twice.
    logits = tokens * vocab_size * (4 + 4 + 3 * 2)
    parts, chunk = tokens // fused_rows.LOGITS_ROWS, tokens // (2 * chunks.GPU_CHUNK_ROWS)
    kernel_bytes = width * vocab_size * (2 * parts + (2 + 8) * chunk + 4 + 6)
    assert logits < count.bytes < 1.05 * (logits + kernel_bytes)


def test_a_small_batch_takes_few_operations(count):
    leaves = [torch.empty(*s, device="meta", requires_grad=True) for s in ((64, 8), (8, 99))]
    labels, weights = (torch.zeros(64, dtype=d, device="meta") for d in (torch.long, None))
    with count:
        vocabulary_pass(*leaves, None, labels, weights, PLAIN.formula, 1.0, 1, True)[0].backward()
    assert count.launches <= 35


def test_a_model_under_mixed_bfloat16_multiplies_no_float32(count):
    model = models.CausalTransformer(300, 32, num_layers=1, num_heads=2, dtype="mixed_bfloat16")
    model.compile(optimizer="sgd", loss=PLAIN)
    model.build((2, 16))
    ids = torch.zeros(2, 16, dtype=torch.long, device="meta")
    values = [(v, torch.empty_like(v.value, device="meta")) for v in model.variables]
    with keras.device("meta"), keras.StatelessScope(state_mapping=values), count:
        model.step.one_pass(ids, ids, None, training=True, unit=1.0, counts=None)
    assert set(count.products) == {torch.bfloat16}
    # The head's three are among them.
    assert count.products[torch.bfloat16] > 3 * 2 * 32 * 32 * 300
