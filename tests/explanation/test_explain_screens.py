"""How an explanation looks: in a terminal, in a pipe, in a notebook, to a program."""

import io
import json
import re

import pytest

import keras_llm
from keras_llm import explain, losses, metrics, optimizers, schedules
from keras_llm.explanation.explanation import Explanation
from keras_llm.explanation.facts import Curve, Fact, Section
from keras_llm.optimizers import AdamW
from tests.explanation.small_models import PAD, V, X, Y, compiled, plain, token_metrics
from tests.html_page import Page

# explain is asked about mistakes, too.
pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.filterwarnings("ignore::keras_llm.checks.sanity_warning.SanityWarning"),
]


def flagged():
    """A model with much to say."""
    optimizer = optimizers.AdamW(
        schedules.WarmupCosineDecay(0.5, 900, 1_000), beta_2=0.9999, decay_vectors=True
    )
    loss = losses.MaskedSparseCategoricalFocalCrossentropy(
        gamma=9.0, alpha=[0.5] * V, ignore_index=PAD, label_smoothing=0.3, z_loss=1.0
    )
    name = "a_metric_whose_name_is_longer_than_any_column_of_a_narrow_screen"
    return compiled(plain(), optimizer, loss, metrics=[metrics.Perplexity(PAD, name=name)])


def good():
    optimizer = optimizers.AdamW(
        schedules.WarmupCosineDecay(1e-3, 100, 2_000), weight_decay=0.1, global_clipnorm=1.0
    )
    return compiled(optimizer=optimizer, metrics=token_metrics())


MODELS = {"good": good, "flagged": flagged, "stock": lambda: compiled(plain(), loss="mse")}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", MODELS)
def test_no_line_is_longer_than_the_screen(name, width):
    lines = explain(MODELS[name](), show=False).to_text(width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_a_good_model_fits_on_a_screen_and_has_nothing_to_look_at():
    explanation = explain(good(), show=False)
    assert explanation.flags == {}
    assert len(explanation.to_text(80).splitlines()) <= 62
    assert "▲ 1" not in explanation.to_text(80)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.every_backend
def test_every_name_value_and_flag_is_on_the_screen(name):
    explanation = explain(MODELS[name](), show=False)
    squeezed = "".join(explanation.to_text(80).split())
    for section in explanation.sections:
        for fact in section.facts:
            for text in (fact.name, fact.text, fact.note, fact.flag):
                # In columns, words of one are between the words of another.
                for word in text.split():
                    assert word in squeezed
    assert squeezed.count("▲") == len(explanation.flags) + bool(explanation.flags) + bool(
        any(section.curve for section in explanation.sections)
    )


def test_the_curve_in_blocks():
    schedule = schedules.WarmupLinearDecay(1e-3, 50, 100)
    model = compiled(optimizer=optimizers.AdamW(schedule))
    model.optimizer.iterations.assign(100)
    lines = explain(model, show=False).to_text(80).splitlines()
    top = next(line for line in lines if "│" in line)
    assert top.split("│")[0].strip() == "1e-3"
    rows = [line.split("│")[1].ljust(60) for line in lines if "│" in line]
    # A triangle: highest in the middle, nothing at the ends.
    columns = ["".join(row[i] for row in rows) for i in range(55)]
    assert columns[27].strip() == "███"
    assert columns[0].strip() == columns[54].strip() == ""
    axis = next(line for line in lines if "└" in line)
    assert axis.endswith("▲")


def test_a_program_gets_json():
    for make in MODELS.values():
        explanation = explain(make(), batch=(X, Y), show=False)
        told = json.loads(json.dumps(explanation.to_dict()))
        assert told == explanation.to_dict()
        assert told["title"] == explanation.title
        flags = [f["flag"] for s in told["sections"] for f in s["facts"] if f["flag"]]
        assert flags == list(explanation.flags.values())
    usual = told["sections"][1]["facts"][0]["usual"]
    assert set(usual) == {"low", "high", "sources"}
    assert set(usual["sources"]) <= set(told["sources"])


def test_unknown_names_are_refused():
    explanation = explain(good(), show=False)
    with pytest.raises(KeyError, match="No section 'Los'"):
        explanation["Los"]
    with pytest.raises(KeyError, match="has no fact 'beta'"):
        explanation["Optimizer"]["beta"]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_in_a_terminal_it_is_coloured(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    explanation = explain(flagged(), show=False)
    explanation.show(terminal)
    assert "\x1b[" in terminal.getvalue()
    plain_lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert [line.rstrip() for line in plain_lines] == explanation.to_text(100).splitlines()


def test_in_a_pipe_it_is_plain_and_printed_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model = good()
    explanation = model.explain()
    out = capsys.readouterr().out
    assert out == f"{explanation}\n" == explanation.to_text(80) + "\n"
    assert "\x1b" not in out
    assert str(keras_llm.explain(model, show=False)) == str(explanation)
    assert capsys.readouterr().out == ""
    assert "\n" not in repr(explanation)


def test_in_a_notebook_the_object_shows_itself(capsys, monkeypatch):
    class ZMQInteractiveShell:
        pass

    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    explanation = good().explain()
    assert capsys.readouterr().out == ""
    assert explanation._repr_html_() == explanation.to_html()


def test_a_pipe_that_lacks_the_characters_of_a_curve():
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="cp1254")
    explain(good(), show=False).show(pipe)
    pipe.flush()
    assert b"Learning rate" in pipe.buffer.getvalue()


@pytest.mark.parametrize("name", MODELS)
def test_the_page_is_whole_and_loads_nothing(name):
    explanation = explain(MODELS[name](), show=False)
    # Where a name may break, it is still one word.
    page = Page(explanation.to_html().replace("<wbr>", ""))
    text = page.words()
    for section in explanation.sections:
        for fact in section.facts:
            for part in (fact.name, fact.text, fact.note, fact.flag, *fact.details):
                assert part in text
    assert not {"src", "onload", "onclick"} & {name for _, name, _ in page.attributes}
    assert "url(" not in explanation.to_html() and "@import" not in explanation.to_html()
    assert set(page.values("href")) == {source.url for source in explanation.sources}


def test_without_styles_and_drawings_the_page_is_still_text():
    page = explain(MODELS["flagged"](), show=False).to_html()
    page = re.sub(
        r"(?s)<style>.*?</style>|</?(?:svg|path|polyline|circle|text|title).*?>", "", page
    )
    # Blocks begin lines, anything else does not; numbers and words must not run together.
    lines = re.sub(r"</?(?:div|td|h3|p|footer|details)\b.*?>", "\n", page)
    lines = re.sub(r"<.*?>", "", lines).splitlines()
    fact = explain(MODELS["flagged"](), show=False)["Loss"]["first loss"]
    assert f"{fact.text}&emsp;{fact.note}" in lines
    curve = r"learning rate .*; from 0 to \S+, from 0 to .* updates"
    assert any(re.fullmatch(curve, line) for line in lines)
    assert re.findall("<td(?! style=.text-align)", page) == []


def test_what_looks_like_markup_is_text():
    odd = "<s>[red]&\"'"
    fact = Fact(odd, odd, note=odd, flag=odd, details=(odd,))
    beside = Fact(odd, "[i]", usual=AdamW.usual_ranges["weight_decay"])
    explanation = Explanation(
        odd, (Section(odd, odd, (fact, beside), Curve((0,), (1.0,), 0, 1.0)),)
    )
    page = explanation.to_html()
    assert "<s>" not in page
    assert Page(page).words().count(odd) == 9
    # Nor does rich take a name for markup.
    assert explanation.to_text(80).count(odd) == 8
    assert "[i]" in explanation.to_text(80)
