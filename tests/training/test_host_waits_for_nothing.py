"""Between log points an epoch on a GPU waits for nothing.

Without a GPU, the step is told that its tensors are not on the host, and every operation that would
read a value back, or wait for the number of rows that it finds, is counted as it runs on the CPU.
`test_cuda_waits_for_nothing` asks a real GPU.
"""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models, optimizers, schedules
from keras_llm.backend.torch import tensors
from tests.optimizers.test_host_waits_for_nothing import CountWaits

pytestmark = pytest.mark.torch_only

VOCAB, STEPS = 31, 12
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (8 * STEPS, 7))
Y = np.where(RNG.random(X.shape) < 0.3, 0, RNG.integers(1, VOCAB, X.shape))


def build(**arguments):
    steps = arguments.pop("gradient_accumulation_steps", None)
    model = models.CausalTransformer(VOCAB, 16, 2, 2, max_length=8, dropout=0.1)
    model.compile(
        optimizer=optimizers.AdamW(
            schedules.WarmupCosineDecay(1e-3, warmup_steps=2, total_steps=50),
            global_clipnorm=1.0,
            gradient_accumulation_steps=steps,
        ),
        loss=losses.MaskedSparseCategoricalFocalCrossentropy(2.0, 0.25, 0, 0.1),
        metrics=[
            metrics.Perplexity(0),
            metrics.MaskedTokenAccuracy(1, 0),
            metrics.BitsPerByte(np.ones(VOCAB, int), 0),
        ],
        **arguments,
    )
    return model


class CountStepWaits(keras.callbacks.Callback):
    """Counts the waits of each step, from the end of the one before it."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def on_train_batch_begin(self, batch, logs=None):
        self.counter = CountWaits()
        self.counter.__enter__()

    def end(self):
        self.counter.__exit__(None, None, None)
        self.waits.append(self.counter.waits)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"micro_batch_size": 3}, {"micro_batch_size": "auto"}, {"gradient_accumulation_steps": 2}],
    ids=str,
)
def test_a_step_between_log_points_waits_for_nothing(arguments, monkeypatch):
    monkeypatch.setattr(tensors, "is_on_host", lambda tensor: False)
    model = build(**arguments)
    counts = CountStepWaits()
    step = model.train_step

    def counted(data):
        logs = step(data)
        counts.end()
        return logs

    monkeypatch.setattr(model, "train_step", counted)
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[counts])
    # The first step computes the logs, the second has the layers traced.
    assert len(counts.waits) == STEPS
    assert counts.waits[2:] == [0] * (STEPS - 2)


@pytest.mark.cuda_only
def test_cuda_waits_for_nothing():
    model = build()
    batches = [
        tuple(torch.tensor(a[start : start + 8]).pin_memory() for a in (X, Y))
        for start in range(0, len(X), 8)
    ]

    class Strict(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                torch.cuda.set_sync_debug_mode("error")

        def on_epoch_end(self, epoch, logs=None):
            torch.cuda.set_sync_debug_mode("default")

    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    model.fit(loader, verbose=0, callbacks=[Strict()])
