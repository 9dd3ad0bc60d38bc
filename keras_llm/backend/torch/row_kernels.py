"""Two Triton kernels for rows of logits: what a row comes to, and the gradient over the logits.

Between the matrix products a GPU is bound by how often the logits are read and written. The first
kernel reads a row once for everything that losses and metrics ask for, and on wish once more, from
the cache, to write the softmax; operations of PyTorch read it about ten times.
"""

import functools
import warnings
from typing import NamedTuple

import torch

from keras_llm.backend.torch.tensors import is_plain
from keras_llm.backend.torch.triton_logits import finished, tl, triton

# Columns that one program works on at once, and the warps that share them.
BLOCK_COLUMNS, WARPS = 4096, 16
# Neighbouring columns that a thread reads at once.
LANE = 8


class RowNumbers(NamedTuple):
    """The numbers of each row, in float32 (float64 where the logits are); 0 where weights are 0.

    Attributes:
        nll: `lse - logits[label]`.
        lse: The log-sum-exp of the logits.
        mean_logit: Their mean.
        max_logit: The largest of them.
        total: The sum of `exp(logits - max_logit)`; 1 where the weight is 0.
        hit: 1 where the label is among the `top_k` largest logits, else 0.
    """

    nll: torch.Tensor
    lse: torch.Tensor
    mean_logit: torch.Tensor
    max_logit: torch.Tensor
    total: torch.Tensor
    hit: torch.Tensor


def can_launch(tensor: torch.Tensor) -> bool:
    """Whether the kernels run where the tensor lies."""
    on_gpu = triton is not None and tensor.device.type == "cuda" and is_plain(tensor)
    return on_gpu and compiles(tensor.device)


@functools.cache
def compiles(device: torch.device) -> bool:
    """Whether Triton makes kernels for the device, for which it needs a C compiler too."""
    number, index = torch.ones(1, device=device), torch.zeros(1, device=device, dtype=torch.int64)
    try:
        write_gradient(number[None], index, *[number] * 5, out=number[None].clone())
    except Exception as error:
        warnings.warn(
            "Triton cannot compile here, so losses take PyTorch's operations, which are several "
            f"times slower. It says: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


def new_numbers(rows: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Room for `RowNumbers`, `[6, rows]`."""
    return like.new_empty(len(RowNumbers._fields), rows, dtype=dtype)


def reduce_rows(
    logits, vocab_size, bias, labels, weights, top_k, out, softmax=None, soft_cap=None
) -> RowNumbers:
    """Reduces rows of logits over the vocabulary.

    Args:
        logits: `[rows, width]`, of any layout.
        vocab_size: How many columns count. There may be more, so that each row starts at an
            address that is read fast.
        bias: `[vocab]`, added to the logits on the way, or None.
        labels: `[rows]`, int64, inside the vocabulary.
        weights: `[rows]`, numbers or booleans. A row of weight 0 is not read.
        top_k: Of `RowNumbers.hit`; of equal logits the first wins. 0 counts nothing.
        out: `[6, rows]`, from `new_numbers`.
        softmax: None, or `[rows, width]`, of which rows are contiguous: gets
            `softmax(logits) - onehot(label)`, and zeros where weights and columns do not count. It
            may be `logits`.
        soft_cap: None, or c: the numbers and the softmax are those of
            `c * tanh((logits + bias) / c)`.

    Returns:
        `out`, by name.
    """
    target = logits if softmax is None else softmax
    launch(
        _reduce_rows,
        logits,
        *(logits, logits.stride(0), logits.stride(1)),
        *(x.contiguous() for x in (labels if bias is None else bias, labels, weights)),
        *(out, out.stride(0), target, target.stride(0)),
        *(vocab_size, logits.shape[1], top_k),
        HAS_BIAS=bias is not None,
        CAP=soft_cap,
        COUNTS_HITS=top_k > 0,
        WRITES_SOFTMAX=softmax is not None,
        LANE=LANE,
    )
    return RowNumbers(*out.unbind())


def write_gradient(
    logits, labels, counts, max_logit, factor, shift, at_label, out, bias=None, soft_cap=None
) -> None:
    """Writes `factor * exp(logits - max_logit) + shift`, and `at_label` for the label, to `out`.

    With a soft cap c, z' = `c * tanh((logits + bias) / c)` stands for the logits, and all is
    multiplied by the slope 1 - (z' / c)^2.

    Args:
        logits: `[rows, vocab]`, of any layout.
        labels: `[rows]`, int64, inside the vocabulary.
        counts: `[rows]`, numbers or booleans. Where 0, the row is not read and its gradient is 0.
        max_logit, factor, shift, at_label: `[rows]`, in the dtype that the gradient is computed in.
        out: `[rows, vocab]`, of any layout; may be `logits`.
        bias: `[vocab]` or None.
        soft_cap: c or None.
    """
    launch(
        _write_gradient,
        logits,
        *(logits, logits.stride(0), logits.stride(1)),
        labels if bias is None else bias.contiguous(),
        *(x.contiguous() for x in (labels, counts, max_logit, factor, shift, at_label)),
        *(out, out.stride(0), out.stride(1), logits.shape[1]),
        HAS_BIAS=bias is not None,
        CAP=soft_cap,
    )


def launch(kernel, logits, *arguments, **constants):
    """Runs a kernel with one program for each row of the logits."""
    rows, width = logits.shape
    block = min(BLOCK_COLUMNS, max(triton.next_power_of_2(width), 128))
    warps = max(WARPS * block // BLOCK_COLUMNS, 1)
    if rows:
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device_of(logits):
            kernel[(rows,)](*arguments, **constants, BLOCK=block, num_warps=warps)


if triton is not None:

    @triton.jit
    def _reduce_rows(
        logits,
        logits_row,
        logits_column,
        bias,
        labels,
        weights,
        out,
        out_row,
        softmax,
        softmax_row,
        vocab_size,
        width,
        top_k,
        HAS_BIAS: tl.constexpr,
        CAP: tl.constexpr,
        COUNTS_HITS: tl.constexpr,
        WRITES_SOFTMAX: tl.constexpr,
        LANE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        # In int64: a buffer may have more than 2^31 numbers.
        row = tl.program_id(0).to(tl.int64)
        accumulated = out.dtype.element_ty
        out += row
        logits += row * logits_row
        softmax += row * softmax_row
        # A thread has whole lanes: within the loop, none waits for another one's numbers.
        columns = tl.arange(0, BLOCK // LANE)[:, None] * LANE + tl.arange(0, LANE)[None, :]
        blocks = tl.cdiv(width, BLOCK)
        if tl.load(weights + row) == 0:
            for number in tl.static_range(6):
                tl.store(out + number * out_row, 1.0 if number == 4 else 0.0)
            if WRITES_SOFTMAX:
                zeros = tl.zeros((BLOCK // LANE, LANE), softmax.dtype.element_ty)
                for block in range(blocks):
                    at = block * BLOCK + columns
                    tl.store(softmax + at, zeros, mask=at < width)
            return

        label = tl.load(labels + row).to(tl.int32)
        label_logit = tl.load(logits + label.to(tl.int64) * logits_column).to(accumulated)
        label_logit = finished(label_logit, bias, label, label < vocab_size, HAS_BIAS, CAP)
        # Of each lane. The label's share is added last: 1 - p of a sure model keeps its digits.
        largest = tl.full((BLOCK // LANE,), float("-inf"), accumulated)
        others = tl.zeros((BLOCK // LANE,), accumulated)
        sums = tl.zeros((BLOCK // LANE,), accumulated)
        ahead = tl.zeros((BLOCK // LANE,), tl.int32)
        for block in range(blocks):
            at = block * BLOCK + columns
            inside = at < vocab_size
            place = logits + at.to(tl.int64) * logits_column
            z = tl.load(place, mask=at < width, eviction_policy="evict_last").to(accumulated)
            z = finished(z, bias, at, inside, HAS_BIAS, CAP)
            sums += tl.sum(tl.where(inside, z, 0.0), 1)
            z = tl.where(inside, z, float("-inf"))
            if CAP is not None:
                # Below they are compared, and a compiler may round the two in other ways.
                z = tl.where(at == label, label_logit, z)
            if COUNTS_HITS:
                # NaN compares false, so a diverged model is never counted right.
                behind = tl.where(at < label, z < label_logit, z <= label_logit)
                ahead += tl.sum((behind == 0).to(tl.int32), 1)
            before = largest
            largest = tl.maximum(before, tl.max(z, 1))
            # Where all logits so far are -inf, the difference of two of them would be NaN.
            base = tl.where(largest == float("-inf"), 0.0, largest)
            z = tl.where(at == label, float("-inf"), z)
            others = others * tl.exp(before - base) + tl.sum(tl.exp(z - base[:, None]), 1)
        max_logit = tl.maximum(tl.max(largest, 0), label_logit)
        base = tl.where(max_logit == float("-inf"), 0.0, max_logit)
        rest = tl.sum(others * tl.exp(largest - base), 0)
        total = rest + tl.exp(label_logit - base)
        log_total = tl.log(total)
        tl.store(out, log_total - (label_logit - max_logit))
        tl.store(out + out_row, log_total + max_logit)
        tl.store(out + 2 * out_row, tl.sum(sums, 0) / vocab_size)
        tl.store(out + 3 * out_row, max_logit)
        tl.store(out + 4 * out_row, total)
        tl.store(out + 5 * out_row, tl.where(tl.sum(ahead, 0) < top_k, 1.0, 0.0))

        if WRITES_SOFTMAX:
            scale = 1.0 / total
            at_label = -rest / total
            # Backwards: the last blocks are the ones still in the cache.
            for step in range(blocks):
                at = (blocks - 1 - step) * BLOCK + columns
                inside = at < vocab_size
                place = logits + at.to(tl.int64) * logits_column
                z = tl.load(place, mask=at < width, eviction_policy="evict_first").to(accumulated)
                z = finished(z, bias, at, inside, HAS_BIAS, CAP)
                share = tl.where(at == label, at_label, tl.exp(z - base) * scale)
                share = tl.where(inside, share, 0.0).to(softmax.dtype.element_ty)
                tl.store(softmax + at, share, mask=at < width)

    @triton.jit
    def _write_gradient(
        logits,
        logits_row,
        logits_column,
        bias,
        labels,
        counts,
        max_logit,
        factor,
        shift,
        at_label,
        out,
        out_row,
        out_column,
        vocab_size,
        HAS_BIAS: tl.constexpr,
        CAP: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        accumulated = max_logit.dtype.element_ty
        logits += row * logits_row
        out += row * out_row
        columns = tl.arange(0, BLOCK)
        blocks = tl.cdiv(vocab_size, BLOCK)
        if tl.load(counts + row) == 0:
            zeros = tl.zeros((BLOCK,), out.dtype.element_ty)
            for block in range(blocks):
                at = block * BLOCK + columns
                tl.store(out + at.to(tl.int64) * out_column, zeros, mask=at < vocab_size)
            return

        label = tl.load(labels + row).to(tl.int32)
        largest, scale = tl.load(max_logit + row), tl.load(factor + row)
        added, of_label = tl.load(shift + row), tl.load(at_label + row)
        for block in range(blocks):
            at = block * BLOCK + columns
            inside = at < vocab_size
            place = logits + at.to(tl.int64) * logits_column
            z = tl.load(place, mask=inside, other=float("-inf")).to(accumulated)
            z = finished(z, bias, at, inside, HAS_BIAS, CAP)
            gradient = tl.where(at == label, of_label, tl.exp(z - largest) * scale + added)
            if CAP is not None:
                gradient *= 1.0 - (z / CAP) * (z / CAP)
            tl.store(
                out + at.to(tl.int64) * out_column,
                gradient.to(out.dtype.element_ty),
                mask=inside,
            )
