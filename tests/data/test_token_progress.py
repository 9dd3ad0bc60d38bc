"""The progress bar of `data.tokens`."""

import pytest
from rich import progress

from tests.data.token_folders import encode, write_text

pytestmark = pytest.mark.backend_free


def test_it_is_shown_on_request(tmp_path, word_tokenizer, capsys):
    text = tmp_path / "my.txt"
    write_text(text)
    encode(text, word_tokenizer, tmp_path / "one")
    assert capsys.readouterr() == ("", "")
    encode(text, word_tokenizer, tmp_path / "two", verbose=1)
    assert "tokens" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["a\n\n" * 500, "\n\n\n".join("aba"), "\ufeffa\r\n\r\na"])
def test_it_ends_at_100_per_cent(tmp_path, word_tokenizer, monkeypatch, content):
    """The length that is hashed with each document was counted too: tiny ones made it 400 %."""
    path = tmp_path / "my.txt"
    path.write_text(content, "utf-8", newline="")
    shown, advance = [], progress.Progress.advance

    def watched(bar, task, amount):
        advance(bar, task, amount)
        shown.append((bar, bar.tasks[0].completed))

    monkeypatch.setattr(progress.Progress, "advance", watched)
    encode(path, word_tokenizer, tmp_path / "tokens", verbose=1)
    size = len(path.read_bytes())
    assert max(completed for _, completed in shown) <= size
    (task,) = shown[-1][0].tasks
    assert task.completed == task.total == size
