"""Steps of a GPU without Python between them."""

import torch

# The host does not wait to hear whether more steps are wanted, but for so many.
STEPS_BETWEEN_LOOKS = 16
# To record a step takes about as long as to run a few.
FEWEST = 8


def repeat(step, tensors, most: int):
    """At most `most` steps `(*tensors) -> [*tensors, goes_on]`, while `goes_on`.

    On a GPU they are one CUDA graph, which is recorded once and then replayed.
    """
    goes_on = torch.ones((), dtype=torch.bool)
    if tensors[0].is_cuda and most >= FEWEST:
        # The first call of a kernel may do what cannot be recorded.
        *tensors, goes_on = step(*tensors)
        return replay(step, tensors, goes_on, most - 1)
    while most and goes_on:
        *tensors, goes_on = step(*tensors)
        most -= 1
    return tensors, goes_on


def replay(step, tensors, goes_on, most):
    """The same by a CUDA graph: its inputs are where the results are written to."""
    graph, inputs = torch.cuda.CUDAGraph(), [*tensors, goes_on]
    with torch.cuda.graph(graph):
        for place, result in zip(inputs, step(*tensors), strict=True):
            if place.data_ptr() != result.data_ptr():
                place.copy_(result)
    for taken in range(most):
        if taken % STEPS_BETWEEN_LOOKS == 0 and not goes_on:
            break
        graph.replay()
    # The graph's memory is freed with it.
    torch.cuda.current_stream().synchronize()
    return tensors, goes_on
