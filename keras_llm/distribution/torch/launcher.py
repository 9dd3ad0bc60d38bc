"""What torchrun has set up for this process: its number, its device, the others."""

import atexit
import multiprocessing
import os
import random

import keras
import torch
import torch.distributed as dist

from keras_llm.distribution.torch import process_group

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The launch and the process that has joined: its workers, and programs that it starts, inherit the
# environment. Where it starts a launcher, those processes are of another launch.
JOINED = "KERAS_LLM_JOINED"
LAUNCH = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "RANK")


def join_the_others() -> None:
    """Joins the group of processes that a launcher has started, if one has.

    The process takes the GPU of its local rank. All processes begin with the same random state, so
    that the same script makes the same weights and the same order of the data in each.

    Raises:
        RuntimeError: there are more processes on this machine than GPUs.
    """
    if not was_launched():
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise RuntimeError(
                "torchrun's --nproc-per-node must be at most the number of this machine's GPUs, "
                f"{torch.cuda.device_count()}. Received: LOCAL_RANK={local}"
            )
        torch.cuda.set_device(local)
    store, rank, size = next(dist.rendezvous("env://"))
    group = process_group.join(store, rank, size)
    atexit.register(process_group.leave)
    seed = group.of_first([float(random.SystemRandom().randrange(2**31))])[0]
    keras.utils.set_random_seed(int(seed))


def was_launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    if any(name not in os.environ for name in NEEDED) or dist.is_initialized():
        return False
    if int(os.environ["WORLD_SIZE"]) == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    if multiprocessing.parent_process() is not None:
        return False
    launch = " ".join(os.environ.get(name, "-") for name in LAUNCH)
    joined, _, process = os.environ.get(JOINED, "").rpartition(" ")
    if joined == launch:
        return process == str(os.getpid())
    os.environ[JOINED] = f"{launch} {os.getpid()}"
    return True
