"""One suite for three backends: `KERAS_BACKEND` says which; a few tests are about one of them."""

import contextlib

# A CUDA build of PyTorch brings triton, which crashes if TensorFlow is loaded before it.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

import keras_llm  # noqa: F401  isort: skip  (chooses the backend before Keras loads)
import keras
import pytest
import torch
from hypothesis import settings

# How long a test takes says nothing on a busy machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_modifyitems(config, items):
    """Leaves out the tests that are marked as another backend's."""
    backend = keras.backend.backend()
    markers = {
        "torch_only": backend == "torch",
        "jax_only": backend == "jax",
        "not_torch": backend != "torch",
        "not_jax": backend != "jax",
        "not_tensorflow": backend != "tensorflow",
        "cuda_only": backend == "torch" and torch.cuda.is_available(),
    }

    def belongs(item):
        return all(here for name, here in markers.items() if item.get_closest_marker(name))

    config.hook.pytest_deselected(items=[item for item in items if not belongs(item)])
    items[:] = [item for item in items if belongs(item)]


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state."""
    keras.utils.set_random_seed(0)
