"""One suite for three backends: `KERAS_BACKEND` says which; torch-only tests leave the others."""

import keras_llm  # noqa: F401  isort: skip  (chooses the backend before Keras loads)
import keras
import pytest


def pytest_collection_modifyitems(config, items):
    """On JAX and TensorFlow, tests that use torch tensors or autograd are not run."""
    if keras.backend.backend() == "torch":
        return
    torch_only = [item for item in items if item.get_closest_marker("torch_only")]
    config.hook.pytest_deselected(items=torch_only)
    items[:] = [item for item in items if not item.get_closest_marker("torch_only")]


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state."""
    keras.utils.set_random_seed(0)
