"""Whole logits `[tokens, vocab]` reduced a few rows at a time, and their gradient.

Every token loss is a formula of `nll`, `lse` and `mean_logit`, so autograd differentiates the
formula on vectors of one number a token, and only this step back to the logits is done by hand:

    dz = (d_nll + d_lse) * softmax(z) - d_nll * onehot(label) + d_mean / V

Nothing as large as the logits is kept for it: the softmax is made again from them, straight into
their gradient. `torch.nn.functional.cross_entropy` keeps the log-softmax and makes two gradients.
"""

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.weak import WeakIdKeyDictionary

from keras_llm.backend.ops import logits_pass as generic
from keras_llm.backend.ops.logits_pass import TokenNumbers
from keras_llm.backend.torch.tensors import exp_in_place, is_plain

# Small enough for the caches of a core; and, on a GPU, large enough to keep it busy.
CPU_CHUNK_BYTES_A_THREAD, GPU_CHUNK_BYTES = 4 * 2**20, 128 * 2**20

# What the loss found for each tensor of logits that is still alive, by the tensor's storage.
found = WeakIdKeyDictionary()


def reduce_logits(logits, labels, counts, for_loss) -> TokenNumbers:
    """Reduces logits over the vocabulary; see `backend/ops/logits_pass.py`.

    What a loss finds, the metrics of the same logits find again here: so that they share one
    reduction. Only a loss leaves it, since a program that replays a CUDA graph writes new logits
    in the same place, and PyTorch does not notice; its loss would come from the old ones.
    """
    if not can_pass(logits):
        return generic.reduce_logits(logits, labels, counts, for_loss)
    known = None if for_loss else recall(logits, counts)
    if known is not None:
        lse, largest = known
        return TokenNumbers(lse - generic.label_logits(logits, labels.long()), lse, None, largest)
    rows = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), counts.reshape(-1)
    numbers = LogitsPass.apply(*rows, for_loss)
    numbers = TokenNumbers(*(x if x is None else x.reshape(labels.shape) for x in numbers))
    if for_loss:
        remember(logits, counts, numbers)
    return numbers


def among_top(logits, labels, counts, largest, top_k):
    """Whether the label is among the `top_k` largest; see `backend/ops/logits_pass.py`."""
    if not can_pass(logits):
        return generic.among_top(logits, labels, counts, largest, top_k)
    shape, logits = labels.shape, logits.detach().reshape(-1, logits.shape[-1])
    labels = labels.reshape(-1).long()
    if top_k > 1:
        chunks = zip(*(x.split(chunk_rows(logits)) for x in (logits, labels)), strict=True)
        correct = torch.cat([generic.among_top(z, t, None, None, top_k) for z, t in chunks])
    elif logits.device.type == "cpu":
        # Only a label with the largest logit can be the first of them.
        leads = logits.gather(1, labels[:, None]).squeeze(1) == largest.reshape(-1)
        correct = leads & counts.reshape(-1)
        for some in correct.nonzero().squeeze(1).split(chunk_rows(logits)):
            correct[some] = wide(logits.index_select(0, some)).argmax(1) == labels[some]
    else:
        correct = logits.argmax(1) == labels
    return correct.reshape(shape)


class LogitsPass(torch.autograd.Function):
    """The three numbers of each token and its largest logit, from rows of logits."""

    @staticmethod
    def forward(ctx, logits, labels, counts, with_mean):
        """`(nll, lse, mean_logit or None, largest)`."""
        numbers = {"size": (len(labels),), "dtype": wide_dtype(logits)}
        largest, total = logits.new_zeros(**numbers), logits.new_ones(**numbers)
        mean_logit = logits.new_zeros(**numbers) if with_mean else None
        scratch = new_scratch(logits)
        for chunk in chunks_that_count(logits, counts):
            z = wide(logits[chunk])
            torch.amax(z, 1, out=largest[chunk])
            below = torch.sub(z, largest[chunk, None], out=scratch[: len(z)])
            if with_mean:
                mean_logit[chunk] = largest[chunk] + below.mean(1)
            torch.sum(exp_in_place(below), 1, out=total[chunk])
        log_total = total.log()
        nll = log_total - (generic.label_logits(logits, labels) - largest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, labels, counts, nll, largest, total)
        ctx.mark_non_differentiable(largest)
        return nll, largest + log_total, mean_logit, largest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_nll, d_lse, d_mean, _):
        """The gradient of the logits, the one tensor of their size."""
        logits, labels, counts, nll, largest, total = ctx.saved_tensors
        zeros = torch.zeros_like(nll)
        d_nll, d_lse = (zeros if x is None else x for x in (d_nll, d_lse))
        shift = None if d_mean is None else d_mean / logits.shape[1]
        factor = (d_nll + d_lse) / total
        at_label = d_nll * torch.expm1(-nll) + d_lse * torch.exp(-nll)
        if shift is not None:
            at_label += shift

        gradient = torch.empty_like(logits)
        scratch = None if logits.dtype == nll.dtype else new_scratch(logits)
        for chunk in chunks_that_count(logits, counts):
            z = wide(logits[chunk])
            room = gradient[chunk] if scratch is None else scratch[: len(z)]
            exponentials = exp_in_place(torch.sub(z, largest[chunk, None], out=room))
            part = exponentials.mul_(factor[chunk, None])
            if shift is not None:
                part += shift[chunk, None]
            # Set, not subtracted from: p - 1 of a sure model would round to 0.
            part.scatter_(1, labels[chunk, None], at_label[chunk, None])
            if scratch is not None:
                gradient[chunk] = part
        if logits.device.type == "cpu":
            # Left out above; and what does not count may be NaN, which no factor makes 0.
            gradient.index_fill_(0, (~counts).nonzero().squeeze(1), 0.0)
        return gradient, None, None, None


def can_pass(logits):
    """Whether these are logits with values, of which a gradient can be made by hand."""
    # A function transform, such as torch.func.grad, asks for rules that the pass does not have.
    transformed = getattr(torch._C, "_are_functorch_transforms_active", bool)()
    traced = transformed or get_proxy_mode() is not None
    return is_plain(logits) and logits.is_floating_point() and not traced


def chunks_that_count(logits, counts):
    """Slices of a few rows; on a CPU, without those in which nothing counts."""
    rows = chunk_rows(logits)
    for start in range(0, len(logits), rows):
        chunk = slice(start, min(start + rows, len(logits)))
        # On a GPU asking would wait for the device.
        if logits.device.type != "cpu" or counts[chunk].any():
            yield chunk


def chunk_rows(logits):
    """How many rows are worked on at once."""
    is_cpu = logits.device.type == "cpu"
    size = CPU_CHUNK_BYTES_A_THREAD * torch.get_num_threads() if is_cpu else GPU_CHUNK_BYTES
    return max(size // (wide_dtype(logits).itemsize * logits.shape[1]), 1)


def new_scratch(logits):
    """Room for a chunk."""
    rows = min(chunk_rows(logits), len(logits))
    return logits.new_empty(rows, logits.shape[1], dtype=wide_dtype(logits))


def wide(logits):
    """The logits in the dtype that statistics are made in."""
    return logits.to(wide_dtype(logits))


def wide_dtype(logits):
    """float32, or float64 where the logits are."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def remember(logits, counts, numbers):
    """Keeps what was found, as long as the logits live and are not written to."""
    if not logits.is_inference():
        # Detached: a graph would keep the logits alive, and they what was found.
        kept = counts, numbers.lse.detach(), numbers.largest
        found[logits.untyped_storage()] = place(logits), kept


def recall(logits, counts):
    """`(lse, largest)` of these logits if a loss found them, for all tokens that count; or None."""
    if logits.is_inference():
        return None
    where, kept = found.get(logits.untyped_storage(), (None, None))
    if where != place(logits):
        return None
    counted, *numbers = kept
    # On a GPU all rows were reduced.
    complete = logits.device.type != "cpu" or not (counts & ~counted).any()
    return numbers if complete else None


def place(logits):
    """Where in its storage a tensor lies, and how often it was written to."""
    return (
        logits.dtype,
        logits.storage_offset(),
        logits.shape,
        logits.stride(),
        logits._version,
    )
