"""`TrainingReport`: one file, whole and closed, that says what the history says."""

import gc
import re

import keras
import matplotlib
import numpy as np
import pytest

from keras_llm import losses, metrics, models
from keras_llm.callbacks import TrainingReport
from tests.html_page import Page

pytestmark = pytest.mark.backend_free

matplotlib.use("Agg")

SIZES = dict(vocab_size=11, d_model=8, num_layers=1, num_heads=2, max_length=16)
X, Y = np.random.default_rng(0).integers(1, 11, (2, 6, 5))
SCRIPT = "<script>alert('&')</script>"


class Letters:
    """A tokenizer of ids as letters, with a word of its own for one of them."""

    def __init__(self, **words):
        self.words = words

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids):
        return "".join(self.words.get(chr(i + ord("a")), chr(i + ord("a"))) for i in ids)


def read(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "report.html"


def compiled(**loss):
    model = models.CausalTransformer(**SIZES)
    model.compile(
        keras.optimizers.SGD(0.1),
        losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, **loss),
        metrics=[metrics.Perplexity(ignore_index=0), metrics.MaskedTokenAccuracy(ignore_index=0)],
    )
    return model


def plain():
    """A model that logs nothing but its loss: one picture."""
    model = keras.Sequential([keras.layers.Embedding(11, 11)])
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    return model


def fit(model, *callbacks, epochs=2, **arguments):
    arguments = {"batch_size": 3, "shuffle": False, "verbose": 0} | arguments
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **arguments)


def rows(page):
    """The table of epochs, as numbers by epoch and column."""
    names, *lines = page.tables[0]
    assert names[0] == "epoch"
    return [dict(zip(names, line, strict=True)) for line in lines]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The path of a report, and the history that it is about."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("runs") / "report.html"
    model, some = compiled(label_smoothing=0.1), (X[:2], Y[:2])
    return path, fit(model, TrainingReport(path), epochs=3, validation_data=some).history


def test_the_page_is_whole_and_needs_nothing_else(reported):
    path, _ = reported
    page = read(path)
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    references = page.values("href") + page.values("xlink:href") + page.values("clip-path")
    inside = [value.split("#")[1].rstrip(")") for value in references if "#" in value]
    assert inside and set(inside) <= set(ids)
    # A person may follow a link of the explanation; nothing is loaded from anywhere.
    assert all(
        tag == "a" for tag, name, value in page.attributes if name == "href" and value[0] != "#"
    )
    tags = {tag for tag, *_ in page.attributes}
    assert not tags & {"link", "script", "img", "iframe", "image"} and not page.values("src")
    assert "@import" not in page.source and "url(http" not in page.source
    assert list(path.parent.iterdir()) == [path]


def test_the_table_is_the_history(reported):
    path, history = reported
    page = read(path)
    lines = rows(page)
    best = int(np.argmin(history["val_loss"]))
    assert [line["epoch"].removeprefix("★ ") for line in lines] == ["1", "2", "3"]
    assert [line["epoch"][0] == "★" for line in lines] == [i == best for i in range(3)]
    assert list(lines[0])[:3] == ["epoch", "loss", "val_loss"]
    for name, values in history.items():
        numbers = [float(line[name].replace(",", "")) for line in lines]
        np.testing.assert_allclose(numbers, values, rtol=1e-3)
    assert "Finished after epoch 3 of 3." in page.text("p")[0]


def test_a_picture_for_the_loss_and_for_every_metric_but_perplexity(reported):
    path, history = reported
    labels = [
        value
        for tag, name, value in read(path).attributes
        if (tag, name) == ("figure", "aria-label")
    ]
    assert labels[0] == "loss by epoch"
    # What validation has found is in the same picture.
    drawn = {name for name in history if not name.startswith("val_")} - {"perplexity"}
    assert set(labels) == {f"{name} by epoch" for name in drawn}
    assert "perplexity" in read(path).text("text")


@pytest.mark.slow
def test_curves_are_over_steps_where_epochs_are_long(path):
    model, many = compiled(), np.repeat(X, 4, 0)
    history = model.fit(many, many, batch_size=1, verbose=0, callbacks=[TrainingReport(path)])
    assert [point["step"] for point in history.steps] == [10, 20, 24]
    labels = [
        value
        for tag, name, value in read(path).attributes
        if (tag, name) == ("figure", "aria-label")
    ]
    assert labels[0] == "loss by step"
    assert "perplexity by step" in labels
    state = TrainingReport(path)
    state.load_state_dict({"rows": [{"epoch": 1, "logs": {}, "seconds": 1.0, "samples": ["a"]}]})
    assert state.state_dict()["rows"][0]["samples"] == ("a",)


def test_the_explanation_is_on_the_page(reported):
    path, _ = reported
    assert "MaskedSparseCategoricalCrossentropy" in read(path).text("code")


def test_colours_follow_the_page(path):
    with matplotlib.rc_context({"text.color": "red", "lines.color": "red"}):
        fit(plain(), TrainingReport(path))
    source = path.read_text()
    assert "prefers-color-scheme: dark" in source and "fill: currentColor" in source
    drawn = "".join(re.findall("<figure.*?</figure>", source, flags=re.DOTALL))
    assert not re.search("#(?:000|fff|f00){1,2}\\b|black|white|#010203", drawn)


@pytest.mark.every_backend
def test_samples_before_training_and_after_every_epoch(path):
    model = compiled()
    options = dict(max_new_tokens=4, temperature=1.0, seed=3)
    before = model.generate([1, 2], **options)
    fit(model, TrainingReport(path, ["bc", "d"], Letters(), **options))
    after = model.generate([1, 2], **options)
    page = read(path)
    assert page.text("h3")[:2] == ["bc …", "d …"]
    assert page.text("dt") == 2 * ["before", "epoch 1", "epoch 2"]
    texts = page.text("dd")
    assert texts[0] == Letters().decode(before[2:]) and texts[2] == Letters().decode(after[2:])
    assert len(texts) == 6


@pytest.mark.slow
@pytest.mark.every_backend
def test_training_goes_as_it_would_without(path):
    weights = []
    for report in (
        None,
        TrainingReport(path, "bc", Letters(), max_new_tokens=4, top_p=0.9, seed=0),
    ):
        keras.utils.set_random_seed(0)
        model = models.CausalTransformer(**SIZES, dropout=0.3)
        model.compile("adam", losses.MaskedSparseCategoricalCrossentropy())
        fit(model, *filter(None, [report]), shuffle=True, validation_data=(X, Y))
        weights.append(model.get_weights())
    for alone, reported in zip(*weights, strict=True):
        np.testing.assert_array_equal(alone, reported)


def test_texts_are_text(path):
    class Named(keras.Sequential):
        def generate(self, ids):
            return [*ids, 2]

    model = Named([keras.layers.Embedding(11, 11)])
    model.compile(
        "sgd",
        losses.MaskedSparseCategoricalCrossentropy(),
        metrics=[metrics.MaskedTokenAccuracy(name="<script>")],
    )
    tokenizer = Letters(b=SCRIPT, c=SCRIPT)
    fit(model, TrainingReport(path, [SCRIPT], SpelledAsOne(tokenizer), title=f"<b>{SCRIPT}"))
    page = read(path)
    assert "<script" not in page.source.lower() and "<b>" not in page.source
    for tag in ("title", "h1", "h3"):
        assert SCRIPT in page.text(tag)[0]
    assert SCRIPT in page.text("dd") and "<script>" in page.text("text")


class SpelledAsOne:
    """A tokenizer that reads any prompt as one token."""

    def __init__(self, tokenizer):
        self.decode = tokenizer.decode

    def encode(self, text):
        return [1]


def test_a_plain_model_and_validation_in_every_second_epoch(path):
    fit(plain(), TrainingReport(path), validation_data=(X, Y), validation_freq=2)
    first, second = rows(read(path))
    assert first["val_loss"] == "" and float(second["val_loss"]) > 0


def test_a_fit_that_goes_on_and_one_that_starts_again(path):
    model, report = plain(), TrainingReport(path)
    fit(model, report)
    losses_before = [line["loss"] for line in rows(read(path))]
    fit(model, report, epochs=4, initial_epoch=2)
    lines = rows(read(path))
    assert [line["epoch"] for line in lines] == ["1", "2", "3", "4"]
    assert [line["loss"] for line in lines[:2]] == losses_before
    fit(model, report, epochs=1)
    assert [line["epoch"] for line in rows(read(path))] == ["1"]


def test_a_fit_that_another_process_began(path):
    fit(
        compiled(),
        TrainingReport(path, "b", Letters(), max_new_tokens=2),
        epochs=4,
        initial_epoch=3,
    )
    page = read(path)
    assert [line["epoch"] for line in rows(page)] == ["4"]
    assert page.text("dt") == ["epoch 3", "epoch 4"]
    # The picture of a single epoch is numbered as the table is.
    assert "4" in page.text("text") and "1" not in page.text("text")


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_an_interruption_is_said(path):
    report = TrainingReport(path)
    with pytest.raises(KeyboardInterrupt):
        fit(plain(), report, Interrupt(), epochs=3)
    assert read(path).text("p")[0].startswith("After epoch 1 of 3.")
    # What Python does when it exits, it does when nobody needs the callback any more.
    assert report.interruption.atexit
    del report
    gc.collect()
    page = read(path)
    assert page.text("p")[0].startswith("Interrupted in epoch 2 of 3.")
    assert len(rows(page)) == 1


def test_a_report_that_is_over_stays_as_it_is(path):
    fit(plain(), TrainingReport(path))
    source = path.read_text()
    gc.collect()
    assert path.read_text() == source


def test_early_stopping_is_said(path):
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100.0)
    fit(plain(), TrainingReport(path), stop, epochs=9)
    assert read(path).text("p")[0].startswith("Stopped after epoch 2 of 9.")


def test_no_epochs_write_nothing(path):
    fit(plain(), TrainingReport(path), epochs=2, initial_epoch=2)
    assert not path.exists()


def test_prompts_need_a_tokenizer_and_a_model_that_generates(path):
    with pytest.raises(ValueError, match="prompts need a tokenizer"):
        TrainingReport(path, ["b"])
    with pytest.raises(ValueError, match=r"generate.*Received: a Sequential"):
        fit(plain(), TrainingReport(path, "b", Letters()))
