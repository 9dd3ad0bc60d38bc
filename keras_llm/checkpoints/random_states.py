"""All random states that a training step may depend on."""

import contextlib
import random

import numpy as np

from keras_llm.backend.host import to_numpy
from keras_llm.backend.keras_private import global_seed_state, set_global_seed_state
from keras_llm.checkpoints import torch_tensors


def random_states() -> dict:
    """The states of Python, numpy, PyTorch and Keras's global generator.

    Layers' own generators are variables of the model. JAX has no state, and what Keras draws on
    TensorFlow comes from its own generators.
    """
    seeds = global_seed_state()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch_tensors.random_state(),
        "keras": None if seeds is None else to_numpy(seeds),
    }


def set_random_states(states: dict) -> None:
    """Takes what `random_states` returned."""
    # The first: where Keras makes its generator, it draws from Python's.
    set_global_seed_state(states["keras"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch_tensors.set_random_state(states["torch"])


@contextlib.contextmanager
def random_states_kept():
    """Context manager that restores them on exit."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)
