"""A loop over chunks of rows on JAX and TensorFlow."""

from keras import ops

from keras_llm.backend.ops.tensors import host_values


def chunk_loop(chunks, add_chunk, sums):
    """`sums = add_chunk(number, sums)` for each chunk: in a compiled function one compiled loop.

    Elsewhere JAX would compile the loop at every call, since `add_chunk` is another function then.

    Args:
        chunks: How many, a number or a scalar.
        add_chunk: From a number and a list of tensors to a list of the same shapes.
        sums: The first list.
    """
    if host_values(sums[0]) is None:
        return ops.fori_loop(0, chunks, add_chunk, sums)
    for number in range(int(chunks)):
        sums = add_chunk(number, sums)
    return sums
