"""Whole logits `[tokens, vocab]` reduced a few rows at a time, and their gradient.

Every token loss is a formula of `nll`, `lse` and `mean_logit`, so autograd differentiates the
formula on vectors of one number a token, and only this step back to the logits is done by hand:

    dz = (d_nll + d_lse) * softmax(z) - d_nll * onehot(label) + d_mean / V

Nothing as large as the logits is kept for it: the softmax is made again from them, straight into
their gradient. `torch.nn.functional.cross_entropy` keeps the log-softmax and makes two gradients.
"""

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from keras_llm.backend.ops import logits_pass as generic
from keras_llm.backend.ops.logits_pass import TokenNumbers
from keras_llm.backend.torch import row_kernels
from keras_llm.backend.torch import tensors as facts
from keras_llm.backend.torch.lse_cache import recall, remember
from keras_llm.backend.torch.tensors import exp_in_place, is_plain, upcast_dtype

# Small enough for the caches of a core; and, on a GPU, large enough to keep it busy.
CPU_CHUNK_BYTES_A_THREAD, GPU_CHUNK_BYTES = 4 * 2**20, 128 * 2**20


def reduce_logits(logits, labels, counts, for_loss) -> TokenNumbers:
    """Reduces logits over the vocabulary; see `backend/ops/logits_pass.py`."""
    if not can_pass(logits):
        return generic.reduce_logits(logits, labels, counts, for_loss)
    labels = labels.long()
    known = None if for_loss else recall(logits, counts)
    if known is not None:
        log_total, max_logit = known
        nll = negative_log_likelihood(logits, labels, log_total, max_logit)
        return TokenNumbers(nll, log_total + max_logit, None, max_logit)
    rows = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), counts.reshape(-1)
    numbers = LogitsPass.apply(*rows, for_loss)
    nll, log_total, max_logit, mean = (x if x is None else x.reshape(labels.shape) for x in numbers)
    if for_loss:
        remember(logits, counts, (log_total, max_logit))
    return TokenNumbers(nll, log_total + max_logit, mean, max_logit)


def in_top_k(logits, labels, counts, max_logit, top_k):
    """Whether the label is among the `top_k` largest; see `backend/ops/logits_pass.py`."""
    if not can_pass(logits):
        return generic.in_top_k(logits, labels, counts, max_logit, top_k)
    shape, logits = labels.shape, logits.detach().reshape(-1, logits.shape[-1])
    labels = labels.reshape(-1).long()
    if row_kernels.can_launch(logits):
        numbers = reduce_rows(logits, labels, counts.reshape(-1), top_k)
        return (numbers.hit != 0).reshape(shape)
    if top_k > 1:
        chunks = zip(*(x.split(chunk_rows(logits)) for x in (logits, labels)), strict=True)
        correct = torch.cat([generic.in_top_k(z, t, None, None, top_k) for z, t in chunks])
        return correct.reshape(shape)
    # Only a label with the largest logit can be the first of them.
    correct = (label_logits(logits, labels) == max_logit.reshape(-1)) & counts.reshape(-1)
    if facts.is_on_host(logits):
        for some in correct.nonzero().squeeze(1).split(chunk_rows(logits)):
            best = logits.index_select(0, some).to(upcast_dtype(logits)).argmax(1)
            correct[some] = best == labels[some]
    else:
        correct &= logits.argmax(1) == labels
    return correct.reshape(shape)


class LogitsPass(torch.autograd.Function):
    """The numbers of each token, from rows of logits."""

    @staticmethod
    def forward(ctx, logits, labels, counts, with_mean):
        """`nll`, `lse - max_logit`, `max_logit` and, if asked for, the mean logit."""
        if row_kernels.can_launch(logits):
            numbers = reduce_rows(logits, labels, counts)
            nll, max_logit, total = numbers.nll, numbers.max_logit, numbers.total
            log_total, mean_logit = total.log(), numbers.mean_logit if with_mean else None
        else:
            nll, log_total, max_logit, total, mean_logit = reduce_chunks(
                logits, labels, counts, with_mean
            )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, labels, counts, nll, max_logit, total)
        ctx.mark_non_differentiable(max_logit)
        return nll, log_total, max_logit, mean_logit

    @staticmethod
    def backward(ctx, d_nll, d_lse, _, d_mean):
        """The gradient of the logits, the one tensor of their size."""
        logits, labels, counts, nll, max_logit, total = ctx.saved_tensors
        if torch.is_grad_enabled():
            # create_graph=True: the gradient is to be differentiated again.
            gradient = recorded_gradient(logits, labels, (d_nll, d_lse, d_mean))
            return gradient, None, None, None
        partials = d_nll, d_lse, d_mean
        factor, shift, at_label = gradient_numbers(partials, nll, total, logits.shape[1])
        gradient = torch.empty_like(logits)
        if row_kernels.can_launch(logits):
            shift = torch.zeros_like(nll) if shift is None else shift
            rows = labels, counts, max_logit, factor, shift, at_label
            row_kernels.write_gradient(logits, *rows, out=gradient)
            return gradient, None, None, None
        scratch = None if logits.dtype == nll.dtype else new_scratch(logits)
        for chunk in chunks_that_count(logits, counts):
            z = logits[chunk]
            room = gradient[chunk] if scratch is None else scratch[: len(z)]
            added = None if shift is None else shift[chunk]
            part = gradient_beside_label(z, max_logit[chunk], factor[chunk], added, out=room)
            part.scatter_(1, labels[chunk, None], at_label[chunk, None])
            if scratch is not None:
                gradient[chunk] = part
        if facts.is_on_host(logits):
            # Left out above; and what does not count may be NaN, which no factor makes 0.
            gradient.index_fill_(0, (~counts).nonzero().squeeze(1), 0.0)
        return gradient, None, None, None


def gradient_numbers(partials, nll, total, vocab_size):
    """What makes a row's gradient: `factor * exp(z - max z) + shift`, and `at_label` at the label.

    Args:
        partials: The derivatives by `nll`, `lse` and `mean_logit`, `[rows]` each; None for 0.
        nll: `[rows]`.
        total: `[rows]`, the sum of `exp(z - max z)`.
        vocab_size: Length of a row.

    Returns:
        `factor`, `shift` and `at_label`, `[rows]` each; the shift is None where it is 0.
    """
    zeros = torch.zeros_like(nll)
    d_nll, d_lse = (zeros if x is None else x for x in partials[:2])
    shift = None if partials[2] is None else partials[2] / vocab_size
    factor = (d_nll + d_lse) / total
    # Not by subtracting from the softmax: p - 1 of a sure model would round to 0.
    at_label = d_nll * torch.expm1(-nll) + d_lse * torch.exp(-nll)
    if shift is not None:
        at_label += shift
    return factor, shift, at_label


def gradient_beside_label(logits, max_logit, factor, shift, out=None):
    """`factor * exp(logits - max_logit) + shift` of some rows and columns, in `out` if given."""
    exponentials = exp_in_place(torch.sub(logits, max_logit[:, None], out=out))
    gradient = exponentials.mul_(factor[:, None])
    return gradient if shift is None else gradient.add_(shift[:, None])


def reduce_rows(logits, labels, counts, top_k=0):
    """The numbers of each row, on a GPU."""
    out = row_kernels.new_numbers(len(logits), logits, upcast_dtype(logits))
    return row_kernels.reduce_rows(logits, logits.shape[1], None, labels, counts, top_k, out)


def reduce_chunks(logits, labels, counts, with_mean):
    """The numbers of each row, a few rows at a time."""
    numbers = {"size": (len(labels),), "dtype": upcast_dtype(logits)}
    max_logit, total = logits.new_zeros(**numbers), logits.new_ones(**numbers)
    mean_logit = logits.new_zeros(**numbers) if with_mean else None
    scratch = new_scratch(logits)
    for chunk in chunks_that_count(logits, counts):
        z = logits[chunk]
        max_logit[chunk] = z.amax(1)
        below = torch.sub(z, max_logit[chunk, None], out=scratch[: len(z)])
        if with_mean:
            mean_logit[chunk] = max_logit[chunk] + below.mean(1)
        torch.sum(exp_in_place(below), 1, out=total[chunk])
    log_total = total.log()
    nll = negative_log_likelihood(logits, labels, log_total, max_logit)
    return nll, log_total, max_logit, total, mean_logit


def recorded_gradient(logits, labels, upstream):
    """The gradient of the logits by autograd, which can be differentiated again."""
    numbers = generic.reduce_logits(logits, labels, None, for_loss=True)[:3]
    pairs = [(x, d) for x, d in zip(numbers, upstream, strict=True) if d is not None]
    outputs, gradients = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, logits, gradients, create_graph=True)[0]


def can_pass(logits):
    """Whether these are logits with values, of which no graph of operations is being made."""
    return is_plain(logits) and logits.is_floating_point() and get_proxy_mode() is None


def chunks_that_count(logits, counts):
    """Slices of a few rows; on a CPU, without those in which nothing counts."""
    rows = chunk_rows(logits)
    for start in range(0, len(logits), rows):
        chunk = slice(start, min(start + rows, len(logits)))
        # On a GPU asking would wait for the device.
        if not facts.is_on_host(logits) or counts[chunk].any():
            yield chunk


def chunk_rows(logits):
    """How many rows are worked on at once."""
    is_cpu = logits.device.type == "cpu"
    size = CPU_CHUNK_BYTES_A_THREAD * torch.get_num_threads() if is_cpu else GPU_CHUNK_BYTES
    return max(size // (upcast_dtype(logits).itemsize * logits.shape[1]), 1)


def new_scratch(logits):
    """Room for a chunk."""
    rows = min(chunk_rows(logits), len(logits))
    return logits.new_empty(rows, logits.shape[1], dtype=upcast_dtype(logits))


def negative_log_likelihood(logits, labels, log_total, max_logit):
    """`lse - logits[label]`, taken apart at the largest logit so that large ones cost no digits."""
    return log_total - (label_logits(logits, labels) - max_logit)


def label_logits(logits, labels):
    """The logit of each label."""
    return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
