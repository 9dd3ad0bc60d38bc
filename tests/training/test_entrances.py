"""Whatever hands a batch to a model, and in whatever type: one loss, one update."""

import warnings

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import losses, metrics, models
from keras_llm.backend import LARGE_ID_DTYPE

VOCAB, D_MODEL = 300, 8
RNG = np.random.default_rng(0)
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64")


def build(ignore_index=-100, rate=0.5, vocab=VOCAB, **arguments):
    """A table of vectors and a matrix, whose gradients PyTorch finds in float64 too."""
    keras.utils.set_random_seed(0)
    model = models.LanguageModel(
        keras.layers.Embedding(vocab, D_MODEL), keras.layers.Dense(vocab, use_bias=False)
    )
    model(np.zeros((1, 1), "int32"))
    model.compile(
        keras.optimizers.SGD(rate),
        losses.MaskedSparseCategoricalCrossentropy(ignore_index),
        metrics=[metrics.Perplexity()],
        **arguments,
    )
    return model


def in_float64(weights, x, y, counts, rate=0.5):
    """Loss and weights after one step, by PyTorch in float64."""
    table, kernel = (torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in weights)
    logits = table[torch.tensor(x.astype("int64"))] @ kernel
    labels = np.where(counts, y.astype("int64"), -100)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(labels).flatten(), ignore_index=-100
    )
    loss.backward()
    after = [(t - rate * t.grad).detach().numpy() for t in (table, kernel)]
    return float(loss.detach()), after


class Batches(keras.utils.PyDataset):
    """One batch."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def as_tensors(*arrays):
    # PyTorch's arithmetic knows few unsigned types, and tensors of others are hardly made.
    return [torch.tensor(a.astype("int64") if a.dtype.kind == "u" else a) for a in arrays]


def by_train_step(model, x, y):
    """A loop of the user's own over `train_step`."""
    if keras.backend.backend() == "jax":
        return model.train_on_batch(x, y, return_dict=True)
    return model.train_step((x, y))


ENTRANCES = {
    "fit, arrays": lambda m, x, y: m.fit(x, y, verbose=0).history,
    "fit, lists": lambda m, x, y: m.fit(x.tolist(), y.tolist(), verbose=0).history,
    "fit, tensors": lambda m, x, y: m.fit(*as_tensors(x, y), verbose=0).history,
    "fit, generator of lists": lambda m, x, y: (
        m.fit(((x.tolist(), y.tolist()) for _ in "12"), steps_per_epoch=1, verbose=0).history
    ),
    "fit, PyDataset": lambda m, x, y: m.fit(Batches((x, y)), verbose=0).history,
    "fit, DataLoader": lambda m, x, y: (
        m.fit(
            torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(*as_tensors(x, y)), batch_size=len(x)
            ),
            verbose=0,
        ).history
    ),
    "train_on_batch, arrays": lambda m, x, y: m.train_on_batch(x, y, return_dict=True),
    "train_on_batch, lists": lambda m, x, y: m.train_on_batch(
        x.tolist(), y.tolist(), return_dict=True
    ),
    "train_step, arrays": by_train_step,
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([-100, -1, 0, 7, 156, 255, 2**31 - 1, 2**40]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=8 if keras.backend.backend() == "torch" else 2)
@pytest.mark.sampled(3)
@pytest.mark.quick(3)
def test_every_entrance_takes_every_integer(entrance, dtype, ignore_index, padded, seed):
    rng = np.random.default_rng(seed)
    highest = min(np.iinfo(dtype).max, VOCAB - 1)
    x, y = (rng.integers(0, highest + 1, (3, 4)).astype(dtype) for _ in range(2))
    y.flat[:6] = highest
    holds = np.iinfo(dtype).min <= ignore_index <= np.iinfo(dtype).max
    if padded and holds:
        y[1] = ignore_index
    if y.max() > np.iinfo(LARGE_ID_DTYPE).max:
        with pytest.raises(ValueError, match="the range of int32"):
            build(ignore_index).fit(x, y, verbose=0)
        return
    counts = y.astype("int64") != ignore_index
    inside = (y.astype("int64") >= 0) & (y.astype("int64") < VOCAB)
    if not (counts & inside).any() or (counts & ~inside).any():
        return
    if entrance == "fit, PyDataset" and dtype == "uint64":
        return  # Keras refuses it by name on PyTorch, before the model sees it
    model = build(ignore_index)
    loss, after = in_float64(model.get_weights(), x, y, counts)
    logs = ENTRANCES[entrance](model, x, y)
    got = logs["loss"][0] if isinstance(logs["loss"], list) else float(logs["loss"])
    assert got == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(model.get_weights(), after, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    # After the step, and in a loop of evaluation.
    loss, _ = in_float64(model.get_weights(), x, y, counts)
    for evaluate in (model.evaluate, model.test_on_batch):
        arguments = {"verbose": 0} if evaluate == model.evaluate else {}
        logs = evaluate(x, y, return_dict=True, **arguments)
        assert logs["loss"] == pytest.approx(loss, rel=1e-5)
        assert logs["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)


@pytest.mark.parametrize("entrance", ["train_on_batch", "train_step", "own loop"])
def test_a_step_trains_on_its_own_batch_and_not_on_the_one_before(entrance):
    # Ids of 1 only, then 2, 3, 4: each step moves the row of its own id.
    model = build()
    for number in range(1, 5):
        before = model.get_weights()[0]
        x = np.full((2, 3), number)
        if entrance == "train_on_batch" or keras.backend.backend() == "jax":
            model.train_on_batch(x, x)
        elif entrance == "train_step":
            model.train_step((x, x))
        else:
            model.make_train_function()
            data = (x, x)
            model.train_function([data] if keras.backend.backend() == "torch" else iter([data]))
        moved = np.abs(model.get_weights()[0] - before).sum(axis=1)
        assert np.flatnonzero(moved).tolist() == [number]
        want, _ = in_float64(model.get_weights(), x, x, np.ones(x.shape, bool))
        assert model.test_on_batch(x, x, return_dict=True)["loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("wrap", [list, tuple])
def test_a_loss_in_a_list_is_the_loss(wrap):
    """Keras lets the loss of one output be written so; before, it was a mean of batches' means."""
    x, y = RNG.integers(1, 9, (2, 6, 4))
    y[:2, 1:] = 0
    model = build(0, vocab=9)
    model.compile("sgd", wrap([losses.MaskedSparseCategoricalCrossentropy(0)]))
    want, _ = in_float64(model.get_weights(), x, y, y != 0)
    logs = model.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("make", [np.ndarray.tolist, lambda x: x.astype("uint64"), np.asarray])
@pytest.mark.sampled(2)
def test_predict_on_batch_takes_what_predict_takes(make):
    x = RNG.integers(0, 9, (3, 4))
    model = build(vocab=9)
    table, kernel = model.get_weights()
    got = model.predict_on_batch(make(x))
    np.testing.assert_allclose(got, table[x] @ kernel, rtol=1e-5, atol=1e-7)


class BatchesOf(torch.utils.data.Dataset):
    """Whole batches, which a DataLoader hands out one after another."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def loader_of(*batches):
    return torch.utils.data.DataLoader(BatchesOf(*batches), batch_size=None)


class PyDatasetOf(keras.utils.PyDataset):
    """The same for Keras."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


@pytest.mark.parametrize("read", [PyDatasetOf, loader_of, lambda *batches: (b for b in batches)])
@pytest.mark.parametrize("call", ["fit", "validation", "evaluate"])
@pytest.mark.sampled(2)
def test_a_batch_without_rows_is_named(call, read):
    """TensorFlow made an update of it, by the optimizer's momentum."""
    x = RNG.integers(1, 9, (2, 4))
    model = models.CausalTransformer(9, 8, 1, 2)
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(), jit_compile=False)
    data = read((x, x), (x, x), (x[:0], x[:0]))
    with pytest.raises(ValueError, match=r"^A batch must have at least one row: .* Received: "):
        if call == "validation":
            model.fit(x, x, validation_data=data, verbose=0)
        else:
            getattr(model, call)(data, verbose=0)


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_a_loaders_dictionary_is_what_the_model_reads(call):
    """Keras made a tuple of its keys on JAX, and TensorFlow failed on their types."""
    x = RNG.integers(1, 9, (2, 4))
    batch = {"input_ids": torch.tensor(x), "labels": torch.tensor(x)}
    model = models.CausalTransformer(9, 8, 1, 2)
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(), jit_compile=False)
    with pytest.raises(ValueError, match=r"ids must be one array .*a dict with the keys \['input_"):
        getattr(model, call)(loader_of(batch), verbose=0)


@pytest.mark.parametrize("form", ["dictionary", "tensor"])
def test_predict_reads_a_loader_without_labels(form):
    """Keras made a tuple of the keys, or of the rows, on JAX."""
    x = RNG.integers(0, 9, (3, 4))
    model = build(vocab=9)
    table, kernel = model.get_weights()
    if form == "dictionary":
        inputs = {"ids": keras.Input((None,), dtype="int32", name="ids")}
        backbone = keras.Model(inputs, model.backbone(inputs["ids"]))
        model = models.LanguageModel(backbone, model.head)
    batch = torch.tensor(x) if form == "tensor" else {"ids": torch.tensor(x)}
    got = model.predict(loader_of(batch), verbose=0)
    np.testing.assert_allclose(got, table[x] @ kernel, rtol=1e-5, atol=1e-7)


def test_bytes_as_labels_are_all_counted():
    # -100 in one byte is 156, which is a byte of text.
    x = np.arange(256, dtype="uint8").reshape(1, 256)
    model = build(vocab=256)
    loss, _ = in_float64(model.get_weights(), x, x, np.ones(x.shape, bool))
    assert model.evaluate(x, x, verbose=0, return_dict=True)["loss"] == pytest.approx(
        loss, rel=1e-6
    )
    nll = losses.MaskedSparseCategoricalCrossentropy(reduction="none")(x, np.zeros((1, 256, 256)))
    assert (keras.ops.convert_to_numpy(nll) > 5).all()
    accuracy = metrics.MaskedTokenAccuracy()
    accuracy.update_state(x, np.eye(256)[None])
    assert float(accuracy.result()) == 1.0


def test_class_weights_are_of_each_tokens_label():
    x, y = RNG.integers(0, 9, (4, 5)), RNG.integers(0, 9, (4, 5))
    weight = {1: 3.0, 2: 0.25, 8: 0.0}
    of_label = np.array([weight.get(label, 1.0) for label in range(9)])
    for entrance in ("fit", "train_on_batch"):
        model = build(vocab=9)
        table, kernel = (w.astype("float64") for w in model.get_weights())
        logits = table[x] @ kernel
        nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[..., None], -1)[..., 0]
        want = (nll * of_label[y]).sum() / of_label[y].sum()
        if entrance == "fit":
            logs = model.fit(x, y, class_weight=weight, verbose=0).history
            assert logs["loss"][0] == pytest.approx(want, rel=1e-5)
        else:
            logs = model.train_on_batch(x, y, class_weight=weight, return_dict=True)
            assert logs["loss"] == pytest.approx(want, rel=1e-5)
    stock = build()
    stock.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for call in (stock.fit, stock.train_on_batch):
        with pytest.raises(ValueError, match=r"needs a loss of keras_llm.*sample_weight"):
            call(x, y, class_weight=weight)
    with pytest.raises(ValueError, match=r"class_weight needs the labels as an array.*alpha="):
        model.fit(Batches((x, y)), class_weight=weight, verbose=0)
    with pytest.raises(TypeError, match=r"class_weight must have integers as keys. .*'1'"):
        model.fit(x, y, class_weight={"1": 2.0}, verbose=0)
    with pytest.raises(ValueError, match="class_weight and sample_weight exclude each other"):
        model.fit(x, y, class_weight=weight, sample_weight=np.ones(4), verbose=0)


class TestNegativeWeights:
    x, y = RNG.integers(0, 9, (4, 5)), RNG.integers(0, 9, (4, 5))
    weights = np.array([1.0, -2.0, 1.0, 1.0])

    @pytest.mark.parametrize("call", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
    def test_are_refused_where_a_mean_would_be_divided_by_them(self, call):
        model = build(vocab=9)
        before = model.get_weights()
        arguments = {} if "batch" in call else {"verbose": 0}
        with pytest.raises(ValueError, match=r"must not be negative.*reduction='sum'.*-2"):
            getattr(model, call)(self.x, self.y, sample_weight=self.weights, **arguments)
        for got, want in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(got, want)

    def test_are_refused_by_losses_and_metrics(self):
        logits = np.zeros((4, 5, 9), "float32")
        for loss in (losses.MaskedSparseCategoricalCrossentropy(), losses.MaskedKLDivergence()):
            target = logits + 1 / 9 if isinstance(loss, losses.MaskedKLDivergence) else self.y
            with pytest.raises(ValueError, match="must not be negative"):
                loss(target, logits, sample_weight=self.weights)
        with pytest.raises(ValueError, match="must not be negative"):
            metrics.Perplexity().update_state(self.y, logits, sample_weight=self.weights)

    def test_are_rewards_of_a_sum(self):
        model = build(vocab=9)
        model.compile(
            keras.optimizers.SGD(1.0), losses.MaskedSparseCategoricalCrossentropy(reduction="sum")
        )
        start = model.get_weights()
        table, kernel = (torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in start)
        nll = torch.nn.functional.cross_entropy(
            (table[torch.tensor(self.x)] @ kernel).transpose(1, 2),
            torch.tensor(self.y),
            reduction="none",
        )
        total = (nll * torch.tensor(self.weights)[:, None]).sum()
        total.backward()
        logs = model.train_on_batch(self.x, self.y, sample_weight=self.weights, return_dict=True)
        assert logs["loss"] == pytest.approx(float(total.detach()) / 25, rel=1e-5)
        want = (start[1] - kernel.grad.numpy()).astype("float32")
        np.testing.assert_allclose(model.get_weights()[1], want, rtol=1e-4, atol=1e-5)


@pytest.mark.backend_free
def test_rows_of_several_lengths_are_named():
    with pytest.raises(ValueError, match=r"Rows must be of one length.*\[2, 3\]"):
        build(vocab=9).fit([[1, 2], [1, 2, 3]], [[1, 2], [1, 2, 3]], verbose=0)


def test_the_end_of_a_generator_is_no_batch():
    """TensorFlow's step is called once more, and takes nothing."""
    model = build(vocab=20)
    model.set_weights([weights * np.float32("nan") for weights in model.get_weights()])
    x = RNG.integers(0, 20, (2, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = model.fit(((x, x) for _ in range(3)), verbose=0).history
    # All updates were skipped: a loss of 0 would be wrong.
    assert np.isnan(history["loss"]).all()


@pytest.mark.parametrize("ids, labels", [(6, 1), (9, 9)])
def test_a_later_batch_of_a_wrong_length_is_no_number(ids, labels):
    """Labels of one column would be broadcast; the rows of 9 are longer than the model's 7."""
    model = models.CausalTransformer(20, 8, num_layers=1, num_heads=2, max_length=7)
    logits_needed = ["sparse_categorical_accuracy"]
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(), metrics=logits_needed)
    x = RNG.integers(0, 20, (2, 9))
    batches = ((x[:, :n], x[:, :m]) for n, m in [(4, 4), (5, 5), (ids, labels)])
    if keras.backend.backend() == "tensorflow":
        # Lengths that vary are known to the running step only.
        loss, _ = model.evaluate(batches, steps=3, verbose=0)
        assert np.isnan(loss)
    else:
        with pytest.raises(ValueError, match=r"Labels must be .* shape|at most max_length=7"):
            model.evaluate(batches, steps=3, verbose=0)


@pytest.mark.torch_only
def test_evaluate_answers_in_inference_mode_too():
    model = build()
    x, y = RNG.integers(0, VOCAB, (2, 4, 3))
    truth, _ = in_float64(model.get_weights(), x, y, np.ones(y.shape, bool))
    with torch.inference_mode():
        for _ in range(3):
            assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(truth, rel=1e-5)


@pytest.mark.backend_free
def test_names_of_other_trainers_are_answered():
    model = models.LanguageModel(keras.layers.Embedding(9, 4), keras.layers.Dense(9))
    with pytest.raises(TypeError, match=r"no argument gradient_accumulation_steps.*optimizer"):
        model.compile("sgd", gradient_accumulation_steps=4)
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    with pytest.raises(TypeError, match=r"num_train_epochs; write epochs="):
        model.fit(np.ones((1, 2), int), np.ones((1, 2), int), num_train_epochs=3)
