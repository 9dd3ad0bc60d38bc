"""The divergence of a student from a teacher, chunk by chunk, on JAX and TensorFlow."""

from keras import ops

from keras_llm.backend.chunks import chunk_rows
from keras_llm.backend.head_matrix import HeadMatrix, logits_of
from keras_llm.backend.ops.chunk_loop import chunk_loop
from keras_llm.backend.ops.derivatives import with_gradients
from keras_llm.backend.ops.device import device_type
from keras_llm.backend.ops.device_rows import with_own_rows


def divergence_pass(hidden, head, teacher_hidden, teacher_head, weights, temperature, training):
    """`sum w T^2 KL(softmax(z_teacher / T) || softmax(z / T))`, summed over the vocabulary.

    Args:
        hidden, teacher_hidden: `[tokens, d_model]`, of any two widths.
        head, teacher_head: A `HeadMatrix` each, over the same vocabulary.
        weights: `[tokens]`, in the dtype of sums.
        temperature: T.
        training: Whether gradients are made, of the student's hidden vectors, kernel and bias.

    Returns:
        The sum, which can be differentiated if `training`.
    """
    # What does not count may hold anything, and 0 times infinity is not 0.
    hidden = ops.where(weights[:, None] != 0, hidden, 0.0)
    inputs = (hidden, head.kernel) if head.bias is None else (hidden, head.kernel, head.bias)
    rows = [*map(ops.stop_gradient, (hidden, teacher_hidden)), weights]
    matrices = [*head[:2], *teacher_head[:2]]
    matrices = [None if matrix is None else ops.stop_gradient(matrix) for matrix in matrices]

    def reduced(rows, matrices):
        mine = HeadMatrix(*matrices[:2], head.soft_cap)
        its = HeadMatrix(*matrices[2:], teacher_head.soft_cap)
        return reduce_rows(*rows, mine, its, temperature, training)

    (total, *of_head), of_rows = with_own_rows(reduced, rows, matrices)
    return with_gradients(total, [*of_rows, *of_head], inputs) if training else total


def reduce_rows(student, teacher, weights, head, teacher_head, temperature, training):
    """The sum and the gradients of some rows, in a loop over chunks of them.

    Returns:
        Sums over the rows: what `divergence_pass` returns, and the gradients of the head. And the
        gradient of each row's hidden vector. No gradients without `training`.
    """
    kernel, bias, soft_cap = head
    dtype, count = weights.dtype, ops.shape(student)[0]
    size = chunk_rows(kernel.shape[1], device_type())
    chunks = -(-count // size)
    filled = ops.arange(chunks * size, dtype="int32")
    places, filled = ops.minimum(filled, count - 1), filled < count
    weights = ops.where(filled, ops.take(weights, places), 0.0)
    student, teacher = ops.take(student, places, axis=0), ops.take(teacher, places, axis=0)

    def add_chunk(number, sums):
        """The sum and the gradients with those of one chunk added."""
        start = number * size
        h = ops.slice(student, (start, 0), (size, student.shape[1]))
        t = ops.slice(teacher, (start, 0), (size, teacher.shape[1]))
        w = ops.slice(weights, (start,), (size,))[:, None]
        logits = logits_of(h, head, dtype)
        log_p = ops.log_softmax(logits / temperature)
        log_q = ops.log_softmax(logits_of(t, teacher_head, dtype) / temperature)
        q = ops.exp(log_q)
        # What does not count may hold anything, and 0 times infinity is not 0.
        losses = ops.where(w != 0, q * (log_q - log_p), 0.0)
        sums[0] = sums[0] + temperature**2 * ops.sum(losses * w)
        if not training:
            return sums
        # T^2 KL has the gradient T (p - q) with respect to the logits.
        change = ops.where(w != 0, (ops.exp(log_p) - q) * (temperature * w), 0.0)
        if soft_cap is not None:
            change = change * (1.0 - ops.square(logits / soft_cap))
        narrow = ops.cast(change, h.dtype)
        d_hidden = ops.matmul(narrow, ops.transpose(ops.cast(kernel, h.dtype)))
        sums[1] = ops.slice_update(sums[1], (start, 0), d_hidden)
        sums[2] = sums[2] + ops.cast(ops.matmul(ops.transpose(h), narrow), dtype)
        if bias is not None:
            sums[3] = sums[3] + ops.sum(change, axis=0)
        return sums

    sums = [ops.zeros((), dtype)]
    if training:
        parts = [kernel] if bias is None else [kernel, bias]
        sums += [ops.zeros_like(student), *(ops.zeros_like(x, dtype=dtype) for x in parts)]
    total, *rest = chunk_loop(chunks, add_chunk, sums)
    return [total, *rest[1:]], [x[:count] for x in rest[:1]]
