"""`fit` without logits gives what `fit` with logits gives, on PyTorch."""

import functools

import keras
import numpy as np
import pytest

from keras_llm import losses, metrics, models, optimizers
from keras_llm.backend import chunks
from keras_llm.backend.torch import rows
from keras_llm.training import Step
from keras_llm.training.torch import compile_policy, pass_graph
from tests.losses.token_losses import SquaredTemperature

pytestmark = pytest.mark.torch_only

VOCAB = 31
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (12, 7))
Y = np.where(RNG.random((12, 7)) < 0.3, 0, RNG.integers(1, VOCAB, (12, 7)))

LOSSES = [
    losses.MaskedSparseCategoricalCrossentropy(0),
    losses.MaskedSparseCategoricalCrossentropy(0, 0.1, 1e-3, reduction="sum"),
    losses.MaskedSparseCategoricalFocalCrossentropy(2.0, 0.25, 0, 0.1),
    SquaredTemperature(0),
]


class WithLogits(models.CausalTransformer):
    """The same model, whose `call` might do anything: it takes the path of whole logits."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=training)


def build(cls, loss=LOSSES[0], dtype="float32", dropout=0.0, tie_embeddings=True, **arguments):
    keras.utils.set_random_seed(0)
    model = cls(
        VOCAB, 16, 1, 2, max_length=8, dtype=dtype, dropout=dropout, tie_embeddings=tie_embeddings
    )
    model.compile(
        **arguments,
        optimizer=optimizers.AdamW(1e-3, global_clipnorm=1.0),
        loss=loss,
        metrics=[metrics.Perplexity(0), metrics.MaskedTokenAccuracy(1, 0)],
    )
    return model


def deterministic(history):
    """The columns of a history that do not depend on the machine."""
    return {name: values for name, values in history.items() if name != "tokens_per_second"}


@pytest.fixture
def passes(monkeypatch):
    """How many batches took a pass without logits."""
    counted = []
    counted_pass = Step.counted
    monkeypatch.setattr(Step, "counted", lambda *a: counted.append(1) or counted_pass(*a))
    return counted


# The ways of one step, each against the graph that autograd makes of whole logits.
WAYS = {
    "layer by layer": {"run_eagerly": True},
    "captured": {},
    "one graph": {"jit_compile": True},
    "one graph in micro-batches": {"jit_compile": True, "micro_batch_size": 2},
    "one graph, compiled": {"jit_compile": True},
    "compiled": {"jit_compile": True},
    "in chunks of 5 rows and tiles of 7 ids": {},
    "micro-batches": {"micro_batch_size": 2},
}


def ways_of_a_step():
    """A loss, a way and a dropout rate: every two of them, and of the pairs a quarter is quick.

    The compiled graph ends before the head: it knows neither the loss nor whether the head is tied.
    For a micro-batch, dropout does not draw what it draws for a batch.
    """
    for loss in range(len(LOSSES)):
        for number, way in enumerate(WAYS):
            rate = 0.0 if "micro-batches" in way or (number // 2 + loss // 2) % 2 else 0.2
            if "compiled" not in way:
                marks = [pytest.mark.slow] if (loss + number) % 4 else []
                yield pytest.param(loss, way, rate, marks=marks)
            elif loss == 0:
                yield pytest.param(loss, way, 0.2, marks=[pytest.mark.slow])


def twelve_steps(cls, loss, dropout, **arguments):
    """The model after them, and their history."""
    model = build(cls, LOSSES[loss], dropout=dropout, tie_embeddings=not dropout, **arguments)
    history = model.fit(
        X, Y, batch_size=3, epochs=3, shuffle=False, verbose=0, validation_data=(X, Y)
    ).history
    return model, deterministic(history)


@functools.cache
def steps_of_whole_logits(loss, dropout):
    """Their history and the weights after them."""
    model, history = twelve_steps(WithLogits, loss, dropout, run_eagerly=True)
    return history, model.get_weights()


# PyTorch's compiler calls what PyTorch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(("loss", "way", "dropout"), list(ways_of_a_step()))
def test_twelve_steps_are_the_same_twelve_steps(loss, way, dropout, passes, monkeypatch):
    want, weights = steps_of_whole_logits(loss, dropout)
    if "one graph" not in way:
        monkeypatch.setattr(pass_graph, "MAX_LOGITS", 0)
    elif "compiled" not in way:
        monkeypatch.setattr(compile_policy, "compiled", lambda module: module)
    if "chunks" in way:
        monkeypatch.setattr(rows, "chunk_rows", lambda *_: 5)
        monkeypatch.setattr(chunks, "CPU_TILE_COLUMNS", 7)
    model, history = twelve_steps(models.CausalTransformer, loss, dropout, **WAYS[way])
    captured = model.step.graphs.captured
    assert (captured is not None and captured.replayed) == (way != "layer by layer")
    assert model.get_compile_config()["jit_compile"] is ("compiled" in way or "one graph" in way)
    assert len(passes) == 3 * (4 * (2 if "micro" in way else 1) + 4)
    assert history.keys() == want.keys()
    for name, values in want.items():
        assert history[name] == pytest.approx(values, rel=1e-5), name
    for whole, one in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(one, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
@pytest.mark.quick(2)
def test_half_precision_is_close_to_float32(dtype, passes):
    exact, model = build(models.CausalTransformer), build(models.CausalTransformer, dtype=dtype)
    for wide, narrow in zip(exact.variables, model.variables, strict=True):
        narrow.assign(wide)
    arguments = {"batch_size": 3, "epochs": 3, "shuffle": False, "verbose": 0}
    want = exact.fit(X, Y, **arguments).history
    got = model.fit(X, Y, **arguments).history
    assert len(passes) == 2 * 3 * 4
    assert got["loss"] == pytest.approx(want["loss"], rel=2e-2)
    assert want["loss"][-1] < want["loss"][0]


def test_a_float16_model_unscales_its_gradients(passes):
    # With SGD, a gradient that kept its loss scale of 32768 would be seen at once.
    start = build(models.CausalTransformer).get_weights()
    weights = []
    for dtype in ("float32", "mixed_float16"):
        model = build(models.CausalTransformer, dtype=dtype)
        model.compile(optimizer=keras.optimizers.SGD(1.0), loss=LOSSES[0])
        model.set_weights(start)
        model.fit(X, Y, batch_size=12, verbose=0)
        weights.append(model.get_weights())
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    for wide, narrow, first in zip(*weights, start, strict=True):
        np.testing.assert_allclose(narrow - first, wide - first, rtol=0.1, atol=2e-4)
    assert max(np.abs(a - b).max() for a, b in zip(weights[0], start, strict=True)) > 1e-2


def test_bytes_and_one_count_of_guesses_need_no_logits_and_two_do(passes):
    model = build(models.CausalTransformer)
    token_bytes = RNG.integers(0, 4, VOCAB)
    logits = keras.ops.convert_to_numpy(model(X)).astype("float64")
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, Y[..., None], -1)[..., 0]
    best = np.argsort(-logits, axis=-1)
    hits = {k: (best[..., :k] == Y[..., None]).any(-1)[Y != 0].mean() for k in (1, 5)}
    size = token_bytes[Y] * (Y != 0)
    bits = nll[size > 0].sum() / np.log(2) / size.sum()

    top_5 = metrics.MaskedTokenAccuracy(top_k=5, ignore_index=0, name="top_5")
    of_bytes = metrics.BitsPerByte(token_bytes, ignore_index=0)
    for more, taken in (([], True), ([metrics.MaskedTokenAccuracy(1, 0, name="top_1")], False)):
        passes.clear()
        for arguments in ({"metrics": [top_5, of_bytes, *more]}, {"weighted_metrics": [of_bytes]}):
            model.compile("sgd", LOSSES[0], **arguments)
            weights = np.ones(Y.shape) if "weighted_metrics" in arguments else None
            logs = model.evaluate(X, Y, sample_weight=weights, verbose=0, return_dict=True)
            assert logs["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
            assert logs.get("top_5", hits[5]) == pytest.approx(hits[5])
            assert logs.get("top_1", hits[1]) == pytest.approx(hits[1])
            assert bool(passes) == (taken or weights is not None)

    model.compile("sgd", LOSSES[0], metrics=[metrics.BitsPerByte(token_bytes[:-1], 0)])
    with pytest.raises(ValueError, match="one number for each of the 31 ids"):
        model.evaluate(X, Y, verbose=0)


def test_weights_weigh_and_wrong_ids_are_named(passes):
    model, whole = build(models.CausalTransformer), build(WithLogits)
    for each in (model, whole):
        each.compile(optimizer="sgd", loss=LOSSES[0], weighted_metrics=[metrics.Perplexity(0)])
    weights = RNG.random(Y.shape)
    assert model.evaluate(X, Y, sample_weight=weights, verbose=0) == pytest.approx(
        whole.evaluate(X, Y, sample_weight=weights, verbose=0), rel=1e-5
    )
    assert passes
    with pytest.raises(ValueError, match=r"Labels must be in \[0, 31\).*Received: 61"):
        model.evaluate(X, Y + 31 * (Y.max() == Y), verbose=0)


def test_a_dense_head_takes_the_pass_and_an_activated_one_does_not(passes):
    for activation, taken in ((None, True), ("tanh", False)):
        passes.clear()
        head = keras.layers.Dense(VOCAB, activation=activation)
        model = models.LanguageModel(keras.layers.Embedding(VOCAB, 4), head)
        model(X)
        model.compile(optimizer="sgd", loss=LOSSES[0])
        loss = model.evaluate(X, Y, verbose=0)
        assert bool(passes) == taken
        want = LOSSES[0](Y, keras.ops.stop_gradient(model(X)))
        assert loss == pytest.approx(float(want), rel=1e-5)
