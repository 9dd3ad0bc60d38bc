"""Loss, statistics and gradients in one pass over the vocabulary, on JAX and TensorFlow.

For a token with logits z = h @ K + b and label t, every token loss is f(nll, lse, mean_logit), so

    dz = (f_nll + f_lse) * softmax(z) - f_nll * onehot(t) + f_mean / V
    dh = dz @ K'      dK = sum of h' dz      db = sum of dz

with the partial derivatives of f as numbers of one token. A loop makes a few hundred rows of logits
at a time and takes all of it from them, so that no logits are kept, or made again, for a backward
pass.
"""

import keras
from keras import ops

from keras_llm.backend.chunks import chunk_rows
from keras_llm.backend.ops.derivatives import with_derivatives
from keras_llm.token_statistics import TokenStatistics, weighted


def vocabulary_pass(hidden, kernel, bias, labels, weights, loss, count_correct, training):
    """Reduces hidden vectors over the vocabulary.

    Args:
        hidden: `[tokens, d_model]`.
        kernel: `[d_model, vocab]`.
        bias: `[vocab]` or None.
        labels: `[tokens]`, inside the vocabulary.
        weights: `[tokens]`, in the dtype of the statistics. Rows of weight 0 take part in the
            product only where they fill up the last chunk.
        loss: The `TokenLoss` whose formula is used.
        count_correct: Whether argmax is compared with the label.
        training: Whether gradients are made on the way.

    Returns:
        `TokenStatistics`, of which the loss can be differentiated if `training`.
    """
    inputs = (hidden, kernel) if bias is None else (hidden, kernel, bias)
    # Gradients are made here: what is inside the loop is not to be differentiated again.
    hidden, kernel, *biases = (ops.stop_gradient(x) for x in inputs)
    hidden, labels, weights, rows, places = in_chunks(hidden, labels, weights, kernel.shape[1])
    kernel = ops.cast(kernel, hidden.dtype)
    dtype = weights.dtype

    def add_chunk(number, sums):
        """The statistics and gradients with those of one chunk added."""
        start = number * rows
        h = ops.slice(hidden, (start, 0), (rows, hidden.shape[1]))
        t, w = (ops.slice(x, (start,), (rows,)) for x in (labels, weights))
        logits = ops.cast(ops.matmul(h, kernel), dtype)
        for b in biases:
            logits = logits + ops.cast(b, dtype)
        statistics, d_logits = reduce_chunk(logits, t, w, loss, count_correct)
        sums[0] = sums[0] + statistics
        if training:
            narrow = ops.cast(d_logits, hidden.dtype)
            d_hidden = ops.matmul(narrow, ops.transpose(kernel))
            d_kernel = ops.matmul(ops.transpose(h), narrow)
            sums[1] = ops.slice_update(sums[1], (start, 0), d_hidden)
            sums[2] = sums[2] + ops.cast(d_kernel, dtype)
        if training and biases:
            sums[3] = sums[3] + ops.sum(d_logits, axis=0)
        return sums

    sums = [ops.zeros((4,), dtype)]
    if training:
        sums += [ops.zeros_like(hidden), *(ops.zeros_like(x, dtype=dtype) for x in inputs[1:])]
    counted = ops.sum(ops.cast(weights != 0, "int32"))
    sums, *gradients = ops.fori_loop(0, -(-counted // rows), add_chunk, sums)
    statistics = TokenStatistics(*ops.unstack(sums, 4))
    if not training:
        return statistics

    gradients[0] = ops.take(gradients[0], places, axis=0)

    @ops.custom_gradient
    def loss_of(*inputs):
        """The sum of the losses, whose gradients are known."""

        def backward(upstream):
            # Scaled first: a loss scale is there because float16 would round small gradients to 0.
            return tuple(
                ops.cast(upstream * ops.cast(gradient, dtype), x.dtype)
                for gradient, x in zip(gradients, inputs, strict=True)
            )

        return statistics.loss, backward

    return statistics._replace(loss=loss_of(*inputs))


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
    filled = ops.arange(chunks * rows)
    taken = ops.take(order, ops.minimum(filled, count - 1))
    weights = ops.where(filled < count, ops.take(weights, taken), 0.0)
    # What does not count may hold anything, and 0 times infinity is not 0.
    hidden = ops.where(weights[:, None] != 0, ops.take(hidden, taken, axis=0), 0.0)
    return hidden, ops.cast(ops.take(labels, taken), "int32"), weights, rows, ops.argsort(order)


def device_type():
    """`"cpu"`, or what Keras calls another kind of device."""
    return keras.distribution.list_devices()[0].split(":")[0].lower()


def reduce_chunk(logits, labels, weights, loss, count_correct):
    """The four sums of a chunk, stacked, and the gradient of its logits."""
    vocab_size = logits.shape[1]
    ids = ops.arange(vocab_size, dtype=labels.dtype)
    largest = ops.max(logits, axis=1)
    exponentials = ops.exp(logits - largest[:, None])
    total = ops.sum(exponentials, axis=1)
    lse = ops.log(total) + largest
    nll = lse - ops.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    losses, (f_nll, f_lse, f_mean) = with_derivatives(
        lambda *numbers: loss.formula(*numbers, labels, vocab_size),
        *(nll, lse, ops.mean(logits, axis=1)),
    )
    correct = ops.zeros_like(weights)
    if count_correct:
        best = ops.cast(ops.argmax(logits, axis=1), labels.dtype)
        correct = ops.cast(best == labels, weights.dtype)
    sums = [ops.sum(weighted(x, weights)) for x in (losses, nll, correct)]

    softmax_factor = weighted((f_nll + f_lse) / total, weights)
    label_factor, mean_factor = weighted(f_nll, weights), weighted(f_mean / vocab_size, weights)
    d_logits = (
        exponentials * softmax_factor[:, None]
        - ops.where(ids == labels[:, None], label_factor[:, None], 0.0)
        + mean_factor[:, None]
    )
    return ops.stack([*sums, ops.sum(weights)]), d_logits
