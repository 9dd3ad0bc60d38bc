"""`data.tokens`: what it writes, what it notices, and how it goes on."""

import hashlib
import json
import os
import tracemalloc

import numpy as np
import pytest

from keras_llm import data
from keras_llm.data import token_sources
from keras_llm.folder_lock import FolderInUseError, FolderLock
from tests.data.token_folders import SHARD_BYTES, encode, files_of, write_text
from tests.programs import Program

pytestmark = pytest.mark.backend_free


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "my.txt"
    write_text(path)
    return path


class Killed(BaseException):
    """Nothing catches it."""


def killed_at(monkeypatch, module, name, count):
    """The function raises at its call number `count`."""
    function, calls = getattr(module, name), iter(range(count))

    def dies(*args, **kwargs):
        if next(calls, None) is None:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, dies)


def test_files_are_read_without_our_code(tmp_path, word_tokenizer):
    paragraphs = write_text(tmp_path / "my.txt")
    encode(tmp_path / "my.txt", word_tokenizer, tmp_path / "tokens")
    expected = [[*word_tokenizer.encode(each), word_tokenizer.end_id] for each in paragraphs]
    manifest = json.loads((tmp_path / "tokens/manifest.json").read_text())
    found, sizes = [], []
    for shard in manifest["shards"]:
        ids_name, offsets_name = shard["files"]
        for name, file in shard["files"].items():
            content = (tmp_path / "tokens" / name).read_bytes()
            assert len(content) == file["bytes"]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
        ids = np.fromfile(tmp_path / "tokens" / ids_name, "<u2")
        offsets = np.fromfile(tmp_path / "tokens" / offsets_name, "<i8")
        assert offsets[0] == 0 and offsets[-1] == len(ids) == shard["tokens"]
        assert len(offsets) == shard["documents"] + 1
        found += [each.tolist() for each in np.split(ids, offsets[1:-1])]
        sizes.append(sum(len(each) for each in paragraphs[: shard["documents"]]))
    assert found == expected
    assert len(sizes) > 3
    assert manifest["tokens"] == sum(map(len, expected))
    assert manifest["documents"] == len(expected)
    assert manifest["complete"] is True


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    class Wide:
        vocab_size, pad_id, end_id = 200_000, 0, 2

        def encode_each(self, texts):
            return ([int(word) for word in text.split() if word.isdigit()] for text in texts)

    tokens = encode(["65535 65536 199999"], Wide(), tmp_path)
    assert np.fromfile(tmp_path / "shard_00000.ids", "<u4").tolist() == [65535, 65536, 199999, 2]
    ((ids, labels),) = data.causal_lm(tokens, seq_len=3, batch_size=1)
    assert ids.tolist() == [[65535, 65536, 199999]]
    assert labels.tolist() == [[65536, 199999, 2]]


def test_a_second_call_reads_no_text(tmp_path, text, word_tokenizer, monkeypatch):
    encode(text, word_tokenizer, tmp_path / "tokens")
    before = files_of(tmp_path / "tokens")
    killed_at(monkeypatch, token_sources, "file_documents", 0)
    again = encode(text, word_tokenizer, tmp_path / "tokens")
    assert again.num_tokens == json.loads(before["manifest.json"])["tokens"]
    assert files_of(tmp_path / "tokens") == before


def test_text_that_only_looks_changed_is_compared(tmp_path, text, word_tokenizer):
    encode(text, word_tokenizer, tmp_path / "tokens")
    before = files_of(tmp_path / "tokens")
    os.utime(text, ns=(1, 1))
    encode(text, word_tokenizer, tmp_path / "tokens")
    after = files_of(tmp_path / "tokens")
    assert after.pop("manifest.json") != before.pop("manifest.json")
    assert after == before


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_stopped_anywhere_it_goes_on(tmp_path, word_tokenizer, monkeypatch, name):
    text = tmp_path / "my.txt"
    write_text(text, documents=40)
    encode(text, word_tokenizer, tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    stops = 0
    while True:
        folder = tmp_path / f"stopped_{stops}"
        with monkeypatch.context() as patch:
            killed_at(patch, os, name, stops)
            try:
                encode(text, word_tokenizer, folder)
                break
            except Killed:
                stops += 1
        manifest = json.loads(files_of(folder).get("manifest.json", b"{}"))
        had = len(manifest.get("shards", []))
        if not manifest.get("complete"):
            with pytest.raises((FileNotFoundError, ValueError), match=r"data\.tokens"):
                data.TokenShards(folder)
        with monkeypatch.context() as patch:
            # Three files are replaced for each shard that is missing, and then the manifest.
            killed_at(patch, os, "replace", 3 * (len(expected) // 2 - had) + 1)
            encode(text, word_tokenizer, folder)
        assert files_of(folder) == expected
    assert stops >= 10


CHILD = """
import os, pathlib, signal, sys
from keras_llm import data
from keras_llm import synced_file
folder, kind, count = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
def texts():
    for number, line in enumerate((folder / "lines.txt").read_text().split("\\n")):
        if kind == "text" and number == count:
            kill()
        yield line
replace, calls = os.replace, iter(range(count))
def replace_or_die(*args):
    replace(*args)
    if kind == "rename" and next(calls, None) is None:
        kill()
os.replace = replace_or_die
tokenizer = data.load_tokenizer(folder / "tokenizer.json")
data.tokens(texts(), tokenizer, folder / "tokens", shard_bytes=int(sys.argv[4]), verbose=0)
"""


@pytest.mark.slow
def test_killed_it_goes_on(tmp_path, word_tokenizer):
    """`kill -9` while text is read, after ids were renamed, and after a manifest was."""
    lines = [f"{i % 100} {(i * i) % 100}" for i in range(200)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    word_tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "program.py").write_text(CHILD)
    for kind, count in (("text", 150), ("rename", 6), ("rename", 5), ("text", 199), ("no", 0)):
        program = Program(tmp_path / "program.py", tmp_path, kind, count, SHARD_BYTES)
        assert program.wait() == (0 if kind == "no" else -9), program.errors
    encode(lines, word_tokenizer, tmp_path / "whole")
    assert files_of(tmp_path / "tokens") == files_of(tmp_path / "whole")


def test_another_tokenizer_is_named(tmp_path, text, word_tokenizer):
    encode(text, word_tokenizer, tmp_path / "tokens")
    before = files_of(tmp_path / "tokens")
    other = data.train_tokenizer(["1 2 3"], unit="word")
    with pytest.raises(ValueError, match=r"tokenizer: vocab_size was 104 and is 7, content.*over"):
        encode(text, other, tmp_path / "tokens")
    # The same words, of which two have changed their ids.
    swapped = data.train_tokenizer([" ".join(["99 98", *map(str, range(100))])], unit="word")
    assert swapped.vocab_size == word_tokenizer.vocab_size
    with pytest.raises(ValueError, match=r"the tokenizer: content was .* and is "):
        encode(text, swapped, tmp_path / "tokens")
    assert files_of(tmp_path / "tokens") == before
    encode(text, swapped, tmp_path / "tokens", overwrite=True)
    encode(text, swapped, tmp_path / "new")
    assert files_of(tmp_path / "tokens") == files_of(tmp_path / "new")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sample_by": "line"}, r"sample_by was 'paragraph' and is 'line'"),
        ({"separator": "#"}, r"separator was None and is '#'"),
        ({"shard_bytes": 300}, r"shard_bytes was 100 and is 300"),
    ],
)
def test_another_option_is_named(tmp_path, text, word_tokenizer, options, message):
    encode(text, word_tokenizer, tmp_path / "tokens")
    with pytest.raises(ValueError, match=message):
        encode(text, word_tokenizer, tmp_path / "tokens", **options)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text.replace("\n\n7\n", "\n\n8\n").replace("50 50", "50 51"), r"shard"),
        (lambda text: text + "\n\n5", r"my\.txt was .* bytes, changed at .* and is "),
        (lambda text: text + "\n\n5" * 200, r"part that made shard|there is more of it"),
        (lambda text: text[:150], r"part that made shard|ends before shard"),
        (lambda text: text.replace("51", "52"), r"that made shard"),
    ],
)
def test_another_text_is_named(tmp_path, text, word_tokenizer, change, message):
    encode(text, word_tokenizer, tmp_path / "tokens")
    before = files_of(tmp_path / "tokens")
    text.write_text(change(text.read_text()) + "\n\n9")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"The text is not the one.*my\.txt was") as error:
            encode(text, word_tokenizer, tmp_path / "tokens")
        assert error.match(message)
    assert files_of(tmp_path / "tokens") == before


def test_another_iterable_is_noticed(tmp_path, word_tokenizer):
    texts = [f"{i} {i}" for i in range(100)]
    encode(iter(texts), word_tokenizer, tmp_path / "tokens")
    encode(iter(texts), word_tokenizer, tmp_path / "tokens")
    for other in (texts[:-1], [*texts, "1"], texts[::-1], [*texts[:50], "1", *texts[51:]]):
        with pytest.raises(ValueError, match=r"The text is not the one.*only what is read"):
            encode(iter(other), word_tokenizer, tmp_path / "tokens")


def test_a_text_that_changed_while_it_was_stopped(tmp_path, text, word_tokenizer, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, os, "replace", 7)
        encode(text, word_tokenizer, tmp_path / "tokens")
    text.write_text("1 2 3\n\n" + text.read_text())
    with pytest.raises(ValueError, match=r"its part that made shard 0 is another"):
        encode(text, word_tokenizer, tmp_path / "tokens")


def test_the_second_process_refuses(tmp_path, text, word_tokenizer):
    folder = tmp_path / "tokens"
    folder.mkdir()
    with (
        FolderLock(folder / ".lock", "tokens"),
        pytest.raises(FolderInUseError, match="another run writes tokens there"),
    ):
        encode(text, word_tokenizer, folder)
    encode(text, word_tokenizer, folder)


def test_memory_does_not_grow_with_the_text(tmp_path, word_tokenizer):
    """Of 2 MB of text, as Python's strings and integers 6 MB, a quarter of one is held."""
    line = " ".join(map(str, range(100)))

    def peak(lines):
        tracemalloc.start()
        encode(
            (line for _ in range(lines)),
            word_tokenizer,
            tmp_path / f"tokens_{lines}",
            shard_bytes=2**16,
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(100)
    few, many = peak(1_000), peak(7_000)
    assert many - few < 2**18
    assert many < 4 * 2**20


def test_errors(tmp_path, text, word_tokenizer):
    folder = tmp_path / "tokens"
    with pytest.raises(ValueError, match=r"shard_bytes must be a positive integer.*0"):
        encode(text, word_tokenizer, folder, shard_bytes=0)
    with pytest.raises(TypeError, match=r"tokenizer must come from"):
        encode(text, "gpt2", folder)
    with pytest.raises(TypeError, match=r"no argument num_proc; write nothing: all cores"):
        encode(text, word_tokenizer, folder, num_proc=4)
    assert not folder.exists()
    for empty in ([], iter([]), ()):
        with pytest.raises(ValueError, match=r"at least one text"):
            encode(empty, word_tokenizer, folder)
    text.write_text("\n\n \n")
    with pytest.raises(ValueError, match=r"at least one text that is not blank"):
        encode(text, word_tokenizer, folder)
    ends = data.Tokenizer(word_tokenizer._tokenizer, "<| end |>")
    with pytest.raises(ValueError, match=r"pad_id must not be an id of the texts"):
        encode(["1"], ends, folder)
