"""Runs a test once for each way that an optimizer may update variables."""

import keras
import pytest

from keras_llm import optimizers


@pytest.fixture(params=["together", "one by one"] if keras.backend.backend() == "torch" else [""])
def each_way(request, monkeypatch):
    """On PyTorch: by kernels for many variables, and by `update_step` as elsewhere."""
    if request.param == "one by one":
        for cls in (optimizers.AdamW, optimizers.Adafactor):
            monkeypatch.setattr(cls, "update_together", lambda *args: False)
