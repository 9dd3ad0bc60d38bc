"""Where the Triton kernels run in a test: on a GPU, or else under Triton's interpreter."""

import pytest
import torch

from keras_llm.backend.torch import row_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Has the pass take the route of a GPU, in blocks of few columns."""
    pytest.importorskip("triton")
    monkeypatch.setattr(row_kernels, "can_launch", lambda tensor: True)
    monkeypatch.setattr(row_kernels, "BLOCK_COLUMNS", 128)
