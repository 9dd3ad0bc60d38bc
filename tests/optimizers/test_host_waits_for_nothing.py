"""On a GPU, an update neither reads a value back nor copies a constant there: both wait."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import optimizers, schedules
from tests.torch_operations import CountWaits

pytestmark = pytest.mark.torch_only


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
