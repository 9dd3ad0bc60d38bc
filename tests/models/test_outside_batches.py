"""Batches as users of Hugging Face have them, and as users of Keras do: the same numbers."""

import keras
import numpy as np
import pytest
import torch
import transformers

from keras_llm import losses, models

from . import transformers_zoo as zoo

pytestmark = pytest.mark.torch_only


def make(name="llama", ignore_index=-100, **kwargs):
    model = models.from_transformers(zoo.make(name), **kwargs)
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=ignore_index)
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model


def own_loss(name):
    with torch.no_grad():
        return zoo.make(name)(**zoo.batch(name)).loss.item()


def shifted(labels):
    y = torch.full_like(labels, -100)
    y[:, :-1] = labels[:, 1:]
    return y


def lists_of(batch):
    """Rows of lists, each without its padding."""
    rows = []
    for ids, mask, labels in zip(*batch.values(), strict=True):
        n = int(mask.sum())
        rows.append({"input_ids": ids[:n].tolist(), "labels": labels[:n].tolist()})
    return rows


def as_x_y(batch):
    inputs = {k: v.numpy() for k, v in batch.items() if k != "labels"}
    return inputs, shifted(batch["labels"]).numpy()


def forms():
    """`(x, y)` for fit, of the same four rows."""
    batch = zoo.batch("llama")
    inputs, y = as_x_y(batch)
    rows = [{k: v[i] for k, v in batch.items()} for i in range(4)]
    lists = lists_of(batch)
    loader = torch.utils.data.DataLoader
    yield "tensors", batch, None
    yield "arrays", {k: v.numpy() for k, v in batch.items()}, None
    yield "lists", {k: v.tolist() for k, v in batch.items()}, None
    yield "BatchEncoding", transformers.BatchEncoding(batch), None
    yield "x and y", inputs, y
    yield "names of KerasHub", _renamed(inputs), y
    yield "loader of dictionaries", loader(rows, batch_size=2), None
    encodings = loader(rows, 2, collate_fn=lambda r: transformers.BatchEncoding(_stacked(r)))
    yield "loader of BatchEncoding", encodings, None
    pairs = [({k: v[i] for k, v in inputs.items()}, y[i]) for i in range(4)]
    yield "loader of pairs", loader(pairs, batch_size=2), None
    yield "rows of lists", lists, None
    yield "generator", (_stacked(rows[i : i + 2]) for i in (0, 2)), None
    datasets = pytest.importorskip("datasets")
    yield "datasets", datasets.Dataset.from_list(lists), None
    more = datasets.Dataset.from_list([{**row, "text": "unused"} for row in lists])
    yield "datasets with other columns", more.with_format("torch"), None
    yield "streamed datasets", datasets.Dataset.from_list(lists).to_iterable_dataset(), None


def _batch_encoding(rows):
    return transformers.BatchEncoding(_stacked(rows))


def _stacked(rows):
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


def _renamed(inputs):
    return {"token_ids": inputs["input_ids"], "padding_mask": inputs["attention_mask"]}


# Keras tells of data whose length it did not know.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", [kind for kind, *_ in forms()])
@pytest.mark.quick(3)
def test_each_form_of_a_batch_has_the_models_own_loss(kind):
    x, y = next((x, y) for name, x, y in forms() if name == kind)
    model = make()
    if kind in ("generator", "streamed datasets"):
        history = model.fit(x, y, verbose=0).history
        assert history["loss"][0] == pytest.approx(own_loss("llama"), rel=1e-6)
        return
    history = model.fit(x, y, batch_size=2, verbose=0, validation_data=x if y is None else (x, y))
    assert history.history["loss"][0] == pytest.approx(own_loss("llama"), rel=1e-6)
    assert history.history["val_loss"][0] == pytest.approx(own_loss("llama"), rel=1e-6)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(own_loss("llama"), rel=1e-6)


def test_labels_that_nothing_shifts_can_be_said():
    batch = zoo.batch("llama")
    batch["labels"] = shifted(batch["labels"])
    loss = make(shift_labels=False).evaluate(batch, verbose=0)
    assert loss == pytest.approx(own_loss("llama"), rel=1e-6)


# Keras tells of data whose length it did not know.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("name", ["llama", "t5", "bart decoder"])
@pytest.mark.parametrize("kind", ["tensors", "lists", "generator", "loader", "with Keras's loss"])
@pytest.mark.quick(4)
def test_weights_lie_where_the_labels_do(kind, name):
    """Those of tokens in a batch with labels inside, whether or not the model shifts these."""
    batch = zoo.batch(name)
    weights = torch.rand(batch["labels"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = zoo.make(name).double()(**batch).logits
    shifts = name == "llama"
    labels = batch["labels"][:, 1:] if shifts else batch["labels"]
    of_labels = weights[:, 1:] if shifts else weights
    nll = torch.nn.functional.cross_entropy(
        logits[:, : labels.shape[1]].mT, labels, reduction="none"
    )
    counts = of_labels.double() * (labels != -100)
    want = (nll * counts).sum() / counts.sum()

    model = make(name)
    if kind == "with Keras's loss":
        stock = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-100, reduction="sum"
        )
        model.compile(keras.optimizers.SGD(0.0), stock)
        found = model.evaluate(batch, sample_weight=weights, verbose=0)
        assert found == pytest.approx((nll * counts).sum().item(), rel=1e-5)
        return
    rows = [({k: v[i] for k, v in batch.items()}, weights[i]) for i in range(4)]
    data = {"x": batch, "sample_weight": weights}
    if kind == "lists":
        data = {"x": {k: v.tolist() for k, v in batch.items()}, "sample_weight": weights.tolist()}
    elif kind in ("generator", "loader"):
        halves = [torch.utils.data.default_collate(rows[i : i + 2]) for i in (0, 2)]
        parts = [(x, None, weights) for x, weights in halves]
        data = {"x": torch.utils.data.DataLoader(parts, batch_size=None, collate_fn=lambda b: b)}
        if kind == "generator":
            data = {"x": (part for part in parts)}
    history = model.fit(**data, verbose=0).history
    assert history["loss"] == pytest.approx([want.item()], rel=1e-6)


def test_what_the_loss_ignores_takes_the_place_of_minus_100():
    loss = make(ignore_index=0).evaluate(zoo.batch("llama"), verbose=0)
    assert loss == pytest.approx(own_loss("llama"), rel=1e-6)


def test_a_decoders_ids_are_made_of_labels():
    batch = zoo.batch("t5")
    y = batch.pop("labels")
    assert make("t5").evaluate(batch, y.numpy(), verbose=0) == pytest.approx(own_loss("t5"))
    # As of data.seq2seq, which does not know what this decoder starts with.
    x = {"encoder_ids": batch["input_ids"], "decoder_ids": torch.full_like(y, 7)}
    assert make("t5").evaluate(x, y.numpy(), verbose=0) == pytest.approx(own_loss("t5"))


def test_a_keras_loss_sees_the_same_labels():
    model = models.from_transformers(zoo.make("llama"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)
    model.compile(keras.optimizers.SGD(0.0), loss)
    batch = {k: v[:1] for k, v in zoo.batch("llama").items()}
    with torch.no_grad():
        own = zoo.make("llama")(**batch).loss.item()
    assert model.train_on_batch(batch) == pytest.approx(own, rel=1e-5)


class Batches(keras.utils.PyDataset):
    """Keras's own kind of data, of dictionaries."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Logged(keras.callbacks.Callback):
    """The number of batches that Keras expects, and has."""

    def on_train_begin(self, logs=None):
        self.expected, self.seen = self.params["steps"], 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1


def labels_inside(kind):
    """Data of two batches, with the labels inside of each."""
    batch = zoo.batch("llama")
    rows = [{k: v[i] for k, v in batch.items()} for i in range(4)]
    if kind == "loader":
        return torch.utils.data.DataLoader(rows, 2)
    if kind == "loader of BatchEncoding":
        return torch.utils.data.DataLoader(rows, 2, collate_fn=_batch_encoding)
    batches = [_stacked(rows[:2]), _stacked(rows[2:])]
    return Batches(batches) if kind == "PyDataset" else (each for each in batches)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", ["loader", "loader of BatchEncoding", "PyDataset", "generator"])
@pytest.mark.parametrize("ours", [True, False], ids=["our loss", "a loss of Keras"])
@pytest.mark.quick(3)
def test_labels_inside_with_metrics_of_keras(kind, ours):
    """Keras builds its own loss and metrics with a batch, of which it takes y to be the labels."""
    batch = zoo.batch("llama")
    with torch.no_grad():
        logits = zoo.make("llama")(batch["input_ids"], batch["attention_mask"]).logits
    y = shifted(batch["labels"])
    halves = [
        torch.nn.functional.cross_entropy(z.flatten(0, 1), labels.flatten()).item()
        for z, labels in ((logits[:2], y[:2]), (logits[2:], y[2:]))
    ]
    wanted_loss = own_loss("llama") if ours else sum(halves) / 2
    right = (logits.argmax(-1) == y).double().mean().item()

    model = models.from_transformers(zoo.make("llama"))
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)
    model.compile(
        keras.optimizers.SGD(0.0),
        losses.MaskedSparseCategoricalCrossentropy() if ours else keras_loss,
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="right")],
    )
    logged = Logged()
    history = model.fit(
        labels_inside(kind), verbose=0, callbacks=[logged], validation_data=labels_inside(kind)
    ).history
    for prefix in ("", "val_"):
        assert history[f"{prefix}loss"][0] == pytest.approx(wanted_loss, rel=1e-5)
        assert history[f"{prefix}right"][0] == pytest.approx(right, rel=1e-6)
    assert logged.expected == (None if kind == "generator" else 2) and logged.seen == 2
    assert model.evaluate(labels_inside(kind), verbose=0)[-1] == pytest.approx(right, rel=1e-6)


def test_what_a_loss_of_keras_ignores_takes_the_place_of_minus_100():
    model = models.from_transformers(zoo.make("llama"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(keras.optimizers.SGD(0.0), loss)
    batch = {k: v[:1] for k, v in zoo.batch("llama").items()}
    with torch.no_grad():
        own = zoo.make("llama")(**batch).loss.item()
    assert model.evaluate(batch, verbose=0) == pytest.approx(own, rel=1e-5)


def test_predictions_are_the_models_own():
    model, batch = make(), zoo.batch("llama")
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        own = zoo.make("llama")(**inputs).logits.numpy()
    np.testing.assert_allclose(model.predict(inputs, verbose=0), own, atol=1e-6)
    np.testing.assert_allclose(model(inputs).detach().numpy(), own, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ({"labels": [[3, 4]]}, None, ValueError, "must have 'input_ids'"),
        ({"input_ids": [[3, 99]], "labels": [[3, 4]]}, None, ValueError, r"in \[0, 89\)"),
        ({"input_ids": [[3.0, 9.0]], "labels": [[3, 4]]}, None, TypeError, "must be integers"),
        ({"input_ids": [[3, 9]], "labels": [[3, 4]]}, [[4, 5]], ValueError, "given once"),
    ],
)
def test_what_is_no_batch_is_refused(x, y, error, message):
    model = make()
    x = {k: np.array(v) for k, v in x.items()}
    with pytest.raises(error, match=message):
        model.fit(x, None if y is None else np.array(y), verbose=0)


def test_an_encoder_decoder_without_labels_is_refused():
    with pytest.raises(ValueError, match="'decoder_input_ids', or labels"):
        make("t5")({"input_ids": torch.tensor([[3, 4]])})


def packed():
    """Two documents in a row and padding, and the same documents in rows of their own."""
    ids = torch.randint(3, zoo.VOCAB, (1, 12), generator=torch.Generator().manual_seed(5))
    ids[:, 10:] = 0
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1]])
    y = torch.full_like(ids, -100)
    y[:, :3], y[:, 4:9] = ids[:, 1:4], ids[:, 5:10]
    alone = [{"input_ids": ids[0, a:b], "labels": ids[0, a:b]} for a, b in [(0, 4), (4, 10)]]
    return {"input_ids": ids, "position_ids": positions}, y, alone


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_packed_documents_have_the_loss_that_they_have_alone(name):
    inputs, y, alone = packed()
    wanted = make(name).evaluate(alone, batch_size=2, verbose=0)
    assert make(name).evaluate(inputs, y, verbose=0) == pytest.approx(wanted, rel=1e-5)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert make(name).evaluate(inputs, y, verbose=0) == pytest.approx(wanted, rel=1e-5)


def test_packing_is_refused_where_it_is_wrong():
    inputs, y, _ = packed()
    with pytest.raises(ValueError, match="cannot be given to this OPTForCausalLM"):
        make("opt").fit(inputs, y, verbose=0)
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    with pytest.raises(ValueError, match=r"no attention_mask.*2 zeros"):
        make("llama").fit(inputs, y, verbose=0)
