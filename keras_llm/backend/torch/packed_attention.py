"""Causal attention within documents that stand one after another, without a mask of all pairs.

Documents of about one length are gathered into a batch of their own, filled up at their ends: what
stands there is seen by no token of the document. Work and memory follow the sum of the squared
lengths of the documents, not the squared length of a row. On a CPU; PyTorch's kernel for lengths
that differ is for GPUs.
"""

import torch

# The kernels that scaled_dot_product_attention takes on a CPU. By name, because inside an operation
# of one's own autograd records nothing.
FORWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
HAS_KERNELS = FORWARD is not None and BACKWARD is not None


# One operation for a tracer: how documents are grouped depends on their lengths.
@torch.library.custom_op("keras_llm::packed_attention", mutates_args=())
def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each query gathers, `[batch, length, heads, head_dim]` like all three, and the
    log-sum-exp of its scores, `[batch * length, heads]`.

    `documents` `[batch, length]` numbers the documents of each row; a number never falls.
    """
    gathered = query.new_empty(query.shape)
    log_totals = query.new_empty(log_totals_shape(query), dtype=score_dtype(query))
    for places, inside in groups(documents):
        output, log_total = FORWARD(*(heads_of(x, places) for x in (query, key, value)), 0.0, True)
        gathered.flatten(0, 1)[places[inside]] = output.transpose(1, 2)[inside]
        log_totals[places[inside]] = log_total.transpose(1, 2)[inside]
    return gathered, log_totals


@packed_attention.register_fake
def _(query, key, value, documents):
    log_totals = query.new_empty(log_totals_shape(query), dtype=score_dtype(query))
    return query.new_empty(query.shape), log_totals


@torch.library.custom_op("keras_llm::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: torch.Tensor,
    gathered: torch.Tensor,
    log_totals: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of queries, keys and values."""
    gradients = [x.new_empty(x.shape) for x in (query, key, value)]
    for places, inside in groups(documents):
        # Nothing is asked of what fills up.
        upstream = heads_of(gradient, places) * inside[:, None, :, None]
        inputs = (heads_of(x, places) for x in (query, key, value))
        log_total = log_totals[places].transpose(1, 2)
        output = heads_of(gathered, places)
        parts = BACKWARD(upstream, *inputs, output, log_total, 0.0, True)
        for whole, part in zip(gradients, parts, strict=True):
            whole.flatten(0, 1)[places[inside]] = part.transpose(1, 2)[inside]
    return tuple(gradients)


@packed_attention_backward.register_fake
def _(gradient, query, key, value, documents, gathered, log_totals):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def keep(ctx, inputs, output):
    """What the backward pass needs."""
    ctx.save_for_backward(*inputs, *output)


def backward(ctx, gradient, _):
    """No gradient is asked of the log-sum-exp."""
    return *packed_attention_backward(gradient, *ctx.saved_tensors), None


packed_attention.register_autograd(backward, setup_context=keep)


def groups(documents):
    """For the documents of each rounded length: the places of their tokens `[documents, length]`
    in the flattened batch, and which of those are theirs.
    """
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    lengths = starts.diff(append=starts.new_tensor([begins.numel()]))
    rooms = rounded_up(lengths)
    for room in rooms.unique().tolist():
        own = rooms == room
        offsets = torch.arange(room)
        places = starts[own, None] + offsets
        yield places.clamp_(max=begins.numel() - 1), offsets < lengths[own, None]


def rounded_up(lengths):
    """Lengths made larger by at most a quarter, so that there are few different ones."""
    step = 2 ** (lengths.float().log2().floor().long() - 2).clamp(min=0)
    return (lengths + step - 1) // step * step


def heads_of(x, places):
    """The vectors at `places` of the flattened batch: `[documents, heads, length, head_dim]`."""
    return x.flatten(0, 1)[places].transpose(1, 2)


def log_totals_shape(query):
    """One a token and head."""
    return query.shape[0] * query.shape[1], query.shape[2]


def score_dtype(query):
    """What the kernels add up in."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32
