"""trace: its numbers are those of the real step, and nothing is changed."""

import hashlib
import random

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import keras_llm
from keras_llm import losses, metrics, models, optimizers, schedules
from keras_llm.backend.keras_private import optimizer_twin
from keras_llm.checkpoints.random_states import random_states_kept
from keras_llm.tracing.step import model_kept, take
from tests.explanation.small_models import CROSSENTROPY, PAD, V, X, Y, causal, plain, token_metrics

pytestmark = pytest.mark.torch_only

SOURCE = np.random.default_rng(2).integers(1, V, (8, 5))
PAIR = {"encoder_ids": SOURCE, "decoder_ids": X}
WEIGHTS = np.random.default_rng(3).random((8, 6)).astype("float32")


def adamw(**kwargs):
    rate = schedules.WarmupCosineDecay(1e-2, warmup_steps=0, total_steps=9)
    # Divided by its own size, a gradient of 1e-8 would be all rounding error.
    kwargs = {"global_clipnorm": 0.1, "epsilon": 1e-6, **kwargs}
    return optimizers.AdamW(rate, weight_decay=0.1, **kwargs)


def compiled(model, optimizer=None, loss=CROSSENTROPY, **kwargs):
    model.compile(adamw() if optimizer is None else optimizer, loss, **kwargs)
    return model


def seq2seq():
    return models.Seq2SeqTransformer(
        V, d_model=16, num_layers=1, num_heads=2, d_ff=16, dropout=0.3, max_length=8
    )


def noisy():
    """Keras's own dropout, and layers with state."""
    model = keras.Sequential(
        [
            keras.layers.Embedding(V, 8, embeddings_regularizer="l2"),
            keras.layers.Dropout(0.4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(V),
        ]
    )
    model.build((None, 6))
    return model


def accumulating():
    return compiled(causal(), adamw(gradient_accumulation_steps=3), metrics=token_metrics())


def half():
    return compiled(causal(dtype="mixed_float16"), adamw(), metrics=token_metrics())


STOCK = "sparse_categorical_crossentropy"
CASES = {
    "causal": (lambda: compiled(causal(dropout=0.3), metrics=token_metrics()), (X, Y)),
    "weighted": (lambda: compiled(causal(), weighted_metrics=token_metrics()), (X, Y, WEIGHTS)),
    "seq2seq": (lambda: compiled(seq2seq(), metrics=token_metrics()), (PAIR, Y)),
    "plain": (lambda: compiled(plain(), metrics=token_metrics()), (X, Y)),
    "noisy": (lambda: compiled(noisy()), (X, Y)),
    "stock": (
        lambda: compiled(
            plain(),
            keras.optimizers.Adam(1e-2, clipnorm=0.05),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD),
        ),
        (X, Y),
    ),
    "string": (lambda: compiled(plain(), "sgd", STOCK), (X, Y)),
    "adafactor": (lambda: compiled(causal(), optimizers.Adafactor()), (X, Y)),
    "accumulating": (accumulating, (X, Y)),
    "half": (half, (X, Y)),
    "of Keras": (lambda: compiled(plain(), adamw(gradient_accumulation_steps=3)), (X, Y)),
}
# fit draws random numbers of its own before its first step.
FIT = ["weighted", "plain", "stock", "adafactor"]
STEP = [*FIT, "causal", "seq2seq", "noisy"]


def state(model):
    """Hashes of everything that training changes."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    variables = [*model.variables, *model.metrics_variables, *optimizer.variables]
    tensors = [variable.value for variable in variables] + [*model.parameters()]
    step = getattr(model, "step", None)
    captured = getattr(step, "captured", None)
    told = {
        "values": [t.detach().flatten().view(torch.uint8).numpy().tobytes() for t in tensors],
        "tensors": [id(tensor) for tensor in tensors],
        "gradients": [None if t.grad is None else t.grad.numpy().tobytes() for t in tensors],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": [str(part) for part in np.random.get_state()],
        "python": random.getstate(),
        "optimizers": [(k, id(v)) for o in (optimizer, inner) for k, v in vars(o).items()],
        "step": step and step.state_dict(),
        "graphs": captured and (id(captured), list(captured.graphs), captured.reason),
    }
    return {key: hashlib.sha256(repr(value).encode()).hexdigest() for key, value in told.items()}


def trace(model, batch, **kwargs):
    return keras_llm.trace(model, batch, show=False, **kwargs)


def column(section, name):
    return [row[name] for row in section.to_dict()["table"]]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.quick(3)
def test_nothing_is_changed(name, trained):
    make, batch = CASES[name]
    model = make()
    if trained:
        weight = batch[2] if len(batch) > 2 else None
        model.fit(*batch[:2], sample_weight=weight, batch_size=4, epochs=2, verbose=0)
        # As after a step that was interrupted.
        model.trainable_variables[0].value.grad = torch.ones_like(
            model.trainable_variables[0].value
        )
    before = state(model)
    trace(model, batch)
    assert state(model) == before


def test_nothing_is_changed_in_the_middle_of_a_window():
    model = accumulating()
    model.train_on_batch(X, Y)
    assert model.step.state_dict()["window"]["batches"] == 1
    before = state(model)
    trace(model, (X, Y))
    assert state(model) == before


def test_nothing_is_changed_where_it_fails():
    model = compiled(causal(dropout=0.3))
    before = state(model)
    with pytest.raises(ValueError, match="Labels must be in"):
        trace(model, (X, np.full_like(Y, V)))
    assert state(model) == before


@pytest.mark.parametrize("name", FIT)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.quick(3)
def test_the_numbers_are_those_of_fit(name, trained):
    make, batch = CASES[name]
    model = make()
    weight = batch[2] if len(batch) > 2 else None
    given = {"x": batch[0], "y": batch[1], "sample_weight": weight}

    def fit():
        return model.fit(**given, batch_size=8, verbose=0, shuffle=False).history

    if trained:
        fit()
    traced = trace(model, batch)
    before = [v.numpy().copy() for v in model.trainable_variables]
    rate = float(model.optimizer.learning_rate)
    history = fit()
    assert traced["3 Loss"]["loss"].value == pytest.approx(history["loss"][0], rel=1e-6)
    if "gradient_norm" in history:
        norm = traced["4 Backward"]["gradient norm"].value
        assert norm == pytest.approx(history["gradient_norm"][0], rel=1e-5)
    if "perplexity" in history and weight is None:
        perplexity = traced["3 Loss"]["perplexity"].value
        assert perplexity == pytest.approx(history["perplexity"][0], rel=1e-5)
    assert traced["5 Optimizer"]["learning rate"].value == rate
    moved = [
        np.linalg.norm(v.numpy().astype("float64") - b)
        for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    ratio = np.linalg.norm(moved) / np.linalg.norm([np.linalg.norm(b) for b in before])
    assert traced["5 Optimizer"]["update / weights"].value == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", STEP)
@pytest.mark.quick(3)
def test_the_weights_are_those_of_the_step(name, trained):
    make, batch = CASES[name]
    model = make()
    if trained:
        model.train_on_batch(*batch)
        model.train_on_batch(*batch)
    before = [v.numpy().copy() for v in model.trainable_variables]
    with model_kept(model):
        step = take(model, CROSSENTROPY, batch)
        traced = [v.numpy().copy() for v in model.trainable_variables]
    model.reset_metrics()
    logged = np.ravel(model.train_on_batch(*batch))
    assert step.loss == pytest.approx(float(logged[0]), rel=1e-6)
    for old, mine, variable in zip(before, traced, model.trainable_variables, strict=True):
        assert np.abs(mine - old).max() > 1e-5
        np.testing.assert_allclose(mine, variable.numpy(), rtol=1e-4, atol=1e-6)


def test_the_whole_window_of_a_batch_alone():
    # Three times the same batch make the update of that batch.
    model = accumulating()
    traced = trace(model, (X, Y))
    assert traced["1 Batch"]["accumulation"].value == 3
    history = model.fit(
        np.tile(X, (3, 1)), np.tile(Y, (3, 1)), batch_size=8, verbose=0, shuffle=False
    ).history
    norm = traced["4 Backward"]["gradient norm"].value
    assert norm == pytest.approx(history["gradient_norm"][0], rel=1e-5)


def test_scaled_losses_are_told_unscaled():
    model = half()
    traced = trace(model, (X, Y))
    history = model.fit(X, Y, batch_size=8, verbose=0, shuffle=False).history
    assert traced["3 Loss"]["loss"].value == pytest.approx(history["loss"][0], rel=1e-3)
    norm = traced["4 Backward"]["gradient norm"].value
    assert norm == pytest.approx(history["gradient_norm"][0], rel=1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_each_token(smoothing):
    loss = losses.MaskedSparseCategoricalCrossentropy(PAD, label_smoothing=smoothing)
    model = compiled(causal(), loss=loss)
    with torch.no_grad():
        logits = model(X)
    targets = torch.tensor(Y)
    expected = F.cross_entropy(
        logits.mT, targets, ignore_index=PAD, reduction="none", label_smoothing=smoothing
    ).numpy()
    section = trace(model, (X, Y))["3 Loss"]
    for row in section.to_dict()["table"]:
        first = int(row["row 1"].split("–")[0]) - 1
        last = int(row["row 1"].split("–")[-1]) - 1
        if row["struck"]:
            assert (Y[0, first : last + 1] == PAD).all()
            assert row["loss"] is row["p(label)"] is row["said"] is None
            assert row["struck"] == ["model reads", "should say"]
        else:
            assert first == last
            assert row["loss"] == pytest.approx(expected[0, first], rel=1e-5)
            p = logits[0, first].softmax(-1)[Y[0, first]]
            assert row["p(label)"] == pytest.approx(float(p), rel=1e-5)
            assert row["model reads"] == str(X[0, first])
            assert row["should say"] == str(Y[0, first])
            assert row["said"] == str(int(logits[0, first].argmax()))
    count = (Y != PAD).sum()
    assert section["sum"].value == pytest.approx(expected.sum(), rel=1e-6)
    assert section["mean"].value == pytest.approx(expected.sum() / count, rel=1e-6)
    right = (logits.argmax(-1).numpy() == Y)[Y != PAD].sum()
    assert section["right"].value == right
    nll = F.cross_entropy(logits.mT, targets, ignore_index=PAD).item()
    assert section["perplexity"].value == pytest.approx(np.exp(nll), rel=1e-5)


def test_the_loss_of_each_token_of_keras():
    for ignored in (None, PAD):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored)
        model = compiled(plain(), "sgd", loss)
        with torch.no_grad():
            logits = model(X)
        index = -100 if ignored is None else ignored
        mean = F.cross_entropy(logits.mT, torch.tensor(Y), ignore_index=index).item()
        section = trace(model, (X, Y))["3 Loss"]
        assert section["mean"].value == pytest.approx(mean, rel=1e-5)
        assert section["loss"].value == pytest.approx(mean, rel=1e-5)
        with pytest.raises(KeyError):
            section["added"]


def test_what_layers_add_to_the_loss():
    model = compiled(noisy())
    table = model.trainable_variables[0].numpy().astype("float64")
    added = trace(model, (X, Y))["3 Loss"]["added"].value
    assert added == pytest.approx(0.01 * (table**2).sum(), rel=1e-4)


def test_losses_that_are_not_of_tokens():
    model = compiled(plain(), "sgd", "mse")
    target = np.zeros((8, 6, V), "float32")
    section = trace(model, (X, target))["3 Loss"]
    assert "MeanSquaredError is not a loss" in section["each token"].note
    assert section["loss"].value > 0
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    compiled(model, "sgd", "mse")
    section = trace(model, (np.ones((3, 4)), np.ones((3, 2))))["3 Loss"]
    assert section.table is None and "[batch, length, vocab]" in section["each token"].note


def test_a_batch_in_which_nothing_counts():
    traced = trace(compiled(causal()), (X, np.zeros_like(Y)))
    assert "no token counts" in traced["3 Loss"]["sum"].flag
    assert traced["4 Backward"]["gradient norm"].value == 0.0


CLIPS = {"global_clipnorm": 0.1, "clipnorm": 0.05, "clipvalue": 0.01}


@pytest.mark.parametrize("name", CLIPS)
def test_gradients_before_and_after_clipping(name):
    limit = CLIPS[name]
    model = compiled(causal(), optimizers.AdamW(1e-2, **{name: limit}))
    traced = trace(model, (X, Y))
    loss = CROSSENTROPY(Y, model(X))
    gradients = torch.autograd.grad(loss, [v.value for v in model.trainable_variables])
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    if name == "global_clipnorm":
        torch.nn.utils.clip_grad_norm_(parameters, limit)
    elif name == "clipvalue":
        torch.nn.utils.clip_grad_value_(parameters, limit)
    else:
        for parameter in parameters:
            torch.nn.utils.clip_grad_norm_([parameter], limit)
    blocks = {}
    for i, variable in enumerate(model.trainable_variables):
        # backbone/block_0/self_attention/query/kernel
        blocks.setdefault(variable.path.split("/")[1], []).append(i)
    assert len(blocks) == 3
    section = traced["4 Backward"]
    assert column(section, "block") == list(blocks)
    assert sum(column(section, "parameters")) == model.count_params()

    def norms(tensors):
        return [
            float(torch.cat([tensors[i].flatten() for i in some]).norm())
            for some in blocks.values()
        ]

    assert column(section, "gradient") == pytest.approx(norms(gradients), rel=1e-5)
    clipped = norms([parameter.grad for parameter in parameters])
    assert column(section, "clipped") == pytest.approx(clipped, rel=1e-4)
    assert section[name].value == limit


def test_the_size_of_an_update_by_hand():
    model = compiled(causal(), keras.optimizers.SGD(0.5))
    weights = [v.value for v in model.trainable_variables]
    size = float(weights[0].detach().norm())
    gradients = torch.autograd.grad(CROSSENTROPY(Y, model(X)), weights)
    section = trace(model, (X, Y))["5 Optimizer"]
    embedding = section.to_dict()["table"][0]
    assert embedding["weights"] == pytest.approx(size, rel=1e-5)
    assert embedding["update"] == pytest.approx(0.5 * float(gradients[0].norm()), rel=1e-4)
    expected = embedding["update"] / embedding["weights"]
    assert embedding["update / weights"] == pytest.approx(expected)


def test_frozen_and_unused_weights():
    model = causal()
    compiled(model)
    assert "token_embedding" in column(trace(model, (X, Y))["4 Backward"], "block")
    model.backbone.token_embedding.trainable = False
    compiled(model)
    assert "token_embedding" not in column(trace(model, (X, Y))["4 Backward"], "block")


def test_memory():
    model = compiled(plain(), adamw())
    traced = trace(model, (X, Y))
    assert traced["4 Backward"]["gradients"].value == 4 * model.count_params()
    assert traced["5 Optimizer"]["state"].value == 2 * 4 * model.count_params()
    # The inputs of Dense and of the loss, [8, 6, 8] and [8, 6, V], are among what is kept.
    assert traced["2 Forward"]["kept for backward"].value > 8 * 6 * (8 + V) * 4
    assert traced["2 Forward"]["logits"].value == {
        "shape": [8, 6, V],
        "dtype": "float32",
        "device": "cpu",
    }


def test_teacher_forcing_is_seen():
    decoder_ids = np.concatenate([np.ones((8, 1), int), X[:, :-1]], axis=1)
    model = compiled(seq2seq())
    batch = {"encoder_ids": SOURCE, "decoder_ids": decoder_ids}, X
    fact = trace(model, batch)["2 Forward"]["model reads"]
    assert (fact.value, fact.note, fact.flag) == (1.0, "teacher forcing", "")
    fact = trace(compiled(causal()), (X, X))["2 Forward"]["model reads"]
    assert "sees the answer" in fact.flag


# The batch


class Rows(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]


def test_the_first_batch_of_data():
    model = compiled(causal())
    expected = trace(model, (X[:2], Y[:2]))["3 Loss"]["loss"].value
    tensors = torch.tensor(X), torch.tensor(Y)
    dataset = torch.utils.data.TensorDataset(*tensors)
    for data in (
        Rows(),
        torch.utils.data.DataLoader(dataset, batch_size=2),
        torch.utils.data.DataLoader([(X[:2], Y[:2])], batch_size=None),
        [tensors[0][:2], tensors[1][:2]],
        (X[:2].tolist(), Y[:2].tolist()),
    ):
        assert trace(model, data)["3 Loss"]["loss"].value == pytest.approx(expected)


def test_a_loader_of_ours_keeps_its_place():
    texts = ["a b c", "b a", "c c"]
    tokenizer = keras_llm.data.train_tokenizer(texts, unit="word")
    loader = keras_llm.data.causal_lm(texts, tokenizer, seq_len=4, batch_size=9, shuffle=True)
    assert len(loader) == 1
    batch = next(iter(loader))
    model = compiled(causal())
    place = loader.state_dict()
    before = state(model)
    traced = trace(model, loader, tokenizer=tokenizer)
    assert (loader.state_dict(), state(model)) == (place, before)
    shape = traced["1 Batch"]["x"].value["shape"]
    assert shape == list(batch[0].shape)


def test_texts():
    texts = ["low lower lowest"]
    tokenizer = keras_llm.data.train_tokenizer(texts, unit="word")
    ids = np.array([tokenizer.encode(texts[0])])
    labels = np.array([[*ids[0, 1:], tokenizer.end_id]])
    labels[0, 1] = -100
    loss = losses.MaskedSparseCategoricalCrossentropy()
    section = trace(compiled(causal(), loss=loss), (ids, labels), tokenizer=tokenizer)["3 Loss"]
    assert column(section, "model reads") == ["low", "lower", "lowest"]
    assert column(section, "should say") == ["lower", "-100", "<end>"]
    names = {"encoder_ids": ids, "decoder_ids": ids}
    traced = trace(compiled(seq2seq(), loss=loss), (names, labels), tokenizer=(tokenizer, None))
    assert traced["1 Batch"]["encoder reads"].value == texts[0]
    assert column(traced["3 Loss"], "model reads") == [str(i) for i in ids[0]]


@pytest.mark.parametrize("batch", [(X,), (X, Y, None, None), Rows()[0] + (1, 2)])
def test_tuples_that_are_no_batch(batch):
    with pytest.raises(ValueError, match=r"batch must be what fit gets at once.*Received: tuple"):
        trace(compiled(causal()), batch)


@pytest.mark.parametrize("batch", [X, {"x": X}, "x", iter([(X, Y)]), 3])
def test_what_is_no_batch(batch):
    with pytest.raises(TypeError, match=r"batch must be what fit gets at once.*Received"):
        trace(compiled(causal()), batch)


def recurrent():
    layers = [keras.layers.Embedding(V, 4), keras.layers.SimpleRNN(4, return_sequences=True)]
    return keras.Sequential([*layers, keras.layers.Dense(V)])


def wrapped():
    return models.LanguageModel(keras.layers.Embedding(V, 4), keras.layers.Dense(V))


@pytest.mark.parametrize("make", [recurrent, wrapped])
def test_a_model_without_weights_gets_those_that_fit_would_give_it(make):
    keras.utils.set_random_seed(5)
    model = compiled(make(), loss=losses.MaskedSparseCategoricalCrossentropy(PAD))
    traced = trace(model, (X, Y))["3 Loss"]["loss"].value
    fitted = model.fit(X, Y, batch_size=len(X), verbose=0).history["loss"][0]
    assert traced == pytest.approx(fitted, rel=1e-6)
    keras.utils.set_random_seed(5)
    model = compiled(make(), loss=losses.MaskedSparseCategoricalCrossentropy(PAD))
    refitted = model.fit(X, Y, batch_size=len(X), verbose=0).history["loss"][0]
    assert refitted == pytest.approx(fitted, rel=1e-6)
    # Batches of another size are welcome afterwards.
    model.fit(X, Y, batch_size=3, verbose=0)


def several_outputs(kind):
    ids = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(V, 4)(ids)
    outputs = {name: keras.layers.Dense(V, name=name)(hidden) for name in "ab"}
    outputs = outputs if kind is dict else list(outputs.values())
    model = keras.Model(ids, outputs)
    model.compile("sgd", keras.tree.map_structure(lambda _: CROSSENTROPY, outputs))
    return model


@pytest.mark.parametrize(("kind", "names"), [(dict, "'a' 'b'"), (list, "0 1")])
def test_several_outputs(kind, names):
    model = several_outputs(kind)
    batch = X, {"a": Y, "b": Y} if kind is dict else [Y, Y]
    traced = trace(model, batch)
    logits = [f"logits[{name}]" for name in names.split()]
    assert [fact.name for fact in traced["2 Forward"].facts][:2] == logits
    assert "2 outputs" in traced["3 Loss"]["each token"].note
    fitted = model.fit(*batch, batch_size=len(X), verbose=0).history["loss"][0]
    assert traced["3 Loss"]["loss"].value == pytest.approx(fitted, rel=1e-6)
    assert str(traced)


def test_one_output_in_a_dictionary():
    ids = keras.Input((None,), dtype="int32")
    logits = keras.layers.Dense(V)(keras.layers.Embedding(V, 4)(ids))
    model = keras.Model(ids, {"next": logits})
    model.compile("sgd", {"next": CROSSENTROPY})
    section = trace(model, (X, {"next": Y}))["3 Loss"]
    assert section["mean"].value == pytest.approx(section["loss"].value, rel=1e-6)


def test_no_labels():
    ids = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(V, 4)(ids)
    outputs = keras.layers.ActivityRegularization(l2=1.0)(hidden)
    model = keras.Model(ids, outputs)
    model.compile("sgd")
    section = trace(model, (X, None))["3 Loss"]
    assert section["each token"].note == "the batch has no labels"
    assert section["loss"].value > 0


def test_an_update_that_changes_nothing_says_why():
    rate = schedules.WarmupLinearDecay(1e-2, warmup_steps=2, total_steps=4)
    model = compiled(causal(), optimizers.AdamW(rate))
    fact = trace(model, (X, Y))["5 Optimizer"]["learning rate"]
    assert (fact.value, fact.note) == (0, "of update 1; no weight changes: a warm-up begins at 0")
    model.fit(X, Y, batch_size=2, verbose=0)
    fact = trace(model, (X, Y))["5 Optimizer"]["learning rate"]
    assert (fact.value, fact.note) == (0, "of update 5; no weight changes: the schedule has ended")


def test_models_that_cannot_be_traced():
    with pytest.raises(TypeError, match=r"trace needs a Keras model.*int"):
        trace(3, (X, Y))
    with pytest.raises(ValueError, match="trace needs a compiled model"):
        trace(causal(), (X, Y))
    frozen = compiled(plain(trainable=False))
    with pytest.raises(ValueError, match=r"weights to train.*Received: Sequential"):
        trace(frozen, (X, Y))
    with pytest.raises(TypeError, match=r"tokenizer must have decode.*trace\(\(x, y\)\).*int"):
        trace(compiled(causal()), (X, Y), tokenizer=3)
    with pytest.raises(ValueError, match="must have a batch in it"):
        trace(compiled(causal()), torch.utils.data.DataLoader([], batch_size=2))


# What Keras has no public name for


def test_an_optimizers_twin_makes_its_update():
    for make in (adamw, keras.optimizers.Adam, optimizers.Adafactor):
        for built in (False, True):
            optimizer = make()
            variable = keras.Variable(np.ones((3, 2), "float32"))
            gradient = keras.ops.convert_to_tensor(np.arange(6.0).reshape(3, 2), "float32")
            if built:
                optimizer.build([variable])
            state = [each.numpy().copy() for each in optimizer.variables]
            twin = optimizer_twin(optimizer)
            twin.apply([gradient], [variable])
            assert optimizer.built is built
            moved = variable.numpy().copy()
            assert not np.array_equal(moved, np.ones((3, 2)))
            variable.assign(np.ones((3, 2)))
            for each, value in zip(optimizer.variables, state, strict=True):
                if not built:
                    np.testing.assert_array_equal(each.numpy(), value)
                each.assign(value)
            optimizer.apply([gradient], [variable])
            np.testing.assert_array_equal(variable.numpy(), moved)


def test_updates_are_counted_where_batches_are_accumulated():
    model = compiled(plain(), adamw(gradient_accumulation_steps=3))
    assert trace(model, (X, Y))["5 Optimizer"]["learning rate"].note == "of update 1"
    for _ in range(6):
        model.train_on_batch(X, Y)
    fact = trace(model, (X, Y))["5 Optimizer"]["learning rate"]
    assert fact.note == "of update 3"
    assert fact.value == pytest.approx(float(model.optimizer.learning_rate))


def test_seeds_that_nobody_gave_are_kept():
    expected = keras.random.normal((3,)).numpy()
    keras.utils.set_random_seed(0)
    with random_states_kept():
        keras.random.normal((3,))
    keras.utils.set_random_seed(0)
    np.testing.assert_array_equal(keras.random.normal((3,)).numpy(), expected)
    with random_states_kept():
        inside = keras.random.normal((3,)).numpy()
    np.testing.assert_array_equal(keras.random.normal((3,)).numpy(), inside)


def test_metrics_are_not_updated():
    metric = metrics.Perplexity(PAD)
    model = compiled(causal(), metrics=[metric])
    trace(model, (X, Y))
    assert float(metric.result()) == float(metrics.Perplexity(PAD).result())
