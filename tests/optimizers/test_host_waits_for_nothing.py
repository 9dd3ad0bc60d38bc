"""On a GPU, an update neither reads a value back nor copies a constant there: both wait."""

import keras
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keras_llm import optimizers, schedules

pytestmark = pytest.mark.torch_only

aten = torch.ops.aten
# What `tensor.item()` and `torch.tensor(1.0)` are, on a CPU too.
WAITS = (aten._local_scalar_dense.default, aten.lift_fresh.default)


class CountWaits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.waits += function in WAITS
        return function(*args, **(kwargs or {}))


def test_the_counter_counts():
    with CountWaits() as counter:
        torch.tensor(1.0).item()
    assert counter.waits == 2


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.AdamW(0.1, global_clipnorm=1.0),
        optimizers.AdamW(0.1, use_ema=True),
        optimizers.Adafactor(),
        optimizers.Adafactor(warmup_init=True, beta_1=0.9, weight_decay=0.1, global_clipnorm=1.0),
        *[
            optimizers.AdamW(schedule)
            for schedule in (
                schedules.WarmupConstant(0.1, 2),
                schedules.WarmupLinearDecay(0.1, 2, 4),
                schedules.WarmupCosineDecay(0.1, 2, 4, min_ratio=0.1),
                schedules.WarmupInverseSquareRoot(0.1, 2),
                schedules.WarmupStableDecay(0.1, 1, 1, 2),
                schedules.WarmupStableDecay(0.1, 1, 1, 2, decay_type="1-sqrt"),
            )
        ],
    ],
)
def test_an_update_waits_for_nothing(optimizer):
    variables = [keras.Variable(np.ones(shape, "float32")) for shape in ((3, 2), (2,))]
    gradients = [torch.ones(3, 2), torch.ones(2)]
    optimizer.apply(gradients, variables)
    with CountWaits() as counter:
        optimizer.apply(gradients, variables)
    assert counter.waits == 0
