"""What is not finite changes no weight, and the report says which batch and layer it came from.

The truth is the same run without those batches: Python's own `fit` of fewer batches, bit for bit.
"""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from keras_llm import callbacks, losses, metrics, models, optimizers
from keras_llm.backend.torch import tensors
from keras_llm.training import finite_guard
from keras_llm.training.gradient_outliers import is_outlier, remembered
from keras_llm.training.torch import compile_policy

BACKEND = keras.backend.backend()
VOCAB, LAYERS, BATCHES, ROWS = 23, 3, 44, 2
# Ids that other batches do not have: one for each layer and kind of fault, and a label.
NAN, INF, STEEP = (range(first, first + LAYERS) for first in (1, 4, 7))
WRONG = 10
RNG = np.random.default_rng(0)
# What is told has a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore::keras_llm.checks.sanity_warning.SanityWarning")


class Faulty(keras.layers.Layer):
    """Passes hidden vectors on, but for tokens with some ids."""

    def __init__(self, number):
        super().__init__(name=f"faulty_{number}")
        self.number = number

    def call(self, hidden, ids):
        nan, inf, steep = ((ids == of[self.number])[..., None] for of in (NAN, INF, STEEP))
        hidden = ops.where(nan, np.nan, hidden)
        hidden = ops.where(inf, np.inf, hidden)
        # 0 forward, and a gradient of infinity times 0.
        return hidden + ops.where(steep, ops.sqrt(ops.where(steep, hidden * 0.0, 1.0)), 0.0)


class Stack(keras.layers.Layer):
    """An embedding, and layers that may be faulty."""

    def __init__(self, moving=False):
        super().__init__(name="stack")
        self.embedding = keras.layers.Embedding(VOCAB, 4)
        self.dense = [keras.layers.Dense(4, name=f"dense_{i}") for i in range(LAYERS)]
        self.faulty = [Faulty(i) for i in range(LAYERS)]
        self.norm = keras.layers.BatchNormalization() if moving else None

    def call(self, ids, training=False):
        hidden = self.embedding(ids)
        for dense, faulty in zip(self.dense, self.faulty, strict=True):
            hidden = faulty(dense(hidden), ids)
        return hidden if self.norm is None else self.norm(hidden, training=training)


@keras.saving.register_keras_serializable(package="tests")
class Fragile(losses.TokenLoss):
    """Cross entropy, and infinite where a label was next to impossible."""

    def token_loss(self, nll, lse, mean_logit):
        return nll + ops.where(nll > 50.0, np.inf, 0.0)


def build(optimizer, loss=None, moving=False, **arguments):
    keras.utils.set_random_seed(0)
    model = models.LanguageModel(Stack(moving), keras.layers.Dense(VOCAB, name="head"))
    model(np.ones((ROWS, 3), int))
    bias = np.zeros(VOCAB, "float32")
    bias[WRONG] = -100.0
    model.head.bias.assign(bias)
    model.compile(optimizer, loss or Fragile(ignore_index=0), **arguments)
    return model


class Break(keras.callbacks.Callback):
    """Makes a weight NaN during one of some batches."""

    def __init__(self, chosen):
        super().__init__()
        self.chosen, self.kept = chosen, None

    def on_train_batch_begin(self, batch, logs=None):
        if BACKEND == "jax":
            self.model.jax_state_sync()
        if self.kept is not None:
            self.kept[0].assign(self.kept[1])
            self.kept = None
        if batch in self.chosen:
            variable = self.model.trainable_variables[self.chosen[batch]]
            self.kept = variable, ops.copy(variable.value)
            variable.assign(np.full(variable.shape, np.nan))

    def on_epoch_end(self, epoch, logs=None):
        if self.kept is not None:
            self.kept[0].assign(self.kept[1])


KINDS = ("nan", "inf", "steep", "loss", "weighted nan", "weighted inf", "weight")


def data_with_faults(count, kinds=KINDS, accumulation=1):
    """Batches, their faults as `{batch: expected text}`, and weights to break as `{batch: which}`.

    The first windows have no fault, and no two faults are in one window.
    """
    x = RNG.integers(11, VOCAB, (BATCHES, ROWS, 3))
    y = RNG.integers(11, VOCAB, x.shape)
    weights = RNG.random(x.shape).astype("float32") + 0.5
    windows = RNG.choice(np.arange(3, BATCHES // accumulation), count, replace=False)
    faults, broken = {}, {}
    for i, window in enumerate(sorted(windows)):
        batch, kind = window * accumulation + RNG.integers(accumulation), kinds[i % len(kinds)]
        at, layer = (batch, RNG.integers(ROWS), RNG.integers(3)), int(RNG.integers(LAYERS))
        if kind in ("nan", "inf", "steep"):
            x[at] = {"nan": NAN, "inf": INF, "steep": STEEP}[kind][layer]
            # A gradient is not finite first in what comes before.
            what = "faulty" if kind != "steep" else "dense"
            faults[batch] = f"{what}_{layer}"
        elif kind == "loss":
            y[at] = WRONG
            faults[batch] = "the loss"
        elif kind == "weight":
            batch = window * accumulation + accumulation - 1
            broken[batch] = int(RNG.integers(9))
            faults[batch] = "not finite already"
        else:
            weights[at] = np.nan if "nan" in kind else np.inf
            faults[batch] = "sample_weight"
    return (x, y, weights), faults, broken


class Batches(keras.utils.PyDataset):
    """Batches that `fit` cannot look through before it begins, as it does with arrays."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, index):
        return tuple(array[index] for array in self.data)


def fit(model, data, *more, **arguments):
    return model.fit(Batches(data), shuffle=False, verbose=0, callbacks=list(more), **arguments)


def state_of(model):
    return [np.array(v) for v in (*model.variables, *model.optimizer.variables)]


ADAMW = {"learning_rate": 0.03, "weight_decay": 0.1}
CASES = {
    "adamw": (lambda: optimizers.AdamW(**ADAMW), {}),
    "clipped": (lambda: optimizers.AdamW(**ADAMW, global_clipnorm=0.5), {}),
    "graph": (lambda: optimizers.AdamW(**ADAMW, global_clipnorm=0.5), {"jit_compile": True}),
    "adafactor": (lambda: optimizers.Adafactor(), {}),
    "keras": (lambda: keras.optimizers.SGD(0.1, momentum=0.9), {}),
    "averages": (lambda: optimizers.AdamW(**ADAMW, use_ema=True), {"run_eagerly": True}),
    "logits": (lambda: optimizers.AdamW(**ADAMW), {"metrics": [metrics.Perplexity(0)]}),
    "windows": (lambda: optimizers.AdamW(**ADAMW, gradient_accumulation_steps=2), {}),
    "pieces": (lambda: keras.optimizers.Adam(0.03), {"micro_batch_size": 1}),
}
DEVICE_CASES = {
    "adamw": CASES["clipped"],
    "adafactor": CASES["adafactor"],
    "momentum": (lambda: optimizers.Adafactor(beta_1=0.9, weight_decay=0.1), {}),
    "keras": CASES["keras"],
    "windows": CASES["windows"],
}
ELSEWHERE = ("clipped", "keras", "windows", "pieces")


@pytest.mark.parametrize("case", CASES if BACKEND == "torch" else ELSEWHERE)
@pytest.mark.sampled(2)
@pytest.mark.quick(4)
def test_weights_and_report(case, monkeypatch):
    count = 18 if case == "windows" else 24
    # Elsewhere a batch that is explained is compiled, operation by operation.
    check_run(*CASES[case], count if BACKEND == "torch" else 7, monkeypatch)


@pytest.mark.torch_only
@pytest.mark.parametrize("case", DEVICE_CASES)
@pytest.mark.quick(5)
def test_weights_where_the_host_knows_nothing(case, monkeypatch):
    """As on a GPU, where skipping is decided on the device and found out later."""
    monkeypatch.setattr(tensors, "is_on_host", lambda tensor: False)
    check_run(*DEVICE_CASES[case], 6 if case == "windows" else 12, monkeypatch)


def check_run(make, arguments, count, monkeypatch):
    monkeypatch.setattr(finite_guard, "TOLD", BATCHES)
    monkeypatch.setattr(compile_policy, "compiled", lambda module: module)
    model = build(make(), **arguments)
    size = model.step.accumulation
    data, faults, broken = data_with_faults(count, accumulation=size)
    guard = callbacks.FiniteGuard(patience=BATCHES)
    fit(model, data, guard, Break(broken))
    weights = state_of(model)
    assert all(np.isfinite(w).all() for w in weights)
    # Of a window, the batch that would have been followed by the update.
    wanted = {batch // size * size + size - 1: text for batch, text in faults.items()}
    assert [s.batch for s in guard.skipped] == list(wanted)
    assert guard.total == count and {s.epoch for s in guard.skipped} == {0}
    if BACKEND != "tensorflow" and tensors.is_on_host(torch.zeros(())):
        wrong = [
            (s, w) for s, w in zip(guard.skipped, wanted.values(), strict=True) if w not in s.cause
        ]
        assert wrong == []

    left_out = {last - i for last in wanted for i in range(size)}
    kept = [batch for batch in range(BATCHES) if batch not in left_out]
    again = build(make(), **arguments)
    fit(again, [array[kept] for array in data], Break({}))
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations)
    for mine, theirs in zip(weights, state_of(again), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_epoch_is_that_of_the_other_batches():
    data, faults, _ = data_with_faults(6, ("nan", "loss", "weighted inf"))
    model = build("sgd", weighted_metrics=[metrics.Perplexity(0)])
    history = fit(model, data).history
    kept = [batch for batch in range(BATCHES) if batch not in faults]
    again = build("sgd", weighted_metrics=[metrics.Perplexity(0)])
    wanted = fit(again, [array[kept] for array in data]).history
    for name in ("loss", "perplexity", "gradient_norm"):
        assert history[name] == wanted[name]


def test_an_epoch_of_which_nothing_is_left_has_no_loss_of_0():
    data, _, _ = data_with_faults(0)
    data[2][:3] = np.nan
    model = build("sgd")
    before = model.get_weights()
    assert np.isnan(fit(model, [array[:3] for array in data]).history["loss"]).all()
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    history = fit(model, [array[2:] for array in data])
    assert np.isfinite(history.history["loss"]).all()
    assert [np.isfinite(point["loss"]) for point in history.steps] == [True] * 5


def test_log_points_leave_out_what_is_skipped():
    """Whole log points without a batch, at the beginning and later, have no loss at all."""
    data, _, _ = data_with_faults(0)
    data[2][:12] = data[2][20:30] = np.nan
    model = build("sgd")
    steps = fit(model, data, callbacks.FiniteGuard(patience=20)).steps
    assert [point["step"] for point in steps if "loss" in point] == [20, 40, 44]
    assert all(np.isfinite(list(point.values())).all() for point in steps)
    assert steps[-1]["tokens"] == pytest.approx(np.nansum(data[2]), rel=1e-5)


def test_train_on_batch_skips_and_shows_nan():
    (x, y, weights), _, _ = data_with_faults(0)
    model = build(optimizers.AdamW(**ADAMW))
    before = model.get_weights()
    bad = np.full_like(x[0], NAN[0])
    with pytest.warns(UserWarning, match="train_on_batch has skipped an update") as told:
        assert np.isnan(model.train_on_batch(bad, y[0], weights[0]))
    texts = [str(w.message) for w in told if "train_on_batch" in str(w.message)]
    assert len(texts) == 1
    assert BACKEND == "tensorflow" or "/stack/faulty_0'" in texts[0]
    assert int(model.optimizer.iterations) == 0
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert np.isfinite(model.train_on_batch(x[0], y[0], weights[0]))
    assert int(model.optimizer.iterations) == 1


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("always::keras_llm.checks.sanity_warning.SanityWarning")
def test_train_on_batch_tells_once_and_of_the_batch_of_the_window(at, recwarn):
    (x, y, weights), _, _ = data_with_faults(0)
    x[at, 0, 0], x[2, 0, 0] = NAN[0], INF[1]
    model = build(optimizers.AdamW(**ADAMW, gradient_accumulation_steps=2))
    for batch in zip(x[:6], y, weights, strict=False):
        model.train_on_batch(*batch)
    assert int(model.optimizer.iterations) == 1
    texts = [str(w.message) for w in recwarn if "train_on_batch" in str(w.message)]
    assert len(texts) == 1
    assert BACKEND == "tensorflow" or "/stack/faulty_0'" in texts[0]
    model.fit(x[6], y[6], verbose=0)
    assert int(model.optimizer.iterations) == 2


def test_what_is_told():
    data, faults, _ = data_with_faults(5, ("nan",))
    model = build("sgd")
    with pytest.warns(UserWarning, match="the update was skipped") as told:
        fit(model, data)
    told = [str(warning.message) for warning in told]
    told = [text for text in told if "the update was skipped" in text]
    assert len(told) == 3
    batch, layer = next(iter(faults.items()))
    text = told[0]
    assert text.startswith(f"Epoch 1, batch {batch}:")
    assert BACKEND == "tensorflow" or f"/stack/{layer}'" in text


class Stopping(keras.callbacks.Callback):
    """Sees, as what writes checkpoints does, whether the run ends after a batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        if self.model.run.stopping is not None:
            self.seen.append(batch)


@pytest.mark.jax_only
@pytest.mark.parametrize("accumulation", [None, 2])
def test_the_cause_is_found_among_the_batches_of_one_call(accumulation):
    """The last one was looked at, which was not the one that was skipped."""
    x = RNG.integers(1, 9, (10, 4))
    weights = np.ones((10, 4))
    weights[5, 1] = np.inf
    batches = [(x[i : i + 2], x[i : i + 2], weights[i : i + 2]) for i in range(0, 10, 2)]
    batches = torch.utils.data.DataLoader(batches, batch_size=None)
    model = models.CausalTransformer(9, 8, 1, 2)
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=accumulation)
    loss = losses.MaskedSparseCategoricalCrossentropy()
    model.compile(optimizer, loss, steps_per_execution=2)
    guard = callbacks.FiniteGuard()
    model.fit(batches, verbose=0, callbacks=[guard])
    [skipped] = guard.skipped
    assert skipped.cause == "sample_weight, which is not finite"
    assert int(model.optimizer.iterations) == (2 if accumulation else 4)


def test_patience():
    data, _, _ = data_with_faults(0)
    data[0][5:] = NAN[1]
    model, stopping = build("sgd"), Stopping()
    with pytest.raises(FloatingPointError, match=r"4 updates in a row .* batch 8,") as caught:
        fit(model, data, callbacks.FiniteGuard(patience=4), stopping)
    assert BACKEND == "tensorflow" or "faulty_1" in str(caught.value)
    assert stopping.seen == [8]
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_moving_averages_stay_finite():
    data, _, _ = data_with_faults(12, ("nan", "inf"))
    data[0][0, 0, 0] = NAN[0]
    model = build("sgd", moving=True)
    fit(model, data)
    averages = [v for v in model.variables if "moving" in v.path]
    assert len(averages) == 2
    assert all(np.isfinite(np.array(v)).all() for v in averages)
    assert not np.array_equal(np.array(averages[0]), np.zeros(4))


def test_a_loss_scale_overflows_as_ever():
    data, _, _ = data_with_faults(0)
    data = [array[:3] for array in data]
    data[2][:2] = 1e4
    summed = losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, reduction="sum")

    def run(guard):
        inner = keras.optimizers.SGD(0.01)
        model = build(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**120), summed)
        history = fit(model, data, guard).history
        return state_of(model), history["loss"], float(model.optimizer.dynamic_scale)

    guard = callbacks.FiniteGuard()
    weights, loss, scale = run(guard)
    without, loss_without, scale_without = run(callbacks.FiniteGuard(skip=False))
    assert not guard.skipped and guard.total == 0
    assert (loss, scale) == (loss_without, scale_without) and scale == 2.0**118
    for mine, theirs in zip(weights, without, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_deviations():
    data, _, _ = data_with_faults(0)
    data[2][:] = 1.0
    data[2][20] = 1000.0
    data[2][30] = np.nan
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, reduction="sum")
    model = build(keras.optimizers.SGD(1e-3), loss)
    guard = callbacks.FiniteGuard(deviations=20.0, window=16)
    fit(model, data, guard)
    assert [s.batch for s in guard.skipped] == [20, 30]
    assert (guard.total, guard.outliers) == (1, 1)
    assert "beyond 20 deviations of the last 16" in guard.skipped[0].cause
    assert int(model.optimizer.iterations) == BATCHES - 2


def test_outliers_by_numpy():
    norms = RNG.gamma(2.0, size=60).astype("float32")
    recent, found = ops.full((10,), -1.0), []
    for norm in norms:
        norm = ops.convert_to_tensor(norm)
        found.append(bool(is_outlier(norm, recent, 2.0)))
        recent = remembered(norm, recent)
        recent = remembered(ops.convert_to_tensor(np.float32(np.inf)), recent)
    before = [norms[max(0, i - 10) : i].astype("float64") for i in range(len(norms))]
    wanted = [
        len(b) >= 5 and n > b.mean() + 2.0 * b.std() for n, b in zip(norms, before, strict=True)
    ]
    assert found == wanted and any(found)


def test_the_counts_are_part_of_the_state():
    (x, y, weights), _, _ = data_with_faults(0)
    optimizer = optimizers.AdamW(**ADAMW, gradient_accumulation_steps=2)
    model, other = build(optimizer), build(optimizers.AdamW(**ADAMW, gradient_accumulation_steps=2))
    for _ in range(5):
        model.train_on_batch(np.full_like(x[0], NAN[0]), y[0], weights[0])
    other.train_on_batch(x[0], y[0], weights[0])
    other.step.load_state_dict(model.step.state_dict())
    # The rest of the window that has the NaN.
    other.train_on_batch(x[0], y[0], weights[0])
    found = other.step.look(wait=True)
    assert (found.total, found.in_a_row, found.outliers) == (3, 3, 0)
    assert int(other.optimizer.iterations) == 0
    other.train_on_batch(x[0], y[0], weights[0])
    other.train_on_batch(x[0], y[0], weights[0])
    assert other.step.look(wait=True).in_a_row == 0


def test_state_of_the_callback():
    guard, again = callbacks.FiniteGuard(), callbacks.FiniteGuard()
    guard.skipped.append(finite_guard.Skipped(1, 2, "the loss"))
    again.load_state_dict(guard.state_dict())
    assert again.skipped == guard.skipped


def test_arguments():
    for arguments, text in (
        ({"patience": 0}, "patience must be a positive integer"),
        ({"deviations": 0.0}, r"deviations must be a number in \(0, inf\)"),
        ({"window": 1.5}, "window must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=text):
            callbacks.FiniteGuard(**arguments)
    model = keras.Sequential([keras.layers.Embedding(4, 4)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="needs a model that is compiled with a loss of keras_llm"):
        model.fit(np.ones((2, 3)), np.ones((2, 3)), callbacks=[callbacks.FiniteGuard()], verbose=0)


def test_explain_tells():
    def told(model):
        return model.explain(show=False)["How it runs"]["not finite"]

    model = build("sgd")
    assert told(model).text == "update skipped, 0 so far"
    model.step.set_guard(callbacks.FiniteGuard(deviations=3.0).settings)
    assert "beyond 3 deviations of the last 100 norms" in told(model).note


@pytest.mark.torch_only
def test_a_look_at_layers_leaves_no_hook():
    import torch
    from torch.nn.modules import module as torch_module

    from keras_llm.training.torch.seen_layers import layers_seen

    names, model = [], keras.Sequential([keras.layers.Dense(2)])
    with layers_seen(model, lambda name, inputs, outputs: names.append(name)):
        model(torch.ones(1, 3))
    assert names
    hooks = {
        n: v for n, v in vars(torch_module).items() if n.startswith("_global") and "hooks" in n
    }
    assert not any(value for value in hooks.values() if isinstance(value, dict))
