"""The numbers that stock Keras gets wrong for language models, each with the right one.

A model here is a table: `Embedding` looks a row of logits up by its id, so that losses are known.
"""

import keras
import numpy as np
import pytest

from keras_llm import losses, metrics, models


def table_model(rows, **compile_arguments):
    """A LanguageModel whose logits for input id i are `rows[i]`."""
    rows = np.asarray(rows, "float32")
    table = keras.layers.Embedding(*rows.shape)
    model = models.LanguageModel(table, keras.layers.Identity())
    model(np.zeros((1, 1), "int32"))
    table.set_weights([rows])
    model.compile(optimizer="sgd", **compile_arguments)
    return model


def batches(*pairs):
    """A generator function of batches; Keras is told how many by `steps`."""
    return (tuple(np.asarray(a, "int32") for a in pair) for pair in pairs)


def evaluate(model, *pairs):
    """The logs of an epoch of these batches."""
    return model.evaluate(batches(*pairs), steps=len(pairs), verbose=0, return_dict=True)


EASY, EVEN = [100.0, 0, 0, 0, 0], [0.0] * 5
LOSS = losses.MaskedSparseCategoricalCrossentropy


def test_the_loss_of_an_epoch_is_per_token_not_per_batch():
    # 31 easy tokens in one batch, one at ln 5 in another. Stock Keras says 0.805.
    model = table_model([EASY, EVEN], loss=LOSS(ignore_index=-1))
    easy = [[0] * 31], [[0] * 31]
    hard = [[1] + [0] * 30], [[0] + [-1] * 30]
    logs = evaluate(model, easy, hard)
    assert logs["loss"] == pytest.approx(np.log(5) / 32, rel=1e-6)
    assert round(logs["loss"], 4) == 0.0503


def test_accuracy_is_per_token_not_per_row():
    # 100 of 100 right at length 128, 0 of 10 at length 16. Stock Keras says 0.556.
    accuracy = metrics.MaskedTokenAccuracy(ignore_index=-1, name="accuracy")
    model = table_model([EASY, EVEN], loss=LOSS(ignore_index=-1), metrics=[accuracy])
    right = [[0] * 128], [[0] * 100 + [-1] * 28]
    wrong = [[0] * 16], [[1] * 10 + [-1] * 6]
    assert evaluate(model, right, wrong)["accuracy"] == pytest.approx(100 / 110)


def test_perplexity_is_of_the_sums():
    # 7 tokens at 8 nats and 19 at 0. The mean of the batches' means says 54.6.
    model = table_model(
        [[0.0, 100.0], [8.0, 0.0]],
        loss=LOSS(ignore_index=-1),
        metrics=[metrics.Perplexity(ignore_index=-1)],
    )
    hard = [[1] * 7], [[1] * 7]
    easy = [[0] * 19], [[1] * 19]
    want = np.exp(7 * np.log1p(np.exp(8.0)) / 26)
    logs = evaluate(model, hard, easy)
    assert logs["perplexity"] == pytest.approx(want, rel=1e-6)
    assert round(want, 2) == 8.62


def test_perplexity_is_never_smoothed():
    model = table_model(
        [EVEN, [3.0, 0, 0, 0, 0]],
        loss=LOSS(ignore_index=-1, label_smoothing=0.1, z_loss=0.1),
        metrics=[metrics.Perplexity(ignore_index=-1)],
    )
    logs = evaluate(model, ([[0, 1]], [[2, 0]]))
    want = np.exp((np.log(5) + np.log(np.exp(3) + 4) - 3) / 2)
    assert logs["perplexity"] == pytest.approx(want, rel=1e-6)
    assert logs["loss"] > np.log(want)


def test_a_weight_of_zero_is_padding():
    # Stock Keras divides by all positions unless told otherwise.
    model = table_model([EVEN], loss=LOSS(), weighted_metrics=[metrics.Perplexity()])
    x = y = np.zeros((2, 4), "int32")
    weights = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], "float32")
    logs = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(np.log(5), rel=1e-6)
    assert logs["perplexity"] == pytest.approx(5, rel=1e-6)


def test_keras_weighs_only_weighted_metrics():
    model = table_model(
        [EVEN, EASY],
        loss=LOSS(),
        metrics=[metrics.Perplexity(name="plain")],
        weighted_metrics=[metrics.Perplexity(name="weighted")],
    )
    x, y, weights = np.array([[0, 1]]), np.zeros((1, 2), "int32"), np.array([[3.0, 1.0]])
    logs = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert logs["plain"] == pytest.approx(np.exp(np.log(5) / 2), rel=1e-6)
    assert logs["weighted"] == pytest.approx(np.exp(np.log(5) * 3 / 4), rel=1e-6)
    assert logs["loss"] == pytest.approx(np.log(5) * 3 / 4, rel=1e-6)


def test_the_logged_loss_is_per_token_for_a_sum_too():
    model = table_model([EVEN], loss=LOSS(reduction="sum"))
    zeros = np.zeros((2, 4), "int32")
    assert model.evaluate(zeros, zeros, verbose=0) == pytest.approx(np.log(5), rel=1e-6)
    objective = keras.ops.convert_to_numpy(model.compute_loss(y=zeros, y_pred=model(zeros)))
    assert objective == pytest.approx(8 * np.log(5))


def test_early_stopping_sees_the_exact_val_loss():
    model = table_model([EASY, EVEN], loss=LOSS(ignore_index=-1))
    model.optimizer.learning_rate = 0.0
    x = np.array([[0] * 31, [1] + [0] * 30])
    y = np.array([[0] * 31, [0] + [-1] * 30])
    history = model.fit(x, y, batch_size=1, verbose=0, validation_data=(x, y)).history
    assert history["loss"][0] == pytest.approx(np.log(5) / 32, rel=1e-6)
    assert history["val_loss"][0] == pytest.approx(np.log(5) / 32, rel=1e-6)


def test_regularisation_is_added_to_the_loss_of_every_token():
    model = table_model([EVEN], loss=LOSS())
    model.backbone.embeddings.regularizer = keras.regularizers.L2(0.5)
    model.backbone.set_weights([np.ones((1, 5), "float32")])
    zeros = np.zeros((3, 4), "int32")
    logs = model.evaluate(zeros, zeros, batch_size=2, verbose=0)
    assert logs == pytest.approx(np.log(5) + 0.5 * 5, rel=1e-6)


def test_distillation_trains_and_logs_per_token():
    model = table_model(
        [EVEN],
        loss=losses.MaskedKLDivergence(),
        metrics=[],
    )
    teacher = np.tile(np.array([0.5, 0.5, 0, 0, 0], "float32"), (2, 4, 1))
    weights = np.array([[1, 1, 1, 1], [1, 0, 0, 0]], "float32")
    zeros = np.zeros((2, 4), "int32")
    got = model.evaluate(zeros, teacher, sample_weight=weights, batch_size=1, verbose=0)
    assert got == pytest.approx(np.log(5 / 2), rel=1e-5)
    model.fit(zeros, teacher, sample_weight=weights, verbose=0)


def test_any_other_loss_takes_keras_own_path():
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = table_model([EVEN], loss=stock)
    zeros = np.zeros((2, 4), "int32")
    assert model.evaluate(zeros, zeros, verbose=0) == pytest.approx(np.log(5), rel=1e-6)
    model.compile(optimizer="sgd", loss=LOSS(), metrics=["accuracy", metrics.Perplexity()])
    logs = model.evaluate(zeros, zeros, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "accuracy", "perplexity"}
    model.compile(optimizer="sgd", loss=LOSS())
    assert set(model.evaluate(zeros, zeros, verbose=0, return_dict=True)) == {"loss"}


def test_metrics_live_on_the_losses_statistics():
    # One reduction over the vocabulary, not one for each.
    accuracy = metrics.MaskedTokenAccuracy(ignore_index=0)
    model = table_model([EVEN], loss=LOSS(ignore_index=0), metrics=[accuracy])
    accuracy.update_state = None
    zeros = np.zeros((2, 4), "int32")
    assert model.evaluate(zeros, zeros + 1, verbose=0, return_dict=True) == {
        "loss": pytest.approx(np.log(5), rel=1e-6),
        "masked_token_accuracy": 0.0,
    }


class TestCompile:
    def test_warns_when_a_metric_counts_what_the_loss_ignores(self):
        with pytest.warns(UserWarning, match=r"ignores the label 0.*Perplexity\(ignore_index=0\)"):
            table_model([EVEN], loss=LOSS(ignore_index=0), metrics=[metrics.Perplexity(-100)])
        with pytest.warns(UserWarning, match="'accuracy' counts it"):
            table_model([EVEN], loss=LOSS(ignore_index=0), metrics=["accuracy"])
        stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
        with pytest.warns(UserWarning, match="ignores the label 0"):
            table_model([EVEN], loss=stock, weighted_metrics=[metrics.Perplexity()])

    def test_is_quiet_when_they_agree(self):
        table_model([EVEN], loss=LOSS(ignore_index=0), metrics=[metrics.Perplexity(0)])
        table_model([EVEN], loss=LOSS(ignore_index=0), metrics=["perplexity"])
        table_model([EVEN], loss=LOSS(), metrics=["perplexity", "accuracy"])
        table_model([EVEN], loss="masked_sparse_categorical_crossentropy", metrics=["perplexity"])

    def test_refuses_what_cannot_be_trained(self):
        with pytest.raises(ValueError, match="reduction='mean' or reduction='sum'"):
            table_model([EVEN], loss=LOSS(reduction="none"))
        with pytest.raises(ValueError, match="loss_weights balance several outputs"):
            table_model([EVEN], loss=LOSS(), loss_weights=[1.0])


def test_saving_keeps_the_compilation(tmp_path):
    model = models.LanguageModel(keras.layers.Embedding(9, 4), keras.layers.Dense(9))
    model.compile(
        optimizer="adam",
        loss=LOSS(ignore_index=0, label_smoothing=0.1),
        metrics=[metrics.Perplexity(0), metrics.MaskedTokenAccuracy(5, 0)],
        weighted_metrics=[metrics.BitsPerByte([1] * 9, 0)],
    )
    x, y = np.random.default_rng(0).integers(0, 9, (2, 6, 4))
    model.fit(x, y, verbose=0)
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(before, rel=1e-6)
    assert again.get_compile_config() == model.get_compile_config()
    # The optimizer's state came along: one more step is the same step.
    for each in (model, again):
        each.fit(x, y, verbose=0)
    for mine, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
