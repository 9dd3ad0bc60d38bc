"""Adafactor's own learning rate."""

from typing import Any

from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_llm.tensor import Tensor


class RelativeStep(LearningRateSchedule):
    """Adafactor's own learning rate.

    rho(t) = min(1e-2, 1 / sqrt(t))          min(1e-6 * t, 1 / sqrt(t)) with `warmup_init`
    """

    def __init__(self, warmup_init: bool) -> None:
        self.warmup_init = warmup_init

    def phases(self) -> list[tuple[str, int | None]]:
        """Its phases: 1 / sqrt(t) is smaller than 1e-2 from update 10,000 on."""
        return [("constant", 9_999), ("inverse square root decay", None)]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"warmup_init": self.warmup_init}

    def __call__(self, step: Tensor) -> Tensor:
        """rho for update `step + 1`."""
        t = ops.cast(step, "float32") + 1
        ceiling = 1e-6 * t if self.warmup_init else 1e-2 * ops.ones_like(t)
        return ops.minimum(ceiling, ops.rsqrt(t))
