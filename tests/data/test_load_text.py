import pytest
from hypothesis import given
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
    with pytest.raises(ValueError, match=r"`sample_by` must be one of"):
        data.load_text(path, sample_by="word")
    with pytest.raises(ValueError, match=r"validation=0.6, test=0.4"):
        data.load_text(path, validation=0.6, test=0.4)
