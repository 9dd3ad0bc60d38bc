"""How a trace looks: in a terminal, in a pipe, in a notebook, to a program."""

import io
import json
import re

import pytest
from rich.console import Console

import keras_llm
from keras_llm import losses, models, optimizers
from keras_llm.explanation.explanation import Explanation
from keras_llm.explanation.facts import Column, Row, Section, Table
from keras_llm.explanation.render_text import table_lines
from keras_llm.tracing.tables import block_table, blocks_of
from tests.html_page import Page

TEXTS = ["the with statement wraps a block\nof code", "a block", "code of [bold]<i>&amp; more"] * 3


def traced(num_layers=2, **kwargs):
    tokenizer = keras_llm.data.train_tokenizer(TEXTS, vocab_size=300)
    batches = keras_llm.data.causal_lm(TEXTS, tokenizer, seq_len=24, batch_size=6, pack=False)
    model = models.CausalTransformer(tokenizer.vocab_size, 16, num_layers, 2, max_length=32)
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=tokenizer.pad_id)
    model.compile(optimizers.AdamW(1e-3, global_clipnorm=0.1), loss)
    return model.trace(batches, tokenizer, **kwargs)


@pytest.fixture(scope="module")
def trace():
    return traced(show=False)


@pytest.mark.torch_only
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_longer_than_the_screen(trace, width):
    lines = trace.to_text(width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.torch_only
def test_it_is_one_screen_in_the_order_of_the_loop(trace):
    text = trace.to_text(80)
    assert len(text.splitlines()) <= 66
    code = [section.subject for section in trace.sections]
    assert code == [
        "for x, y in batches:",
        "logits = model(x)",
        "loss = loss_fn(logits, y)",
        "loss.backward()",
        "optimizer.step()",
    ]
    places = [text.index(line) for line in code]
    assert places == sorted(places)
    for section in trace.sections:
        for fact in section.facts:
            assert fact.name in text and fact.text in text


@pytest.mark.torch_only
def test_padding_is_struck_out_on_one_line():
    text = traced(show=False, tokens=99).to_text(100)
    (line,) = [line for line in text.splitlines() if "~~" in line]
    positions, *texts = line.split()
    assert re.fullmatch(r"\d+–24", positions)
    assert texts == ["~~<pad>~~", "~~<pad>~~"]


@pytest.mark.torch_only
def test_few_tokens_end_with_the_rows_last():
    rows = traced(show=False, tokens=5)["3 Loss"].to_dict()["table"]
    assert [row["row 1"] for row in rows[:4]] == ["1", "2", "3", "4"]
    assert len(rows) == 5
    assert rows[-1]["row 1"].endswith("24") and rows[-1]["struck"]


@pytest.mark.torch_only
def test_a_program_gets_json(trace):
    told = json.loads(json.dumps(trace.to_dict()))
    assert told == trace.to_dict()
    assert told["sections"][3]["table"][0].keys() >= {"block", "parameters", "gradient", "clipped"}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.torch_only
def test_a_terminal_strikes_padding(trace, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    trace.show(terminal)
    assert "\x1b[2;9m~~<pad>~~" in terminal.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert [line.rstrip() for line in plain] == trace.to_text(100).splitlines()


@pytest.mark.torch_only
def test_it_is_printed_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = traced()
    assert capsys.readouterr().out == f"{shown}\n"


@pytest.mark.torch_only
def test_the_page_is_whole(trace):
    page = Page(trace.to_html())
    assert page.text("s") == ["<pad>", "<pad>"]
    for section in trace.sections:
        for column in section.table.columns if section.table else ():
            assert column.name in page.text("small")
    assert "url(" not in trace.to_html() and "src=" not in trace.to_html()


@pytest.mark.backend_free
def test_texts_are_not_markup():
    table = Table((Column("a"), Column("b")), (Row(("[bold]x", "<i>&"), (0,)),))
    page = Explanation("", (Section("", "", (), table=table),)).to_html()
    assert "<s>[bold]x</s>" in page and "&lt;i&gt;&amp;" in page
    file = io.StringIO()
    Console(file=file, width=40).print(table_lines(table))
    assert "~~[bold]x~~" in file.getvalue() and "<i>&" in file.getvalue()


@pytest.mark.torch_only
def test_many_blocks_are_shown_by_the_first_and_the_last():
    shown = traced(num_layers=24, show=False)
    names = [row["block"] for row in shown["4 Backward"].to_dict()["table"]]
    assert len(names) == 13 and names[6] == "… 14 more"
    rows = shown["4 Backward"].to_dict()["table"]
    whole = sum(row["gradient"] ** 2 for row in rows) ** 0.5
    assert whole == pytest.approx(shown["4 Backward"]["gradient norm"].value)


@pytest.mark.backend_free
def test_blocks_by_their_paths():
    paths = ["a/encoder/block_0/x/kernel", "a/decoder/block_0/x/kernel", "a/head/kernel", "a/s"]
    assert blocks_of(paths) == {
        "encoder/block_0": [0],
        "decoder/block_0": [1],
        "head": [2],
        "a": [3],
    }
    assert blocks_of(["dense/kernel", "dense/bias"]) == {"dense": [0, 1]}
    assert blocks_of(["scale"]) == {"scale": [0]}


@pytest.mark.backend_free
def test_a_block_without_gradients_or_with_weights_of_0():
    columns = {"weights": [0.0, 3.0, 4.0], "update": [1.0, 0.3, 0.4]}
    rows = block_table({"a": [0], "b": [1, 2]}, columns).to_dict()
    assert rows[0]["update / weights"] is None
    assert rows[1]["update / weights"] == pytest.approx(0.1)
    rows = block_table({"a": [0]}, {"gradient": [None]}).to_dict()
    assert rows[0]["gradient"] is None
