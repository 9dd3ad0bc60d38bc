"""Which backend Keras runs on: decided once, before Keras loads."""

import importlib.util
import os
import sys

PACKAGES = {
    "torch": "pip install torch",
    "jax": 'pip install "keras_llm[jax]"',
    "tensorflow": 'pip install "keras_llm[tensorflow]"',
}


def choose_backend() -> None:
    """Makes PyTorch the backend, unless `KERAS_BACKEND` or a loaded Keras says otherwise.

    An environment variable, not `keras.config.set_backend`: Keras reads the variable before its
    own `keras.json`, and nothing has to be imported first.

    Raises:
        ImportError: the chosen backend is not installed; the message says what to install.
        ValueError: `KERAS_BACKEND` names a backend that `keras_llm` does not run on.
    """
    if "keras" in sys.modules:
        return
    backend = os.environ.setdefault("KERAS_BACKEND", "torch")
    if backend not in PACKAGES:
        raise ValueError(
            f"KERAS_BACKEND must be one of {sorted(PACKAGES)} for keras_llm. Received: {backend!r}"
        )
    if importlib.util.find_spec(backend) is None:
        raise ImportError(
            f"KERAS_BACKEND is {backend!r}, which is not installed. Run: {PACKAGES[backend]}"
        )
