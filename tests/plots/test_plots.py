"""The pictures: what is drawn, against closed forms, float64 numpy and PyTorch."""

import ast
import sys
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest
import torch
from keras import ops
from matplotlib import colors, ticker

import keras_llm
from keras_llm import data, models, optimizers, plots, schedules
from keras_llm.plots.drawing import COLOURS
from keras_llm.plots.token_loss import pieces, wrapped

matplotlib.use("Agg")
import matplotlib.pyplot as plt

pytestmark = pytest.mark.backend_free

TEXTS = ["the with statement wraps a block", "a block of the with statement", "ğ is a letter"]
TOKENIZER = data.train_tokenizer(TEXTS, vocab_size=300)
SIZES = dict(vocab_size=TOKENIZER.vocab_size, d_model=8, num_layers=1, num_heads=2, max_length=64)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def lines(ax):
    """The data of each line by its name."""
    return {line.get_label(): line.get_data() for line in ax.lines}


def legend(ax):
    """The names in the legend, each of which has the colour of its line."""
    colours = {line.get_label(): line.get_color() for line in ax.lines}
    texts = ax.get_legend().get_texts()
    assert all(text.get_color() == colours[text.get_text()] for text in texts)
    return [text.get_text() for text in texts]


# step_curves


def test_step_curves_draw_points_smoothed_and_where_validation_was():
    losses = np.random.default_rng(0).normal(3, 1, 200)
    points = [{"step": 10 * i, "tokens": 70 * i, "loss": x} for i, x in enumerate(losses, 1)]
    points[99] |= {"val_loss": 2.5}
    points.append({"step": 2005, "val_loss": 2.25})
    ax = plots.step_curves(points, window=4)
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["training"], [10 * np.arange(1, 201), losses])
    weights = 0.75 ** (np.arange(200)[:, None] - np.arange(200))
    weights = np.tril(weights)
    expected = (weights * losses).sum(1) / weights.sum(1)
    np.testing.assert_allclose(drawn["smoothed"][1], expected)
    np.testing.assert_array_equal(drawn["validation"], [[1000, 2005], [2.5, 2.25]])
    assert legend(ax) == ["training", "smoothed", "validation"]
    by_tokens = lines(plots.step_curves(points, by="tokens", window=1))
    assert set(by_tokens) == {"training", "validation"}
    # The last validation lies where the last point with tokens does.
    np.testing.assert_array_equal(by_tokens["validation"][0], [7000, 14000])


def test_step_curves_refuse_what_they_cannot_draw():
    points = [{"step": 10, "loss": 3.0}]
    with pytest.raises(ValueError, match="metric='accuracy', points with"):
        plots.step_curves(points, "accuracy")
    with pytest.raises(ValueError, match="by must be one of"):
        plots.step_curves(points, by="epoch")
    with pytest.raises(TypeError, match="what fit returned"):
        plots.step_curves(3)


# learning_curves


def history(**curves):
    record = keras.callbacks.History()
    record.epoch, record.history = list(range(len(curves["loss"]))), curves
    return record


@pytest.mark.parametrize("wrap", [dict, history], ids=["dictionary", "History"])
def test_learning_curves_draw_the_history(wrap):
    loss, val_loss = [3.0, 2.0, 1.0], [2.5, 2.25, 2.5]
    drawn = lines(plots.learning_curves(wrap(loss=loss, val_loss=val_loss)))
    assert list(drawn) == ["training", "validation"]
    np.testing.assert_array_equal(drawn["training"], ([1, 2, 3], loss))
    np.testing.assert_array_equal(drawn["validation"], ([1, 2, 3], val_loss))


def test_a_metric_of_validation_alone_is_drawn():
    drawn = lines(plots.learning_curves({"loss": [3.0, 2.0], "val_f1": [0.5, 0.75]}, "f1"))
    assert list(drawn) == ["validation"]
    np.testing.assert_array_equal(drawn["validation"], [[1, 2], [0.5, 0.75]])


def test_the_second_scale_is_the_perplexity():
    loss = np.array([6.0, 4.0, 3.0])
    ax = plots.learning_curves({"loss": loss, "perplexity": np.exp(loss)})
    assert list(lines(ax)) == ["training"]
    (right,) = ax.child_axes
    ax.figure.draw_without_rendering()
    np.testing.assert_allclose(right.get_ylim(), np.exp(ax.get_ylim()))
    low, high = right.get_ylim()
    ticks = [tick for tick in right.get_yticks() if low <= tick <= high]
    assert ticks == [20, 50, 100, 200]


def test_there_is_no_second_scale_without_a_perplexity():
    # exp(loss) of a smoothed loss would be a wrong number.
    assert not plots.learning_curves({"loss": [2.0]}).child_axes


def test_a_single_epoch_is_seen():
    history = {"loss": [3.0], "perplexity": [8.0], "val_loss": [2.5], "val_perplexity": [7.0]}
    lines = plots.learning_curves(history).lines
    assert len(lines) == 4
    assert {line.get_marker() for line in lines} == {"o"}


def test_a_smoothed_loss_stands_beside_the_nll_that_perplexity_is_made_of():
    curves = {"loss": [3.0, 2.5], "perplexity": [8.0, 4.0], "val_loss": [3.0, 2.75]}
    curves["val_perplexity"] = [7.0, 5.0]
    drawn = lines(plots.learning_curves(curves))
    np.testing.assert_allclose(drawn["training nll"][1], np.log([8, 4]))
    np.testing.assert_allclose(drawn["validation nll"][1], np.log([7, 5]))
    np.testing.assert_array_equal(drawn["training"][1], curves["loss"])
    names = ["training", "training nll", "validation", "validation nll"]
    assert legend(plots.learning_curves(curves)) == names


def test_a_fit_that_went_on_and_validated_every_second_epoch():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((2, 1))
    record = model.fit(
        x, x, validation_data=(x, x), validation_freq=2, initial_epoch=3, epochs=8, verbose=0
    )
    drawn = lines(plots.learning_curves(record))
    np.testing.assert_array_equal(drawn["training"][0], [4, 5, 6, 7, 8])
    np.testing.assert_array_equal(drawn["validation"], ([4, 6, 8], record.history["val_loss"]))


def test_what_is_not_finite_leaves_a_gap():
    drawn = lines(plots.learning_curves({"loss": [3.0, np.nan, 1.0, np.inf]}))
    np.testing.assert_array_equal(drawn["training"], ([1, 3], [3, 1]))
    assert len(plots.learning_curves({"loss": [np.nan], "val_loss": [np.nan]}).lines) == 2


def test_other_metrics():
    ax = plots.learning_curves({"loss": [1.0], "hits": [0.5], "perplexity": [9.0]}, "hits")
    np.testing.assert_array_equal(lines(ax)["training"], ([1], [0.5]))
    assert ax.get_ylabel() == "hits" and not ax.child_axes


@pytest.mark.parametrize(
    "curves, message",
    [
        ({}, "at least one epoch"),
        ({"loss": []}, "at least one epoch"),
        ({"hits": [1.0]}, r"metric='loss', a history of \['hits'\]"),
        ({"loss": [1.0] * 5, "val_loss": [1.0] * 4}, "4 values for 5 epochs"),
    ],
)
def test_learning_curves_need_something_to_draw(curves, message):
    with pytest.raises(ValueError, match=message):
        plots.learning_curves(curves)


# schedule


def linear(step, peak, warmup, total):
    return peak * np.where(step < warmup, step / warmup, (total - step) / (total - warmup))


@pytest.mark.every_backend
def test_a_schedule_and_its_corner():
    warmup, total = 340, 7919
    ax = plots.schedule(schedules.WarmupLinearDecay(1e-3, warmup, total))
    ((steps, rates),) = lines(ax).values()
    np.testing.assert_allclose(rates, linear(steps, 1e-3, warmup, total), rtol=1e-5, atol=1e-9)
    assert steps[0] == 0 and steps[-1] == total and rates.max() == np.float32(1e-3)
    assert (steps == steps.round()).all()
    assert ax.get_title() == "WarmupLinearDecay"


@pytest.mark.every_backend
def test_schedules_of_keras_and_as_many_steps_as_asked_for():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=50, alpha=0.2)
    steps, rates = lines(plots.schedule(schedule, steps=80))["CosineDecay"]
    progress = np.minimum(steps, 50) / 50
    expected = 0.1 * (0.8 * 0.5 * (1 + np.cos(np.pi * progress)) + 0.2)
    assert steps[-1] == 80
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_several_by_their_names():
    short, long = (schedules.WarmupLinearDecay(1e-3, 10, total) for total in (100, 200))
    numbered = lines(plots.schedule([short, long, optimizers.AdamW(5e-4)]))
    assert list(numbered) == ["WarmupLinearDecay 1", "WarmupLinearDecay 2", "AdamW"]
    assert all(steps[-1] >= 200 for steps, _ in numbered.values())
    np.testing.assert_allclose(numbered["AdamW"][1], 5e-4)
    ax = plots.schedule({"short": short, "long": long})
    assert legend(ax) == ["short", "long"]


@pytest.mark.every_backend
def test_an_optimizer_shows_where_it_is():
    optimizer = optimizers.AdamW(schedules.WarmupLinearDecay(1e-3, 10, 100))
    assert len(plots.schedule(optimizer).lines) == 1
    optimizer.iterations.assign(55)
    _, today = plots.schedule(keras.optimizers.LossScaleOptimizer(optimizer)).lines
    (x,), (y,) = today.get_data()
    assert (x, y) == (55, pytest.approx(0.5e-3))


def test_a_fixed_rate_is_as_long_as_what_it_is_compared_with():
    ax = plots.schedule([optimizers.AdamW(5e-4), schedules.WarmupLinearDecay(1e-3, 10, 100)])
    assert [steps[-1] for steps, _ in lines(ax).values()] == [100, 100]


def test_adafactors_own_schedule():
    steps, rates = lines(plots.schedule(optimizers.Adafactor(), steps=20_000))["Adafactor"]
    np.testing.assert_allclose(rates, np.minimum(1e-2, (steps + 1) ** -0.5), rtol=1e-5)


def test_what_is_no_schedule():
    with pytest.raises(TypeError, match="schedule must be a schedule or an optimizer"):
        plots.schedule(1e-3)
    with pytest.raises(ValueError, match="0 schedules"):
        plots.schedule([])
    with pytest.raises(ValueError, match="steps=0"):
        plots.schedule(schedules.WarmupConstant(1e-3, 10), steps=0)


# smoothing and focal


@pytest.mark.parametrize("vocab_size", [2, 50])
@pytest.mark.every_backend
def test_smoothing_of_every_class_written_out(vocab_size):
    drawn = lines(plots.smoothing(vocab_size, [0.0, 0.1, 0.3]))
    for e in (0.0, 0.1, 0.3):
        p, loss = drawn[f"e = {e:g}"]
        others = np.repeat((1 - p)[:, None] / (vocab_size - 1), vocab_size - 1, axis=1)
        surprise = -np.log(np.concatenate([p[:, None], others], axis=1))
        expected = (1 - e) * surprise[:, 0] + e * surprise.mean(axis=1)
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)


def test_the_dot_is_where_the_smoothed_loss_is_least():
    vocab_size, e = 10, 0.5
    _, dot = plots.smoothing(vocab_size, [e]).lines
    (p,), (loss,) = dot.get_data()
    best = 1 - e + e / vocab_size
    entropy = -best * np.log(best) - (1 - best) * np.log((1 - best) / (vocab_size - 1))
    assert (p, loss) == (best, pytest.approx(entropy, rel=1e-5))


@pytest.mark.every_backend
def test_focal():
    drawn = lines(plots.focal([0, 0.5, 2]))
    for gamma in (0, 0.5, 2):
        p, loss = drawn[f"γ = {gamma:g}"]
        np.testing.assert_allclose(loss, (1 - p) ** gamma * -np.log(p), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("draw", [lambda: plots.smoothing(1), lambda: plots.focal([-1])])
def test_formulas_out_of_range(draw):
    with pytest.raises(ValueError, match="must"):
        draw()


# token_loss


@pytest.mark.every_backend
def test_the_strip_has_the_losses_that_pytorch_computes():
    model = models.CausalTransformer(**SIZES)
    ids = np.array(TOKENIZER.encode(TEXTS[0]))
    logits = torch.tensor(ops.convert_to_numpy(model(ids[None]))).double()
    expected = torch.nn.functional.cross_entropy(
        logits[0, :-1], torch.tensor(ids[1:]), reduction="none"
    )
    ax = plots.token_loss(model, TEXTS[0], TOKENIZER)
    nats = ax.collections[0].get_array()
    assert nats.mask.tolist() == [True] + [False] * (len(ids) - 1)
    np.testing.assert_allclose(nats[1:], expected, rtol=1e-5)
    mean = float(expected.mean())
    assert ax.get_title("left") == f"{mean:.2f} nats a token, perplexity {np.exp(mean):,.1f}"
    assert "".join(text.get_text() for text in ax.texts) == TEXTS[0]


@pytest.mark.every_backend
def test_padding_has_no_loss():
    ids = [*TOKENIZER.encode("a block"), TOKENIZER.pad_id, TOKENIZER.pad_id]
    ax = plots.token_loss(models.CausalTransformer(**SIZES), ids, TOKENIZER)
    assert ax.collections[0].get_array().mask[-2:].all()
    assert ax.texts[-1].get_text() == "<0>"


@pytest.mark.every_backend
def test_a_plain_model_that_predicts_probabilities():
    model = keras.Sequential([keras.layers.Embedding(300, 300, embeddings_initializer="identity")])
    model.add(keras.layers.Softmax())
    ax = plots.token_loss(model, [5, 5, 7], TOKENIZER, from_logits=False)
    total = np.e + 299
    expected = [np.log(total / np.e), np.log(total)]
    np.testing.assert_allclose(ax.collections[0].get_array()[1:], expected, rtol=1e-5)


def test_a_guess_among_all_tokens_has_full_colour():
    model = keras.Sequential([keras.layers.Embedding(300, 300, embeddings_initializer="zeros")])
    cells = plots.token_loss(model, "a block", TOKENIZER).collections[0]
    assert cells.norm.vmax == pytest.approx(np.log(300))
    alphas = cells.to_rgba([0.0, np.log(300) - 1e-6])[:, 3]
    np.testing.assert_allclose(alphas, [0, 0.85], atol=0.01)


def test_cells_wrap_at_the_columns_and_at_newlines():
    places, count = wrapped(["ab", "cde", "\n", "f", " long" * 4, "g"], columns=6)
    assert places == [
        ("ab", 0, 0), ("cde", 2, 0), ("↵", 5, 0), ("f", 0, 1), (" long…", 0, 2), ("g", 0, 3),
    ]  # fmt: skip
    assert count == 4


def test_a_letter_of_two_tokens_stands_in_the_second():
    ids = data.train_tokenizer(["abc"], vocab_size=259).encode("aş\n")
    assert list(pieces(ids, data.train_tokenizer(["abc"], vocab_size=259))) == ["a", "·", "ş", "\n"]


def test_the_cells_hold_their_text_as_it_is(tmp_path):
    text = "$x$ a_b\t\\frac 100%"
    ax = plots.token_loss(models.CausalTransformer(**SIZES), text, TOKENIZER)
    assert not any(each.get_parse_math() for each in ax.texts)
    ax.figure.savefig(tmp_path / "strip.png")
    assert "".join(each.get_text() for each in ax.texts) == text.replace("\t", "→")
    # No letter leaves its cell: the font fills the width that the columns have.
    ax.figure.canvas.draw()
    cells = [ax.transData.transform(path.vertices) for path in ax.collections[0].get_paths()]
    for each, cell in zip(ax.texts, cells, strict=True):
        assert each.get_window_extent().x1 <= cell[:, 0].max() + 1


@pytest.mark.parametrize("text", ["", [5], [[5, 6]]])
def test_the_strip_needs_a_row_of_tokens(text):
    with pytest.raises(ValueError, match="at least two tokens"):
        plots.token_loss(models.CausalTransformer(**SIZES), text, TOKENIZER)


# loss_memory


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_memory_by_the_formula(device_type):
    sizes, tokens, d_model = np.array([1_000, 50_257, 262_144]), 4_096, 512
    drawn = lines(plots.loss_memory(sizes, tokens, d_model, device_type))
    rows = {
        # 256 MiB of float32, at least 64 rows and at most 512
        "cpu": [512, 512, 256],
        # as many as keep products busy, whatever the vocabulary
        "cuda": [2_048, 2_048, 2_048],
    }[device_type]
    np.testing.assert_array_equal(drawn["whole logits"][1], 4 * sizes * (3 * tokens + d_model))
    np.testing.assert_array_equal(drawn["one pass"][1], 4 * sizes * (np.array(rows) + d_model))


def test_memory_says_that_it_is_computed():
    ax = plots.loss_memory()
    assert "computed, not measured" in ax.get_title()
    assert isinstance(ax.yaxis.get_major_formatter(), ticker.EngFormatter)
    with pytest.raises(ValueError, match="tokens=0"):
        plots.loss_memory(tokens=0)


# legends


@pytest.mark.parametrize(
    "draw, count",
    [(plots.focal, 4), (plots.smoothing, 3), (plots.loss_memory, 2)],
)
def test_every_line_is_named(draw, count):
    ax = draw()
    # Nothing but dots is without a name.
    named = [line.get_label() for line in ax.lines if len(line.get_xdata()) > 1]
    assert legend(ax) == named and len(named) == count


def test_a_single_line_needs_no_legend():
    assert plots.learning_curves({"loss": [2.0, 1.0]}).get_legend() is None


# all of them

PICTURES = {
    "learning_curves": lambda **a: plots.learning_curves({"loss": [2.0], "val_loss": [1.0]}, **a),
    "schedule": lambda **a: plots.schedule(schedules.WarmupConstant(1e-3, 10), **a),
    "smoothing": plots.smoothing,
    "focal": plots.focal,
    "token_loss": lambda **a: plots.token_loss(
        models.CausalTransformer(**SIZES), "a block", TOKENIZER, **a
    ),
    "loss_memory": plots.loss_memory,
    "step_curves": lambda **a: plots.step_curves([{"step": 10, "loss": 2.0}], **a),
}


def test_every_picture_is_tested_here():
    assert sorted(PICTURES) == sorted(plots.__all__)


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_pictures_go_into_the_axes_they_are_given(draw):
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(ax=right) is right
    assert plt.get_fignums() == [figure.number]
    assert right.has_data() and not left.has_data()
    assert draw().figure is not figure


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_on_a_dark_ground_text_is_light(draw):
    with plt.style.context("dark_background"):
        ax = draw()
        inks = {colors.to_hex(text.get_color()) for text in [ax.title, ax.xaxis.label, *ax.texts]}
    assert inks <= {"#ffffff", *COLOURS}


@pytest.mark.parametrize("ground", ["#ffffff", "#15171a"], ids=["light", "dark"])
def test_colours_show_on_light_and_on_dark(ground):
    def luminance(colour):
        c = np.array(colors.to_rgb(colour))
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126, 0.7152, 0.0722,
        ]  # fmt: skip

    for colour in COLOURS:
        darker, lighter = sorted([luminance(colour), luminance(ground)])
        # WCAG 2 asks for 3 of graphics and of large text.
        assert (lighter + 0.05) / (darker + 0.05) > 3.5


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("keras_llm.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(keras_llm, "plots")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "keras_llm\[plots\]"'):
        _ = keras_llm.plots


def test_nothing_else_imports_matplotlib_when_it_is_imported():
    package = Path(keras_llm.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name != "plots":
            names = [name for node in ast.parse(path.read_text()).body for name in imported(node)]
            assert not [name for name in names if "matplotlib" in name or "plots" in name], path


def imported(node):
    """What an import statement imports."""
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return [prefix + alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "asname")]
