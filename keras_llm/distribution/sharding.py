"""What several processes divide among themselves, besides the rows of a batch."""

import os

KINDS = ("optimizer", "parameters")
VARIABLE = "KERAS_LLM_SHARD"

# What `distribute` was called with last; empty before.
_chosen: tuple = ()


def distribute(shard: str | None = None) -> None:
    """Says what torchrun's processes divide among themselves; call it before the model is made.

    Without it each process holds everything: parameters, gradients and the optimizer's state.

        kind            kept whole in each process      kept by one process, its owner
        None            all
        "optimizer"     parameters                      optimizer state, summed gradients
        "parameters"    nothing                         these, and parameters while fit runs

    With `"optimizer"` every variable has one owner. It alone gets the sum of the variable's
    gradients, keeps its optimizer state, updates it, and sends the new value to the others. So an
    optimizer works on whole variables, and training is that of one process, Adafactor and clipping
    by the global norm included. An update sends as much as without sharding. `save` puts the state
    together in the first process: all processes call it.

    With `"parameters"` moreover, while `fit` runs, a process has the other owners' parameters only
    as long as it computes with them: a layer's before its forward pass and again before its
    backward pass, while the next layer's are on their way. Embeddings, last norm and head are there
    for a whole pass. Layers run one by one, not as a graph. An update of one micro-batch sends up
    to half as much again as without sharding, and each further micro-batch adds up to as much as an
    update sends without sharding.

    Under a mixed policy, what is gathered of a layer's matrices are their casts, which are kept
    until the backward pass; the owner has them in float32. `dtype="bfloat16"` makes no casts.

    Before and after `fit`, and while a callback calls `save`, `predict`, `generate`, `get_weights`
    and their like, which all processes then have to do, each process has all parameters. Whoever
    reads another owner's variable in a callback by itself gets NaN.

    The owners' shares are as equal as whole variables allow: where one table is larger than the
    model divided by the number of processes, its owner has more than the others.

    One process changes nothing; nor do JAX and TensorFlow, where `keras.distribution` does this.
    The environment variable `KERAS_LLM_SHARD=optimizer` does the same where nothing is called.

    Args:
        shard: One of the above.

    Raises:
        ValueError: another kind.

    Example:
    >>> import keras_llm
    >>> keras_llm.distribute(shard="optimizer")
    >>> keras_llm.distribute()  # each process holds everything again
    """
    global _chosen
    _chosen = (checked(shard, "shard"),)


def sharded() -> str | None:
    """The kind of sharding that was chosen; None for none."""
    if _chosen:
        return _chosen[0]
    return checked(os.environ.get(VARIABLE) or None, VARIABLE)


def checked(shard, name: str):
    """The argument, if it is a kind of sharding or None."""
    if shard is not None and shard not in KINDS:
        kinds = ", ".join(repr(kind) for kind in KINDS)
        raise ValueError(f"{name} must be {kinds} or None. Received: {name}={shard!r}")
    return shard
