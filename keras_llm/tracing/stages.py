"""What the backends share: the result of a differentiated batch, and the clock of its stages."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Differentiated(NamedTuple):
    """A batch after forward, loss and backward.

    Attributes:
        logits: What the model returned.
        mask: The mask that Keras's layers made, or None.
        loss: What is minimised, before it is scaled for float16.
        gradients: Of the scaled loss, one for each variable; None where it has none.
        kept_bytes: What forward and loss kept for the backward pass, weights not included; None
            where the backend does not tell.
    """

    logits: Any
    mask: Any
    loss: float
    gradients: list
    kept_bytes: int | None = None


def forward(model, optimizer, batch, clock) -> tuple:
    """The logits of a batch, its loss, and that scaled for float16."""
    x, y, sample_weight = batch
    with clock("forward"):
        logits = model(x, training=True)
    with clock("loss"):
        loss = model.compute_loss(
            x=x, y=y, y_pred=logits, sample_weight=sample_weight, training=True
        )
        return logits, loss, optimizer.scale_loss(loss)


class Clock:
    """How long each stage takes, and what the GPU holds after it.

    Args:
        synchronize: Waits until the device has nothing to do.
        gpu_bytes: What tensors hold on the GPU; None where there is none, or it does not tell.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        gpu_bytes: Callable[[], int | None] = lambda: None,
    ):
        self.synchronize, self.read_gpu_bytes = synchronize, gpu_bytes
        self.seconds, self.gpu_bytes = {}, {}

    @contextlib.contextmanager
    def __call__(self, stage: str):
        """Times one stage."""
        self.synchronize()
        start = time.perf_counter()
        yield
        self.synchronize()
        self.seconds[stage] = time.perf_counter() - start
        held = self.read_gpu_bytes()
        if held is not None:
            self.gpu_bytes[stage] = held
