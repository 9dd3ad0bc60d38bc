"""Attention within segments by the GPU's kernel for sequences of different lengths.

Without a GPU the kernels are replaced by PyTorch's attention of each sequence by itself, which the
arguments describe: that tests all but the kernels.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from keras_llm.backend.torch import attention
from keras_llm.backend.torch import varlen_attention as varlen

pytestmark = pytest.mark.torch_only


def ids_of(lengths):
    """One row of segment ids, of segments of these lengths."""
    return np.repeat(np.arange(len(lengths)), lengths)


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_bounds_are_where_ids_change(steps):
    ids = torch.tensor(steps).cumsum(1)
    got = varlen.find_segments(ids)
    rows = ids.tolist()
    starts = [
        6 * row + i
        for row, values in enumerate(rows)
        for i in range(6)
        if i == 0 or values[i] != values[i - 1]
    ]
    assert int(got.counts) == len(starts)
    assert got.bounds.dtype == torch.int32
    want = starts + [ids.numel()] * (ids.numel() + 1 - len(starts))
    assert got.bounds.tolist() == want


def each(query, key, value, bounds, longest):
    """Each sequence: its place, its queries, and keys and values for each query head."""
    groups = query.shape[1] // key.shape[1]
    for start, stop in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        assert start < stop <= start + longest
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(groups, 0) for x in (k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        yield slice(start, stop), q, k, v, scores.masked_fill(hidden, -torch.inf).softmax(-1)


def forward(query, key, value, bounds, _, longest, __, dropout, causal, debug):
    assert (dropout, causal, debug) == (0.0, True, False)
    output = torch.empty_like(query)
    for place, _, _, v, shares in each(query, key, value, bounds, longest):
        output[place] = (shares @ v).transpose(0, 1)
    return output, query.new_zeros(query.shape[1], len(query)), None, None, None


def backward(gradient, query, key, value, output, lse, bounds, _, longest, *rest):
    assert lse.shape == (query.shape[1], len(query))
    gradients = [torch.empty_like(x) for x in (query, key, value)]
    for place, q, k, v, shares in each(query, key, value, bounds, longest):
        upstream = gradient[place].transpose(0, 1)
        d_shares = upstream @ v.mT
        mean = (d_shares * shares).sum(-1, keepdim=True)
        d_scores = shares * (d_shares - mean) / q.shape[-1] ** 0.5
        parts = d_scores @ k, d_scores.mT @ q, shares.mT @ upstream
        for whole, part in zip(gradients, parts, strict=True):
            # The gradient of a shared head is the sum of those of its query heads.
            heads = part.unflatten(0, (whole.shape[1], -1)).sum(1)
            whole[place] = heads.transpose(0, 1)
    return gradients


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.cuda_only)])
def place(request, monkeypatch):
    """The device and the dtype; on the CPU, with other kernels."""
    if request.param == "cuda":
        return dict(device="cuda", dtype=torch.bfloat16)
    monkeypatch.setattr(varlen, "FORWARD", forward)
    monkeypatch.setattr(varlen, "BACKWARD", backward)
    monkeypatch.setattr(attention, "has_flash_attention", lambda *kind: True)
    return dict(device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_output_and_gradients_are_those_of_a_mask(shared, place):
    ids = torch.tensor(
        np.stack([ids_of([3, 1, 60]), ids_of([64]), ids_of([1] * 10 + [54])]),
        device=place["device"],
    )
    torch.manual_seed(0)
    query = torch.randn(3, 64, 4, 16, **place, requires_grad=True)
    key, value = (torch.randn(3, 64, shared, 16, **place, requires_grad=True) for _ in "kv")
    found = attention.segments(ids, None, str(place["dtype"]).split(".")[1], 16)
    assert isinstance(found, varlen.Segments)
    output = attention.attend(query, key, value, causal=True, segment_ids=found)
    upstream = torch.randn_like(output)
    got = [output, *torch.autograd.grad(output, (query, key, value), upstream)]

    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    q, k, v = (x.transpose(1, 2) for x in exact)
    k, v = (x.repeat_interleave(4 // shared, 1) for x in (k, v))
    mask = (ids[:, None, :, None] == ids[:, None, None, :]).tril()
    output = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    want = [output, *torch.autograd.grad(output, exact, upstream.double())]
    # A number of bfloat16 has 8 bits; gradients are sums of some of them.
    tolerance = 2e-5 if place["dtype"] == torch.float32 else 3e-2
    for mine, hers in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), hers, rtol=tolerance, atol=tolerance)


@pytest.mark.cuda_only
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_shared_heads_are_not_copied(kind):
    """Neither the scores are in memory, nor are the numbers others than those of copied heads."""
    dtype = getattr(torch, kind)
    query = torch.randn(2, 2048, 8, 64, device="cuda", dtype=dtype, requires_grad=True)
    key, value = (
        torch.randn(2, 2048, 2, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in "kv"
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = attention.attend(query, key, value, causal=True)
    output.float().square().sum().backward()
    torch.cuda.synchronize()
    scores = 2 * 8 * 2048 * 2048 * dtype.itemsize
    assert torch.cuda.max_memory_allocated() - before < 0.5 * scores

    copied = [x.detach().double().repeat_interleave(4, 2) for x in (key, value)]
    q, k, v = (x.transpose(1, 2) for x in (query.detach().double(), *copied))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(output.double(), want, rtol=2e-2, atol=2e-2)
