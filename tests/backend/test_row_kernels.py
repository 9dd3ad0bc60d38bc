"""The Triton kernels against float64: under Triton's interpreter where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_llm.backend.torch import row_kernels
from keras_llm.backend.torch.row_kernels import new_numbers, reduce_rows, write_gradient
from tests.backend.row_kernels_on import DEVICE, kernels  # noqa: F401

pytestmark = [
    pytest.mark.torch_only,
    # What NumPy says to the interpreter, of infinities and NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
by_hypothesis = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def accumulated(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def tolerance(dtype):
    """Of numbers that are summed in float32, or float64."""
    return (
        {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 2e-6}
    )


def assert_rounded_once(got, want):
    """That numbers differ by no more than rounding to their dtype, once, and float32's digits."""
    limits = torch.finfo(got.dtype)
    # The interpreter cuts the digits that bfloat16 has not, where a GPU rounds to the nearest.
    cuts = got.dtype == torch.bfloat16 and DEVICE == "cpu"
    bound = (
        1.0 if cuts else 0.5
    ) * limits.eps * want.abs() + 0.5 * limits.smallest_normal * limits.eps
    float32 = 1e-5 if got.dtype != torch.float64 else 1e-12
    assert ((got.double() - want).abs() <= 1.01 * bound + float32 * want.abs() + 1e-12).all()


@st.composite
def rows_of_logits(draw):
    """Logits of any layout, a bias or None, labels, weights with some of 0 on rows of NaN, and a
    soft cap or None."""
    rows, vocab_size = draw(st.integers(1, 6)), draw(st.integers(1, 400))
    dtype = draw(st.sampled_from(DTYPES))
    layout = draw(st.sampled_from(["rows", "padded", "columns", "every second"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = {
        "rows": (rows, vocab_size),
        "padded": (rows, vocab_size + 7),
        "columns": (vocab_size, rows),
        "every second": (rows, 2 * vocab_size),
    }[layout]
    logits = draw(st.sampled_from([0.1, 3.0, 20.0])) * torch.randn(shape, generator=generator)
    if draw(st.booleans()):
        # So that many are equal.
        logits = logits.round()
    logits = logits.to(DEVICE, dtype)
    if layout == "columns":
        logits = logits.T
    elif layout == "every second":
        logits = logits[:, ::2]
    bias = torch.randn(vocab_size, generator=generator).to(DEVICE, accumulated(dtype))
    labels = torch.randint(0, vocab_size, (rows,), generator=generator).to(DEVICE)
    weights = (torch.rand(rows, generator=generator) * (draw(st.integers(0, 1)) or 1)).to(DEVICE)
    weights *= torch.rand(rows, generator=generator).to(DEVICE) > 0.3
    logits[weights == 0] = draw(st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0]))
    bias, soft_cap = draw(st.sampled_from([None, bias])), draw(st.sampled_from([None, 8.3]))
    return logits, vocab_size, bias, labels, weights, soft_cap


def exact(logits, vocab_size, bias, labels, soft_cap=None):
    """The finished logits and the numbers of each row in float64; as `RowNumbers` has them."""
    z = logits[:, :vocab_size].double()
    z = z if bias is None else z + bias.double()
    z = z if soft_cap is None else soft_cap * torch.tanh(z / soft_cap)
    lse, largest = z.logsumexp(1), z.amax(1)
    nll = F.cross_entropy(z, labels, reduction="none")
    return z, (nll, lse, z.mean(1), largest, (lse - largest).exp())


@pytest.mark.slow
@by_hypothesis
@given(rows=rows_of_logits(), top_k=st.integers(0, 5))
def test_numbers_of_rows_and_their_softmax(rows, top_k):
    logits, vocab_size, bias, labels, weights, soft_cap = rows
    dtype, counts = logits.dtype, weights != 0
    out = new_numbers(len(logits), logits, accumulated(dtype))
    softmax = torch.full(logits.shape, 7.0, dtype=dtype, device=DEVICE)
    got = reduce_rows(logits, vocab_size, bias, labels, weights, top_k, out, softmax, soft_cap)
    z, want = exact(logits, vocab_size, bias, labels, soft_cap)
    for mine, theirs in zip(got, want, strict=False):
        torch.testing.assert_close(mine[counts].double(), theirs[counts], **tolerance(dtype))
    ranks = z.to(out.dtype).sort(dim=1, descending=True, stable=True).indices
    hits = (ranks[:, :top_k] == labels[:, None]).any(1)
    # Rounding to float32 makes different logits near the cap equal, in one way or another.
    if bias is None and (soft_cap is None or dtype == torch.float64):
        assert torch.equal(got.hit[counts] != 0, hits[counts])

    # 1 - p from all other shares, which are known to as many digits as p.
    onehot = F.one_hot(labels, vocab_size).bool()
    share = z.softmax(1)
    share[onehot] = -share.masked_fill(onehot, 0.0).sum(1)
    assert_rounded_once(softmax[counts, :vocab_size], share[counts])
    for unwritten in (
        softmax[~counts],
        softmax[:, vocab_size:],
        got.nll[~counts],
        got.hit[~counts],
    ):
        assert not unwritten.any()


@pytest.mark.slow
@by_hypothesis
@given(rows=rows_of_logits())
def test_gradient_over_the_logits(rows):
    logits, vocab_size, bias, labels, weights, soft_cap = rows
    logits, counts = logits[:, :vocab_size], weights != 0
    z, (_, _, _, largest, _) = exact(logits, vocab_size, bias, labels, soft_cap)
    per_row = torch.randn(3, len(logits), dtype=torch.float64).to(DEVICE, accumulated(logits.dtype))
    gradient = torch.empty_like(logits)
    numbers = largest.to(per_row.dtype), *per_row
    options = {"bias": bias, "soft_cap": soft_cap}
    write_gradient(logits, labels, counts, *numbers, out=gradient, **options)
    factor, shift, at_label = per_row.double()[:, :, None]
    want = factor * (z - largest[:, None]).exp() + shift
    want.scatter_(1, labels[:, None], at_label)
    terms = factor.abs() + shift.abs()
    if soft_cap is not None:
        want *= 1 - (z / soft_cap) ** 2
        terms = terms + at_label.abs()
    error = (gradient.double() - want).abs()[counts]
    step = torch.finfo(gradient.dtype).eps * want.abs() + 1e-6 * terms
    assert (error <= step[counts]).all()
    assert not gradient[~counts].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.quick(3)
def test_the_softmax_may_be_written_over_the_logits(dtype):
    logits = torch.randn(4, 300).to(DEVICE, dtype)
    labels, weights = torch.tensor([0, 299, 5, 128]).to(DEVICE), torch.ones(4).to(DEVICE)
    apart, out = torch.empty_like(logits), new_numbers(4, logits, accumulated(dtype))
    reduce_rows(logits, 300, None, labels, weights, 0, out, apart)
    reduce_rows(logits, 300, None, labels, weights, 0, out, logits)
    assert torch.equal(logits, apart)


def test_large_logits_forbidden_classes_and_sure_models():
    logits = torch.zeros(4, 200)
    logits[0] = 1e4 + torch.arange(200.0)
    logits[1, 1:] = -torch.inf
    logits[2, :150] = -torch.inf
    logits[3, 7] = 12.0
    logits = logits.to(DEVICE)
    labels, weights = torch.tensor([3, 0, 160, 7]).to(DEVICE), torch.ones(4).to(DEVICE)
    out, softmax = new_numbers(4, logits, torch.float32), torch.empty_like(logits)
    got = reduce_rows(logits, 200, None, labels, weights, 1, out, softmax)
    want = F.cross_entropy(logits.double(), labels, reduction="none")
    torch.testing.assert_close(got.nll.double(), want, rtol=1e-5, atol=1e-7)
    assert softmax[1].tolist() == [0.0] * 200
    # A sum of shares of 6e-6: nothing of it is lost to the 1 that it is beside.
    others = torch.tensor(199 * 6.144212353328210e-06, dtype=torch.float64)
    assert -softmax[3, 7].item() == pytest.approx((others / (1 + others)).item(), rel=1e-6)


@pytest.mark.parametrize("top_k", [1, 3, 200])
def test_a_row_with_nan_is_never_right_and_its_loss_is_nan(top_k):
    logits = torch.zeros(3, 200)
    logits[0, 5] = logits[1, 190] = torch.nan
    logits[2] = torch.nan
    logits = logits.to(DEVICE)
    labels, weights = torch.tensor([6, 6, 0]).to(DEVICE), torch.ones(3).to(DEVICE)
    out = new_numbers(3, logits, torch.float32)
    got = reduce_rows(logits, 200, None, labels, weights, top_k, out)
    assert got.nll.isnan().all()
    assert got.lse.isnan().all()
    # Before the label there are zeros, and NaN counts as larger than any of them.
    assert got.hit.tolist() == [float(top_k == 200)] * 2 + [0.0]


def test_rows_beyond_the_reach_of_int32():
    # Only what is touched takes memory on a CPU.
    room = torch.empty(2**31 + 300, dtype=torch.bfloat16, device=DEVICE)
    logits = room.as_strided((3, 300), (2**30, 1))
    logits.copy_(torch.randn(3, 300))
    labels, counts = torch.tensor([1, 2, 3]).to(DEVICE), torch.ones(3, device=DEVICE)
    out = new_numbers(3, logits, torch.float32)
    got = reduce_rows(logits, 300, None, labels, counts, 1, out, logits.clone())
    want = F.cross_entropy(logits.double(), labels, reduction="none")
    torch.testing.assert_close(got.nll.double(), want, rtol=1e-5, atol=1e-6)
    zero, before = torch.zeros(3, device=DEVICE), logits.clone()
    per_row = got.max_logit, 1 + zero, zero, zero
    write_gradient(logits, labels, counts, *per_row, out=logits)
    want = (before.float() - got.max_logit[:, None]).exp()
    want.scatter_(1, labels[:, None], 0.0)
    torch.testing.assert_close(logits.float(), want, rtol=1e-2, atol=1e-6)


def test_no_rows():
    logits = torch.empty(0, 9, device=DEVICE)
    labels, weights = torch.empty(0, dtype=torch.long, device=DEVICE), torch.empty(0, device=DEVICE)
    got = reduce_rows(logits, 9, None, labels, weights, 1, new_numbers(0, logits, torch.float32))
    assert got.nll.shape == (0,)
    assert row_kernels.RowNumbers._fields == tuple(got._asdict())


def test_where_triton_cannot_compile_it_says_why(monkeypatch):
    device = torch.device(DEVICE)
    assert row_kernels.compiles.__wrapped__(device)

    def fails(*arguments, **options):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(row_kernels, "launch", fails)
    with pytest.warns(UserWarning, match="RuntimeError: Failed to find C compiler"):
        assert not row_kernels.compiles.__wrapped__(device)
