import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import data

pytestmark = pytest.mark.backend_free

SPLITS = ("train", "validation", "test")


@given(
    lines=st.lists(st.text("abç ğ", min_size=1).filter(str.strip), min_size=3, max_size=60),
    validation=st.floats(0.01, 0.5),
    test=st.floats(0.01, 0.49),
)
def test_every_line_is_in_one_split_in_order(tmp_path_factory, lines, validation, test):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    corpus = data.load_text(path, "line", validation=validation, test=test)
    assert tuple(corpus) == SPLITS
    assert [line for split in SPLITS for line in corpus[split]] == lines
    assert all(corpus[split] for split in SPLITS)


@given(text=st.text("ab \t\n"))
def test_every_character_is_in_one_split_in_order(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "paragraphs.txt"
    text += "\n \nx\n\n\n y\nz\n\t\nw"
    path.write_text(text, encoding="utf-8")
    corpus = data.load_text(path)
    documents = [document for split in SPLITS for document in corpus[split]]
    assert "".join("".join(documents).split()) == "".join(text.split())
    assert documents[-3:] == ["x", " y\nz", "w"]
    assert all(corpus[split] for split in SPLITS)


def test_ninety_five_five(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(map(str, range(1000))))
    corpus = data.load_text(path, "line")
    assert [len(corpus[split]) for split in SPLITS] == [900, 50, 50]


def test_paragraphs_of_several_files(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes("\ufeffone\r\nmore\r\n\r\ntwo\r\n".encode())
    second.write_text("\n\n\n  three\nlines\n\n \n\n\nfour")
    corpus = data.load_text([first, second])
    assert [text for split in SPLITS for text in corpus[split]] == [
        "one\nmore",
        "two",
        "  three\nlines",
        "four",
    ]


def test_a_separator_of_ones_own(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("One.\n\nStill one.\n<|end|>\nTwo [a.b]\n<|end|>\n\n<|end|>Three<|end|>")
    corpus = data.load_text(path, separator="<|end|>")
    assert [text for split in SPLITS for text in corpus[split]] == [
        "One.\n\nStill one.",
        "Two [a.b]",
        "Three",
    ]
    path.write_text("1 a.b 2 a.b 3 axb 4")
    assert data.load_text(path, separator="a.b")["test"] == [" 3 axb 4"], "no regular expression"
    for options in ({"separator": ""}, {"separator": "#", "sample_by": "line"}):
        with pytest.raises(ValueError, match=r"separator must be a string that is not empty"):
            data.load_text(path, **options)


@given(
    files=st.lists(
        st.lists(st.text("ab c", min_size=6, max_size=30).filter(str.strip), max_size=40),
        max_size=4,
    ),
    long=st.lists(
        st.text("ab c", min_size=6, max_size=30).filter(str.strip), min_size=60, max_size=70
    ),
    validation=st.floats(0.2, 0.35),
    test=st.floats(0.2, 0.35),
)
@settings(max_examples=50)
def test_files_are_cut_at_the_end_of_a_line(tmp_path_factory, files, long, validation, test):
    files = [*files, long]
    lines = [line for file in files for line in file]
    size = sum(len(line) + 1 for line in lines)
    folder = tmp_path_factory.mktemp("text")
    paths = [folder / f"{i}.txt" for i in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_text("\n".join(file), encoding="utf-8")
    corpus = data.load_text(paths, "file", validation=validation, test=test)
    found = {
        split: [line for text in corpus[split] for line in text.split("\n")] for split in SPLITS
    }
    assert [line for split in SPLITS for line in found[split]] == lines
    assert all(found.values())
    # Whole files stay whole: a cut adds one document.
    documents = sum(len(corpus[split]) for split in SPLITS)
    assert documents <= sum(map(bool, files)) + 2
    for split, fraction in (("validation", validation), ("test", test)):
        length = sum(len(line) + 1 for line in found[split])
        assert length == pytest.approx(fraction * size, abs=2 * 31 + len(files))


def test_a_cut_in_the_first_line_of_a_file_is_one_between_files(tmp_path):
    texts = ["\n".join([letters] * n) for letters, n in (("aaaa", 50), ("bbbb", 51))]
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    # Half of 503 characters: three more than the first file has.
    corpus = data.load_text(paths, "file", validation=0.25, test=0.25)
    assert corpus["train"] == texts[:1]
    assert set("\n".join(corpus["validation"] + corpus["test"]).split("\n")) == {"bbbb"}


def test_a_whole_file_is_one_document(tmp_path):
    plays = [tmp_path / f"{name}.txt" for name in ("hamlet", "lear")]
    plays[0].write_text("Who's there?\n\n" * 1_000)
    plays[1].write_text("I thought the king\n\n" * 1_000)
    corpus = data.load_text(plays, sample_by="file")
    assert len(corpus["train"]) == 2
    assert corpus["train"][0] == ("Who's there?\n\n" * 1_000).strip()
    assert [len(corpus[split]) for split in ("validation", "test")] == [1, 1]
    assert all(corpus["test"][0].split("\n")[i] in ("I thought the king", "") for i in range(90))


def test_a_file_of_one_long_line_is_cut_between_words(tmp_path):
    path = tmp_path / "text8"
    path.write_text(" ".join(["word"] * 1_000))
    corpus = data.load_text(path, "file")
    counts = [len(corpus[split][0].split()) for split in SPLITS]
    assert sum(counts) == 1_000
    assert counts == pytest.approx([900, 50, 50], abs=1)
    assert {word for split in SPLITS for word in corpus[split][0].split()} == {"word"}
    path.write_text("x" * 100)
    assert [len(data.load_text(path, "file")[split][0]) for split in SPLITS] == [90, 5, 5]


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        data.load_text(tmp_path / "none.txt")
    path = tmp_path / "latin.txt"
    path.write_bytes("a\n\nb\n\nğ".encode("iso-8859-9"))
    with pytest.raises(ValueError, match=r"latin\.txt, whose byte 6 is 0xf0"):
        data.load_text(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"at least 3 documents.*0 in"):
        data.load_text(path)
    path.write_text("a\nb\nc")
    with pytest.raises(ValueError, match=r"at least 3 documents.*1 in"):
        data.load_text(path)
    with pytest.raises(ValueError, match=r"sample_by must be one of"):
        data.load_text(path, sample_by="word")
    path.write_text("a\n")
    with pytest.raises(ValueError, match=r"at least 3 documents.*1 in.*'file'"):
        data.load_text(path, "file")
    with pytest.raises(ValueError, match=r"validation must be a number in \(0, 1\).*1.0"):
        data.load_text(path, validation=1.0)
    with pytest.raises(ValueError, match=r"validation=0.6, test=0.4"):
        data.load_text(path, validation=0.6, test=0.4)
