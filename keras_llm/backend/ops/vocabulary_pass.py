"""Loss, statistics and gradients in one pass over the vocabulary, on JAX and TensorFlow.

For a token with logits z = h @ K + b and label t, every token loss is f(nll, lse, mean_logit), so

    dz = (f_nll + f_lse) * softmax(z) - f_nll * onehot(t) + f_mean / V
    dh = dz @ K'      dK = sum of h' dz      db = sum of dz

with the partial derivatives of f as numbers of one token. A head with a soft cap c has the logits
c * tanh(z / c) instead, which multiplies dz by 1 - tanh(z / c)^2. A loop makes a few hundred rows
of logits at a time and takes all of it from them, so that no logits are kept, or made again, for a
backward pass.
"""

from keras import ops

from keras_llm.backend.chunks import chunk_rows
from keras_llm.backend.head_matrix import soft_capped
from keras_llm.backend.ops.chunk_loop import chunk_loop
from keras_llm.backend.ops.derivatives import with_derivatives, with_gradients
from keras_llm.backend.ops.device import device_type
from keras_llm.backend.ops.device_rows import with_own_rows
from keras_llm.backend.ops.logits_pass import in_top_k, label_logits, weighted


def vocabulary_pass(
    hidden,
    kernel,
    bias,
    labels,
    weights,
    formula,
    scale,
    top_k,
    training,
    at_most=None,
    soft_cap=None,
):
    """Reduces hidden vectors over the vocabulary.

    Args:
        hidden: `[tokens, d_model]`.
        kernel: `[d_model, vocab]`.
        bias: `[vocab]` or None.
        labels: `[tokens]`, inside the vocabulary.
        weights: `[tokens]`, in the dtype of the statistics. Rows of weight 0 take part in the
            product only where they fill up the last chunk.
        formula: `(nll, lse, mean_logit, labels, vocab_size) -> loss of each token`.
        scale: What the sum of the losses is multiplied by to be minimised; a number or a scalar.
        top_k: Counts a label as correct among this many best guesses; 0 counts nothing.
        training: Whether gradients are made on the way.
        at_most: Not used: the rows that count are found where they are.
        soft_cap: The head's, or None; see `HeadMatrix`.

    Returns:
        The number to minimise, which can be differentiated if `training`; the four sums of
        `TokenStatistics`; and the `nll` of each token, `[tokens]`, undefined where the weight is 0.
    """
    # What does not count may hold anything, and 0 times infinity is not 0.
    hidden = ops.where(weights[:, None] != 0, hidden, 0.0)
    inputs = (hidden, kernel) if bias is None else (hidden, kernel, bias)
    # Gradients are made here: what is inside the loop is not to be differentiated again.
    hidden, *head = (ops.stop_gradient(x) for x in inputs)

    def reduced(rows, head):
        return reduce_rows(*rows, head, formula, top_k, training, soft_cap)

    (sums, *of_head), (nll, *of_rows) = with_own_rows(reduced, [hidden, labels, weights], head)
    statistics, gradients = tuple(ops.unstack(sums, 4)), [*of_rows, *of_head]
    loss = with_gradients(statistics[0], gradients, inputs) if training else statistics[0]
    return loss * scale, statistics, nll


def reduce_rows(hidden, labels, weights, head, formula, top_k, training, soft_cap):
    """The sums and gradients of some rows, in a loop over chunks of them.

    Args:
        head: The kernel, and the bias if there is one; other arguments as of `vocabulary_pass`.

    Returns:
        Sums over the rows: the statistics, stacked, and the gradient of each part of the head. And
        numbers of each row: its nll, and the gradient of its hidden vector. No gradients without
        `training`.
    """
    kernel, *biases = head
    dtype = weights.dtype
    hidden, labels, weights, rows, places = in_chunks(hidden, labels, weights, kernel.shape[1])
    kernel = ops.cast(kernel, hidden.dtype)

    def add_chunk(number, sums):
        """The statistics and gradients with those of one chunk added."""
        start = number * rows
        h = ops.slice(hidden, (start, 0), (rows, hidden.shape[1]))
        t, w = (ops.slice(x, (start,), (rows,)) for x in (labels, weights))
        logits = ops.cast(ops.matmul(h, kernel), dtype)
        for b in biases:
            logits = logits + ops.cast(b, dtype)
        logits = soft_capped(logits, soft_cap)
        statistics, nll, d_logits = reduce_chunk(logits, t, w, formula, top_k)
        if soft_cap is not None:
            d_logits = d_logits * (1.0 - ops.square(logits / soft_cap))
        sums[0] = sums[0] + statistics
        sums[1] = ops.slice_update(sums[1], (start,), nll)
        if training:
            narrow = ops.cast(d_logits, hidden.dtype)
            d_hidden = ops.matmul(narrow, ops.transpose(kernel))
            d_kernel = ops.matmul(ops.transpose(h), narrow)
            sums[2] = ops.slice_update(sums[2], (start, 0), d_hidden)
            sums[3] = sums[3] + ops.cast(d_kernel, dtype)
        if training and biases:
            sums[4] = sums[4] + ops.sum(d_logits, axis=0)
        return sums

    sums = [ops.zeros((4,), dtype), ops.zeros_like(weights)]
    if training:
        sums += [ops.zeros_like(hidden), *(ops.zeros_like(x, dtype=dtype) for x in head)]
    counted = ops.sum(ops.cast(weights != 0, "int32"))
    chunks = -(-counted // ops.cast(ops.maximum(rows, 1), "int32"))
    statistics, *rest = chunk_loop(chunks, add_chunk, sums)
    # The nll, and the gradient of the hidden vectors.
    of_rows = [ops.take(x, places, axis=0) for x in rest[:2]]
    return [statistics, *rest[2:]], of_rows


def in_chunks(hidden, labels, weights, vocab_size):
    """The tokens that count, then the others, filled up to chunks of equal size.

    Returns:
        Hidden vectors, labels and weights in that order; the rows of a chunk; and the places to
        which the tokens went.
    """
    count = ops.shape(hidden)[0]
    chunks = count // chunk_rows(vocab_size, device_type()) + 1
    rows = -(-count // chunks)
    order = ops.argsort(ops.cast(weights == 0, "int32"))
    filled = ops.arange(chunks * rows, dtype="int32")
    taken = ops.take(order, ops.minimum(filled, count - 1))
    weights = ops.where(filled < count, ops.take(weights, taken), 0.0)
    hidden = ops.take(hidden, taken, axis=0)
    return hidden, ops.cast(ops.take(labels, taken), "int32"), weights, rows, ops.argsort(order)


def reduce_chunk(logits, labels, weights, formula, top_k):
    """The four sums of a chunk, stacked; the nll of its tokens; the gradient of its logits."""
    vocab_size = logits.shape[1]
    max_logit = ops.max(logits, axis=1)
    exponentials = ops.exp(logits - max_logit[:, None])
    total = ops.sum(exponentials, axis=1)
    lse = ops.log(total) + max_logit
    nll = lse - label_logits(logits, labels)
    losses, (f_nll, f_lse, f_mean) = with_derivatives(
        lambda *numbers: formula(*numbers, labels, vocab_size),
        *(nll, lse, ops.mean(logits, axis=1)),
    )
    correct = ops.zeros_like(weights)
    if top_k:
        correct = ops.cast(in_top_k(logits, labels, None, max_logit, top_k), weights.dtype)
    sums = [ops.sum(weighted(x, weights)) for x in (losses, nll, correct)]

    f_nll, f_lse, f_mean = (weighted(x, weights)[:, None] for x in (f_nll, f_lse, f_mean))
    # Not softmax - 1 for the label: of a sure model that would round to 0.
    d_label = f_nll * ops.expm1(-nll)[:, None] + f_lse * ops.exp(-nll)[:, None]
    is_label = ops.arange(vocab_size, dtype="int32") == labels[:, None]
    d_logits = ops.where(is_label, d_label, exponentials * ((f_nll + f_lse) / total[:, None]))
    return ops.stack([*sums, ops.sum(ops.abs(weights))]), nll, d_logits + f_mean / vocab_size
