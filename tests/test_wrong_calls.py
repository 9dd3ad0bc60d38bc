"""What people type on their first day, and the way out that each error names."""

import re

import keras
import numpy as np
import pytest

from keras_llm import data, losses, metrics, models, optimizers, schedules
from tests.checks.setups import sanity

V = 20
IDS = np.random.default_rng(0).integers(1, V, (4, 7))
X, Y = IDS[:, :-1], IDS[:, 1:]
TOKENIZER = data.train_tokenizer(["a b c"], unit="word")


def causal():
    return models.CausalTransformer(V, 8, 1, 2, max_length=8)


def compiled(loss=None, **kwargs):
    model = causal()
    model.compile("sgd", loss or losses.MaskedSparseCategoricalCrossentropy(0), **kwargs)
    return model


@pytest.mark.parametrize(
    ("x", "received"),
    [
        ({"input_ids": X, "labels": Y}, "a dict with the keys ['input_ids', 'labels']"),
        ({"input_ids": X, "attention_mask": X}, "a dict with the keys"),
        ([X, Y], "Received: a "),  # TensorFlow makes tuples of lists
    ],
)
@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.sampled(4)
def test_labels_among_the_inputs(x, received, is_built):
    model = compiled()
    if is_built:
        model(X)
    # Keras wraps what comes from the first call of a model.
    with pytest.raises((ValueError, RuntimeError)) as error:
        model.fit(x, Y, verbose=0)
    assert "labels another: fit(ids, labels)" in str(error.value)
    assert received in str(error.value).replace('"', "'")


@pytest.mark.not_tensorflow
def test_labels_among_the_inputs_of_a_loader():
    """Batches of dictionaries, as other libraries have them."""
    import torch

    rows = [{"input_ids": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    with pytest.raises(ValueError, match=r"a dict.* with the keys \['input_ids', 'labels'\]"):
        compiled().fit(torch.utils.data.DataLoader(rows, batch_size=2), verbose=0)


def test_no_labels():
    with pytest.raises(ValueError, match=r"needs labels: fit\(ids, labels\), .*Received: y=None"):
        compiled().fit(X, verbose=0)


@pytest.mark.torch_only
def test_what_belongs_to_a_pytorch_loop():
    import torch

    with pytest.raises(TypeError, match=r"loss must be .*torch.*CrossEntropyLoss"):
        compiled(torch.nn.CrossEntropyLoss(ignore_index=0))
    model = causal()
    optimizer = torch.optim.AdamW(model.parameters())
    for wrong in (optimizer, torch.optim.AdamW):
        with pytest.raises(TypeError, match=r"optimizer must be .*docs/learn.md.*torch.*AdamW"):
            model.compile(wrong, "mse")
    with pytest.raises(TypeError, match=r"loss must be .*torch.*cross_entropy"):
        compiled(torch.nn.functional.cross_entropy)


def test_a_metric_by_its_class_is_one_of_the_losses_tokens():
    assert sanity(lambda: compiled(metrics=[metrics.Perplexity])) == []
    model = compiled(metrics=[metrics.Perplexity])
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs["perplexity"] == pytest.approx(np.exp(logs["loss"]), rel=1e-5)


@pytest.mark.parametrize("ids", ["The cat", ["The cat"]])
@pytest.mark.backend_free
def test_a_prompt_that_is_not_encoded(ids):
    with pytest.raises(TypeError, match=r"tokenizer.encode\(text\) makes them.*The cat"):
        causal().generate(ids, max_new_tokens=2)


@pytest.mark.backend_free
def test_the_name_of_a_file_for_that_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my.txt", "mytext"):
        (tmp_path / name).write_text("a")
        with pytest.raises(ValueError, match=rf"data.load_text reads a text file.*{name}"):
            data.load(name)


@pytest.mark.backend_free
def test_a_text_without_blank_lines(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text("a\nb\nc\n")
    with pytest.raises(ValueError, match=r"blank line.*sample_by='line'"):
        data.load_text(path)
    assert len(data.load_text(path, sample_by="line")["train"]) == 1


@pytest.mark.backend_free
def test_the_name_of_a_tokenizer():
    with pytest.raises(TypeError, match=r"tokenizer must come from data.train_tokenizer.*a str"):
        data.causal_lm(["a b"], "bert", 4, 1)
    with pytest.raises(TypeError, match=r"tokenizer must.*a str"):
        data.seq2seq([("a", "b")], "bert", batch_size=1)
    with pytest.raises(TypeError, match=r"target_tokenizer must.*a str"):
        data.seq2seq([("a", "b")], TOKENIZER, "bert", batch_size=1)


@pytest.mark.backend_free
def test_rows_of_different_lengths():
    with pytest.raises(ValueError, match=re.escape("fill the shorter ones up")):
        data.teacher_forcing([[1, 2], [3]])


@pytest.mark.backend_free
def test_curves_of_a_model():
    plots = pytest.importorskip("keras_llm.plots")
    with pytest.raises(TypeError, match=r"what fit returned.*Received: a CausalTransformer"):
        plots.learning_curves(causal())
    model = compiled()
    model.fit(X, Y, verbose=0)
    assert plots.learning_curves(model.history).lines


@pytest.mark.backend_free
def test_what_is_right_stays_so():
    model = compiled()
    model.fit(keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y), verbose=0)
    np.testing.assert_array_equal(model.generate([1, 2], max_new_tokens=2)[:2], [1, 2])


@pytest.mark.parametrize(
    ("make", "name", "write"),
    [
        (losses.MaskedSparseCategoricalCrossentropy, "ignore_class", "ignore_index"),
        (losses.MaskedSparseCategoricalFocalCrossentropy, "weight", "alpha"),
        (
            losses.MaskedSparseCategoricalCrossentropy,
            "class_weight",
            "class_weight={id: weight} of",
        ),
        (losses.MaskedKLDivergence, "axis", "nothing"),
        (metrics.Perplexity, "mask_token_id", "ignore_index"),
        (metrics.MaskedTokenAccuracy, "k", "top_k"),
        (schedules.WarmupLinearDecay, "num_training_steps", "total_steps"),
        (schedules.WarmupCosineDecay, "num_warmup_steps", "warmup_steps"),
        (schedules.WarmupCosineDecay, "warmup_ratio", "warmup_steps"),
    ],
)
@pytest.mark.backend_free
def test_names_of_other_libraries(make, name, write):
    with pytest.raises(TypeError, match=f"{make.__name__} has no argument {name}; write {write}"):
        make(**{name: 3})
    with pytest.raises(TypeError, match="unexpected keyword argument 'nowhere'"):
        make(nowhere=3)


@pytest.mark.parametrize(
    ("call", "name", "write"),
    [
        (data.causal_lm, "max_length", "seq_len"),
        (data.causal_lm, "block_size", "seq_len"),
        (data.causal_lm, "drop_last", "nothing"),
        (data.seq2seq, "max_target_length", "max_length"),
        (data.seq2seq, "collate_fn", "nothing"),
        (data.load_text, "validation_split", "validation"),
        (data.load, "split", "nothing"),
        (data.train_tokenizer, "num_words", "vocab_size"),
        (data.load_tokenizer, "eos_token", "end_token"),
        (data.Tokenizer, "bos_token", "start_token"),
        (data.teacher_forcing, "decoder_start_token_id", "start_id"),
        (TOKENIZER.encode, "add_special_tokens", "nothing"),
        (TOKENIZER.decode, "skip_special_tokens", "nothing"),
    ],
)
@pytest.mark.backend_free
def test_names_of_other_libraries_in_functions(call, name, write):
    with pytest.raises(TypeError, match=f"{call.__name__} has no argument {name}; write {write}"):
        call(**{name: 3})
    with pytest.raises(TypeError, match="unexpected keyword argument 'nowhere'"):
        call(nowhere=3)


@pytest.mark.backend_free
def test_a_name_of_ones_own_is_not_refused():
    class Mine(losses.TokenLoss):
        def __init__(self, smoothing=0.0):
            super().__init__(ignore_index=0)
            self.smoothing = smoothing

        def token_loss(self, nll, lse, mean_logit):
            return nll

    assert Mine(smoothing=0.3).smoothing == 0.3


FIT = [
    ({"initial_epoch": -1}, "initial_epoch must be a non-negative integer"),
    ({"initial_epoch": 1.5}, "initial_epoch must be a non-negative integer.*1.5"),
    ({"steps_per_epoch": 0}, "steps_per_epoch must be a positive integer"),
    ({"steps_per_epoch": 1.5}, "steps_per_epoch must be a positive integer.*1.5"),
    ({"validation_batch_size": 0}, "validation_batch_size must be a positive integer"),
    ({"validation_data": (X, Y), "validation_steps": 0}, "validation_steps must be a positive int"),
    ({"validation_data": (X, Y), "validation_freq": 0}, "validation_freq must be a positive int"),
    ({"validation_data": ()}, r"validation_data must be \(x, y\), .*a tuple of 0"),
    ({"validation_data": {"a": (X, Y)}}, r"validation_data must be one data set.*\['a'\]"),
    ({"validation_data": (X, Y, None, X)}, r"validation_data must be \(x, y\), .*a tuple of 4"),
    ({"callbacks": "csv"}, "callbacks must be Keras callbacks. Received: 'csv'"),
    ({"callbacks": [None]}, "callbacks must be Keras callbacks. Received: None"),
    (
        {"callbacks": [keras.callbacks.TerminateOnNaN]},
        "callbacks must be .*; write its const",
    ),
]


@pytest.mark.backend_free
@pytest.mark.parametrize(("arguments", "message"), FIT)
def test_arguments_of_fit_that_nobody_can_mean(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compiled().fit(X, Y, verbose=0, **arguments)


@pytest.mark.backend_free
def test_arguments_of_evaluate_and_predict_that_nobody_can_mean():
    model = compiled()
    for name in ("batch_size", "steps"):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
            model.evaluate(X, Y, verbose=0, **{name: 0})
        with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
            model.predict(X, verbose=0, **{name: 0})


@pytest.mark.backend_free
@pytest.mark.parametrize("method", ["fit", "evaluate", "test_on_batch"])
def test_a_model_that_is_not_compiled(method):
    with pytest.raises(ValueError, match=f"{method} needs a compiled model"):
        getattr(causal(), method)(X, Y)


@pytest.mark.backend_free
def test_an_optimizer_by_its_class():
    with pytest.raises(ValueError, match=r"such as optimizers.AdamW\(1e-3\).*adamw.AdamW"):
        causal().compile(optimizers.AdamW, "mse")


# Keras tells of data whose length it did not know.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.torch_only
def test_predictions_of_several_lengths():
    batches = ((batch,) for batch in (X[:2], X[2:, :4]))
    with pytest.raises(ValueError, match="must be of one length: pad all rows to it"):
        compiled().predict(batches, verbose=0)


@pytest.mark.parametrize("by", ["keras_llm", "Keras"])
@pytest.mark.sampled(2)
def test_layers_that_are_thawed_after_a_fit(by):
    """Keras: an update of an unknown variable, with all of its values."""
    own = losses.MaskedSparseCategoricalCrossentropy(0)
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = causal()
    frozen = model.backbone.layers[:-1]
    for layer in frozen:
        layer.trainable = False
    model.compile("adam", own if by == "keras_llm" else stock)
    model.fit(X, Y, verbose=0)
    before = model.get_weights()
    for layer in frozen:
        layer.trainable = True
    with pytest.raises(
        ValueError, match=r"again, with a new optimizer.*Received: \d+ without, such as"
    ):
        model.fit(X, Y, verbose=0)
    assert all(map(np.array_equal, model.get_weights(), before))
    model.compile("adam", model.loss)
    model.fit(X, Y, verbose=0)


@pytest.mark.parametrize("method", ["fit", "compile"])
@pytest.mark.sampled(2)
def test_what_a_callback_cannot_call(method):
    """Before: errors of Keras about None, after the epoch."""
    calls = {"fit": lambda model: model.fit(X, Y), "compile": lambda model: model.compile("sgd")}
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: calls[method](model))
    model = compiled()
    with pytest.raises(RuntimeError, match=f"{method} cannot be called by a callback while fit"):
        model.fit(X, Y, verbose=0, callbacks=[callback])
    model.fit(X, Y, verbose=0)


@pytest.mark.torch_only
def test_data_with_an_order_of_its_own_is_not_said_to_lose_it(recwarn):
    """Keras warns where `shuffle=True` is given; nobody has given it."""
    tf = pytest.importorskip("tensorflow")
    compiled().fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(2), verbose=0)
    assert not [w for w in recwarn if "shuffle" in str(w.message)]
