"""A batch as text."""

import io
import sys

import numpy as np
import pytest

from keras_llm import data
from tests.data.chat_tokenizer import MARKED, SKY, chat_tokenizer

pytestmark = pytest.mark.backend_free

TOKENIZER = chat_tokenizer(MARKED)
SHOWN_SKY = """<s><|im_start|>user⏎
What color is the sky?<|im_end|>⏎
<|im_start|>assistant⏎
«The sky is blue.<|im_end|>»"""


def test_a_chat(capsys):
    batch = next(iter(data.instruction([{"messages": SKY}], TOKENIZER, 64)))
    shown = data.show(batch, TOKENIZER)
    assert capsys.readouterr().out == f"row 0: 6 of 23 tokens count\n{SHOWN_SKY}\n"
    assert repr(shown) == "<1 rows, 6 of 23 tokens count>"
    html = shown._repr_html_()
    assert html.startswith("<pre>") and "&lt;s&gt;" in html
    assert html.count("«The sky is blue.&lt;|im_end|&gt;»</span>") == 1


def test_packed_documents_and_how_many_rows(capsys):
    rows = [{"messages": SKY}, {"text": "2 + 2"}, {"text": "é✓ " * 30}]
    batch = next(iter(data.instruction(rows, TOKENIZER, 64, packing=True)))
    whole = str(data.show(batch, TOKENIZER))
    assert SHOWN_SKY in whole and "─── packed with\n<s>«2 + 2</s>»" in whole
    assert "«é✓ é✓" in whole
    assert len(data.show(batch, TOKENIZER, rows=1).counts) == 1
    with pytest.raises(ValueError, match="rows must be a positive integer"):
        data.show(batch, TOKENIZER, rows=0)


def test_batches_of_other_kinds(capsys, word_tokenizer):
    encoded = TOKENIZER([" is blue.", " 2"], padding=True, return_tensors="np")
    labels = np.where(encoded["attention_mask"] == 0, -100, encoded["input_ids"])
    labels[:, 1] = -100
    encoded["labels"] = labels
    assert str(data.show(encoded, TOKENIZER)).splitlines()[1::2] == ["<s> is« blue.»", "<s> 2"]
    pairs = data.seq2seq([("1", "2 3")], word_tokenizer, batch_size=1)
    shown = data.show(next(iter(pairs)), word_tokenizer)
    assert str(shown).splitlines()[1] == "<| start |>« 2 3 <| end |>»"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_terminals(monkeypatch):
    batch = next(iter(data.instruction([{"prompt": "2", "completion": "✓"}], TOKENIZER, 64)))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    data.show(batch, TOKENIZER)
    before, _, after = sys.stdout.getvalue().partition("«✓</s>»")
    assert before.endswith("m") and after.startswith("\x1b[0m")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    data.show(batch, TOKENIZER)
    sys.stdout.flush()
    assert b"\n<s>2??</s>?\n" in sys.stdout.buffer.getvalue()


def test_errors():
    ids = np.ones((2, 3), int)
    with pytest.raises(TypeError, match=r"batch must be \(ids, labels\)\. Received: a ndarray"):
        data.show(ids, TOKENIZER)
    with pytest.raises(TypeError, match=r"ids \(2, 3\), labels \(2, 2\)"):
        data.show((ids, ids[:, 1:]), TOKENIZER)
    with pytest.raises(TypeError, match=r"tokenizer must"):
        data.show((ids, ids), None)
