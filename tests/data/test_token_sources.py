"""Everything that `data.tokens` reads gives the ids that its texts have."""

import json

import numpy as np
import pytest

from keras_llm import data
from tests.data.chat_tokenizer import chat_tokenizer
from tests.data.token_folders import encode, files_of

pytestmark = pytest.mark.backend_free

TEXTS = [f"{i} {i + 1}\n{i + 2}" for i in range(0, 90, 3)]


def ids_of(folder):
    names = sorted(path.name for path in folder.glob("*.ids"))
    return np.concatenate([np.fromfile(folder / name, "<u2") for name in names]).tolist()


def expected_ids(tokenizer, texts):
    return [i for text in texts for i in [*tokenizer.encode(text), tokenizer.end_id]]


def write_json_lines(path, texts, field="text"):
    lines = [json.dumps({"id": i, field: text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_parquet(path, texts, field="text"):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"id": list(range(len(texts))), field: texts})
    parquet.write_table(table, path, row_group_size=7)
    return path


def rows_of_datasets(folder, texts):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"id": list(range(len(texts))), "text": texts})


SOURCES = {
    "list": lambda folder, texts: texts,
    "generator": lambda folder, texts: (text for text in texts),
    "dictionaries": lambda folder, texts: [{"id": 1, "text": text} for text in texts],
    "json lines": lambda folder, texts: write_json_lines(folder / "a.jsonl", texts),
    "parquet": lambda folder, texts: write_parquet(folder / "a.parquet", texts),
    "datasets": rows_of_datasets,
    "streamed": lambda folder, texts: rows_of_datasets(folder, texts).to_iterable_dataset(2),
    "two kinds of files": lambda folder, texts: [
        write_json_lines(folder / "a.jsonl", texts[:10]),
        write_parquet(folder / "b.parquet", texts[10:]),
    ],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind(tmp_path, word_tokenizer, kind):
    for _ in range(2):
        source = SOURCES[kind](tmp_path, TEXTS)
        tokens = encode(source, word_tokenizer, tmp_path / "tokens")
        assert ids_of(tmp_path / "tokens") == expected_ids(word_tokenizer, TEXTS)
        assert len(tokens) == len(TEXTS)
    with pytest.raises(ValueError, match=r"The text is not the one"):
        encode(SOURCES[kind](tmp_path, ["1", *TEXTS]), word_tokenizer, tmp_path / "tokens")


def test_another_field(tmp_path, word_tokenizer):
    sources = [
        write_json_lines(tmp_path / "a.jsonl", TEXTS, "body"),
        write_parquet(tmp_path / "a.parquet", TEXTS, "body"),
        rows_of_datasets(tmp_path, TEXTS).rename_column("text", "body"),
    ]
    for number, source in enumerate(sources):
        folder = tmp_path / str(number)
        encode(source, word_tokenizer, folder, field="body")
        assert ids_of(folder) == expected_ids(word_tokenizer, TEXTS)
        with pytest.raises(ValueError, match=r"field.*'text'"):
            encode(source, word_tokenizer, tmp_path / "none")
        with pytest.raises(ValueError, match=r"string in its field 'id'.*id=0 in row 0"):
            encode(source, word_tokenizer, tmp_path / "none", field="id")


def test_text_files(tmp_path, word_tokenizer):
    texts = tmp_path / "texts"
    (texts / "more").mkdir(parents=True)
    (texts / "b.txt").write_text("\n\n".join(TEXTS[:20]))
    (texts / "a.txt").write_text("\n\n".join(TEXTS[20:]))
    (texts / "more/c.txt").write_text("1#2\n3#\n#4")
    first = encode(texts / "*.txt", word_tokenizer, tmp_path / "one")
    assert ids_of(tmp_path / "one") == expected_ids(word_tokenizer, TEXTS[20:] + TEXTS[:20])
    assert len(first) == len(TEXTS)
    encode([texts / "b.txt", texts / "a.txt"], word_tokenizer, tmp_path / "two")
    assert ids_of(tmp_path / "two") == expected_ids(word_tokenizer, TEXTS)
    every = encode(str(texts / "**/*.txt"), word_tokenizer, tmp_path / "three")
    assert len(every) == len(TEXTS) + 1
    encode(texts / "more/c.txt", word_tokenizer, tmp_path / "four", separator="#")
    assert ids_of(tmp_path / "four") == expected_ids(word_tokenizer, ["1", "2\n3", "4"])
    lines = encode(texts / "a.txt", word_tokenizer, tmp_path / "five", sample_by="line")
    assert len(lines) == 2 * 10
    whole = encode(texts / "a.txt", word_tokenizer, tmp_path / "six", sample_by="file")
    assert len(whole) == 1


def test_a_split(tmp_path, tiny_pairs):
    split = tiny_pairs["test"]
    tokenizer = data.train_tokenizer(split, 300)
    encode(split, tokenizer, tmp_path)
    assert ids_of(tmp_path) == expected_ids(tokenizer, ["\n".join(row) for row in split])


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_tokenizer_of_transformers(tmp_path, adds_bos):
    tokenizer = chat_tokenizer(adds_bos=adds_bos)
    texts = ["The sky is blue.", "2 + 2"]
    tokens = encode(texts, tokenizer, tmp_path)
    expected = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert ids_of(tmp_path) == [i for ids in expected for i in ids]
    found = data.causal_lm(tokens, seq_len=8, batch_size=2, pack=False)
    memory = data.causal_lm(texts, tokenizer, 8, 2, pack=False)
    for one, other in zip(found, memory, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    # A call that truncates leaves that behind in the tokenizer; it is no other one.
    tokenizer(texts, truncation=True, max_length=3, padding=True)
    encode(texts, tokenizer, tmp_path)


@pytest.mark.slow
def test_a_slow_tokenizer_has_a_process_for_each_core(tmp_path):
    import transformers

    tokenizer = transformers.ByT5Tokenizer()
    texts = [f"Text {i}" for i in range(100)]
    encode(texts, tokenizer, tmp_path)
    expected = [[*tokenizer(text)["input_ids"]] for text in texts]
    assert ids_of(tmp_path) == [i for ids in expected for i in ids]


def test_ids_of_nanogpt(tmp_path, word_tokenizer):
    end = word_tokenizer.end_id
    ids = np.array([i for i in range(5, 100) for i in ([i] * (i % 7) + [end])], "<u2")
    ids.tofile(tmp_path / "train.bin")
    tokens = encode(tmp_path / "train.bin", word_tokenizer, tmp_path / "tokens")
    assert len(files_of(tmp_path / "tokens")) > 3
    assert ids_of(tmp_path / "tokens") == ids.tolist()
    assert len(tokens) == np.count_nonzero(ids == end)
    found = np.concatenate(
        [labels.numpy() for _, labels in data.causal_lm(tokens, seq_len=1, batch_size=7)]
    )
    np.testing.assert_array_equal(found[:, 0], ids[1:])
    # The last text has no end, and a text of more than a chunk is cut.
    ids = np.array([9] * 240 + [end, 8], "<u2")
    ids.tofile(tmp_path / "valid.bin")
    tokens = encode(tmp_path / "valid.bin", word_tokenizer, tmp_path / "valid")
    assert ids_of(tmp_path / "valid") == ids.tolist()
    assert len(tokens) == 6
    for wrong, message in (
        (np.array([104], "<u2"), r"ids of the tokenizer, which are below 104.*104"),
        (np.array([5, 0], "<u2"), r"must not hold the id of padding"),
        (np.array([20240520, 1], "<u4"), r"ids of two bytes.* no header"),
        (np.array([5, 6, 7], "u1"), r"ids of two bytes.*of 3 bytes"),
        (np.array([], "<u2"), r"at least one text"),
    ):
        wrong.tofile(tmp_path / "wrong.bin")
        with pytest.raises(ValueError, match=message):
            encode(tmp_path / "wrong.bin", word_tokenizer, tmp_path / "wrong")


def test_errors(tmp_path, word_tokenizer, tiny_pairs):
    def fails(source, error, message, **options):
        with pytest.raises(error, match=message):
            encode(source, word_tokenizer, tmp_path / "tokens", **options)

    text = tmp_path / "a.txt"
    text.write_text("1 2")
    fails("none.txt", FileNotFoundError, r"names a file that is missing: none\.txt")
    fails(tmp_path / "*.md", FileNotFoundError, r"names no file.*\*\.md")
    fails(tmp_path, ValueError, r"must name files, as in .*/\*\.txt.*the directory")
    fails([str(text)], TypeError, r"one of texts.*list of pathlib\.Path.*a\.txt")
    fails(tiny_pairs, TypeError, r"source must be one split")
    both = pytest.importorskip("datasets").DatasetDict(train=rows_of_datasets(tmp_path, TEXTS))
    fails(both, TypeError, r"source must be one split.*'train'")
    fails(b"1 2", TypeError, r"source must be a split")
    fails(5, TypeError, r"source must be a split")
    fails([1, 2], TypeError, r"Every row of source must be a string.*1 at row 0")
    fails([{"text": "1"}, "2"], ValueError, r"Received: '2' in row 1 of source")
    fails([{"text": "1"}, {"text": None}], ValueError, r"text=None in row 1 of source")
    fails(text, ValueError, r"field must be None for files other", field="text")
    fails(["1"], ValueError, r"sample_by and separator are for text files", sample_by="line")
    fails(text, ValueError, r"sample_by must be one of", sample_by="word")
    fails(text, ValueError, r"separator must be a string that is not empty", separator="")
    (tmp_path / "a.bin").write_bytes(b"\5\0")
    fails([text, tmp_path / "a.bin"], ValueError, r"either \.bin files or texts")
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n{"text"\n')
    fails(tmp_path / "a.jsonl", ValueError, r"a\.jsonl, whose line 2 is not JSON")
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n3\n')
    fails(tmp_path / "a.jsonl", ValueError, r"Received: 3 in row 1 of .*a\.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}\n')
    fails(tmp_path / "a.jsonl", ValueError, r"a\.jsonl")
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    fails(tmp_path / "a.parquet", ValueError, r"a\.parquet is no whole Parquet file")
