"""Which devices and processes a step on PyTorch trains on."""

import keras

from keras_llm.distribution import world


def check_one_device():
    """Raises `RuntimeError` where Keras is told to spread a model over devices."""
    if keras.distribution.distribution() is not None:
        raise RuntimeError(
            "On PyTorch each device has a process of its own: run the script by torchrun "
            "--nproc-per-node=N, without keras.distribution.set_distribution. "
            f"Received: {keras.distribution.distribution()}"
        )


def check_processes(count: int):
    """Raises `RuntimeError` where others are to train than `compile` was called for.

    Args:
        count: The processes that `compile` found.
    """
    check_one_device()
    if (size := world().size) != count:
        raise RuntimeError(
            "The processes must have met when compile is called: import keras_llm under "
            "torchrun, or call torch.distributed.init_process_group before compile. "
            f"Received: a group of {size} processes, made after compile"
        )
