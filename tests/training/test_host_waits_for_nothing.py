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
from keras_llm.training.torch import log_throttle
from keras_llm.training.torch.captured_layer import Graph
from tests.torch_operations import CountWaits

pytestmark = pytest.mark.torch_only

VOCAB, STEPS = 31, 12
MODEL_ARGUMENTS = ("pad_id", "document_end_id", "num_key_value_heads")
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (8 * STEPS, 7))
Y = np.where(RNG.random(X.shape) < 0.3, 0, RNG.integers(1, VOCAB, X.shape))


def build(policy="float32", loss=None, **arguments):
    steps = arguments.pop("gradient_accumulation_steps", None)
    sizes = {name: arguments.pop(name) for name in MODEL_ARGUMENTS if name in arguments}
    model = models.CausalTransformer(
        VOCAB, 16, 1, 2, max_length=8, dropout=0.1, dtype=policy, **sizes
    )
    model.compile(
        optimizer=optimizers.AdamW(
            schedules.WarmupCosineDecay(1e-3, warmup_steps=2, total_steps=50),
            global_clipnorm=1.0,
            gradient_accumulation_steps=steps,
        ),
        loss=loss or losses.MaskedSparseCategoricalFocalCrossentropy(2.0, 0.25, 0, 0.1),
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
    [
        {},
        {"micro_batch_size": 3},
        {"micro_batch_size": "auto"},
        {"gradient_accumulation_steps": 2},
        {"policy": "mixed_bfloat16", "pad_id": 0, "num_key_value_heads": 1},
        {"document_end_id": 3, "run_eagerly": True},
        {"loss": losses.MaskedSparseCategoricalFocalCrossentropy(2.0, [0.5] * VOCAB, 0)},
    ],
    ids=str,
)
@pytest.mark.quick(3)
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


@pytest.mark.parametrize(
    "arguments", [{}, {"pad_id": 0}, {"document_end_id": 3}, {"encoder": True}], ids=str
)
@pytest.mark.quick(3)
def test_constants_of_graphs_are_on_the_device(arguments, monkeypatch):
    """Another one would be copied to the device each time that the graph is called."""
    monkeypatch.setattr(tensors, "is_on_host", lambda tensor: False)
    if arguments.get("encoder"):
        model = models.Seq2SeqTransformer(VOCAB, 16, 1, 2, max_length=8)
        inputs = dict.fromkeys(("encoder_ids", "decoder_ids"), torch.tensor(X[:2]))
    else:
        model = build(**arguments)
        inputs = torch.tensor(X[:2])
    graph = Graph(model.backbone, inputs, training=True)
    nodes = graph.in_use.module.graph.nodes
    folded = [node.target for node in nodes if node.op == "get_attr"]
    assert all(name.startswith("constant_") for name in folded)
    assert not [node for node in nodes if "lift" in str(node.target)]


class Strict(keras.callbacks.Callback):
    """From the third step on, until the last one begins, waiting for the GPU is an error."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch in (2, STEPS - 1):
            torch.cuda.set_sync_debug_mode("error" if batch == 2 else "default")


@pytest.fixture
def no_log_points(monkeypatch):
    """No logs but those of the first step; and afterwards waiting is allowed again."""
    monkeypatch.setattr(log_throttle, "INTERVAL", 1e9)
    yield
    torch.cuda.set_sync_debug_mode("default")


def as_loader():
    batches = [tuple(torch.tensor(a[i : i + 8]) for a in (X, Y)) for i in range(0, len(X), 8)]
    return torch.utils.data.DataLoader(batches, batch_size=None)


def as_generator():
    return ((X[i : i + 8], Y[i : i + 8]) for i in range(0, len(X), 8))


@pytest.mark.cuda_only
@pytest.mark.usefixtures("no_log_points")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"policy": "mixed_bfloat16"},
        {"policy": "mixed_bfloat16", "jit_compile": False},
        {"policy": "mixed_bfloat16", "run_eagerly": True},
        {"policy": "mixed_bfloat16", "pad_id": 0, "num_key_value_heads": 1},
        {"policy": "mixed_bfloat16", "document_end_id": 3},
        {"policy": "mixed_bfloat16", "document_end_id": 3, "micro_batch_size": 3},
        {"micro_batch_size": 3},
        {"micro_batch_size": "auto"},
        {"gradient_accumulation_steps": 2},
        {"loss": losses.MaskedSparseCategoricalFocalCrossentropy(2.0, [0.5] * VOCAB, 0)},
    ],
    ids=lambda arguments: ", ".join(f"{k}={v}" for k, v in arguments.items() if k != "loss"),
)
def test_cuda_waits_for_nothing(arguments):
    build(**arguments).fit(X, Y, batch_size=8, verbose=0, callbacks=[Strict()])


@pytest.mark.cuda_only
@pytest.mark.usefixtures("no_log_points")
@pytest.mark.parametrize("make", [as_loader, as_generator])
def test_cuda_waits_for_no_kind_of_data(make):
    build().fit(make(), verbose=0, callbacks=[Strict()])


@pytest.mark.cuda_only
@pytest.mark.usefixtures("no_log_points")
@pytest.mark.parametrize(
    "optimizer",
    [optimizers.Adafactor(), optimizers.AdamW(1e-3, use_ema=True)],
    ids=["Adafactor", "EMA"],
)
def test_cuda_waits_for_no_optimizer(optimizer):
    model = build()
    model.compile(optimizer=optimizer, loss=model.loss)
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[Strict()])
