import keras
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from keras_llm import data
from keras_llm.data.tokenizer import SPECIAL_TOKENS

pytestmark = pytest.mark.backend_free

TEXTS = ["the cat sat on the mat", "kediler ağaçta oturur ✓", "the mat\n\tsat 😀"] * 3


@pytest.fixture(scope="module")
def subword():
    return data.train_tokenizer(TEXTS + list(SPECIAL_TOKENS) * 50, vocab_size=400)


@pytest.fixture(scope="module")
def words():
    return data.train_tokenizer(["HH AH L OW", "L OW"], unit="word")


@pytest.fixture(scope="module")
def characters():
    return data.train_tokenizer(["hello\nworld ✓"], unit="character")


def test_ids_and_sizes(subword, words, characters):
    for tokenizer in (subword, words, characters):
        assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (0, 1, 2)
    assert 259 < subword.vocab_size <= 400
    assert words.vocab_size == 4 + 4
    assert characters.vocab_size == 4 + len(set("hello\nworld ✓"))


@given(st.text() | st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "the"])).map("".join))
def test_any_text_comes_back_exactly(subword, text):
    ids = subword.encode(text)
    assert subword.decode(ids) == text
    assert all(3 <= i < subword.vocab_size for i in ids)
    assert subword.token_bytes[ids].sum() == len(text.encode())


@given(st.text(alphabet=sorted(set("hello\nworld ✓"))))
def test_characters_come_back_exactly(characters, text):
    ids = characters.encode(text)
    assert len(ids) == len(text)
    assert characters.decode(ids) == text
    assert characters.token_bytes[ids].sum() == len(text.encode())


def test_words(words):
    ids = words.encode("OW  L\nAH ZH")
    assert len(ids) == 4 and ids[3] == 3
    assert words.decode(ids) == "OW L AH"
    assert words.decode(words.encode("L OW HH")) == "L OW HH"
    assert words.token_bytes[words.encode("AH L")].tolist() == [2, 1]


@pytest.mark.parametrize("unit", ["subword", "word", "character"])
def test_special_tokens_are_never_made_of_text(unit):
    spellings = list(SPECIAL_TOKENS)
    tokenizer = data.train_tokenizer(spellings * 100, vocab_size=400, unit=unit)
    assert not {0, 1, 2, 3 if unit != "subword" else 0} & set(tokenizer.encode(spellings[0]))
    together = " ".join(spellings)
    assert tokenizer.decode(tokenizer.encode(together)) == together


@pytest.mark.every_backend
def test_decode_takes_arrays_and_tensors_and_skips_special_ids(subword):
    ids = [1, *subword.encode("the mat"), 2, 0, 0]
    arrays = [ids, tuple(ids), np.array(ids), np.array(ids, np.uint16)]
    tensors = [keras.ops.convert_to_tensor(ids, dtype="int32")]
    assert {subword.decode(each) for each in [*arrays, *tensors]} == {"the mat"}
    assert subword.decode([]) == ""
    for rows in ([ids], [ids, ids[:3]], np.array([ids]), [np.array(ids), np.array([4])]):
        with pytest.raises(ValueError, match=r"\[tokenizer.decode\(row\) for row in rows\]"):
            subword.decode(rows)
    with pytest.raises(TypeError, match=r"ids must be integers.*1.5"):
        subword.decode([1.5])
    with pytest.raises(ValueError, match=r"the vocabulary. Received: 9999"):
        subword.decode([5, 9999])
    with pytest.raises(ValueError, match=r"Received: -100"):
        subword.decode([5, -100])


def test_deterministic():
    texts = [f"{chr(97 + i % 26)}{chr(97 + i % 7)} {i % 13}" for i in range(500)]
    for unit in ("subword", "word", "character"):
        one, other = (data.train_tokenizer(iter(texts), 300, unit=unit) for _ in range(2))
        assert one._tokenizer.to_str() == other._tokenizer.to_str()


def test_reads_splits_and_fields(tiny_pairs):
    split = tiny_pairs["train"]
    both = data.train_tokenizer(split, 1000, unit="word")
    english = data.train_tokenizer(split["en"], 1000, unit="word")
    assert 3 not in both.encode("ağaç, tree,")
    assert english.encode("ağaç, tree,")[0] == 3
    assert both.vocab_size == 4 + len({w for row in split for text in row for w in text.split()})


def test_save_and_load(subword, words, characters, tmp_path):
    for tokenizer in (subword, words, characters):
        tokenizer.save(tmp_path / "tokenizer.json")
        loaded = data.load_tokenizer(tmp_path / "tokenizer.json")
        for text in ("the L OW\n✓", SPECIAL_TOKENS[0]):
            assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.vocab_size == tokenizer.vocab_size
        np.testing.assert_array_equal(loaded.token_bytes, tokenizer.token_bytes)


def test_a_tokenizer_of_another_kind(tmp_path):
    """As Hugging Face reads the same file; padding and truncation in the file do not act."""
    transformers = pytest.importorskip("transformers")
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "the": 4, "cat": 5, "##s": 6}
    bert = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    bert.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    bert.decoder = tokenizers.decoders.WordPiece()
    bert.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    bert.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    bert.enable_padding(length=16)
    bert.enable_truncation(max_length=2)
    path = tmp_path / "tokenizer.json"
    bert.save(str(path))

    with pytest.raises(ValueError, match=r"pad_token must be one of.*'\[PAD\]'"):
        data.load_tokenizer(path)
    ours = data.load_tokenizer(path, pad_token="[PAD]", start_token="[CLS]", end_token="[SEP]")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    text = "the cats the dog the cat"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, truncation=False)
    assert (ours.pad_id, ours.start_id, ours.end_id) == (0, 2, 3)
    assert ours.decode([2, 4, 5, 6, 3, 0]) == "the cats"
    with pytest.raises(ValueError, match=r"token_bytes is known for"):
        _ = ours.token_bytes


def test_errors(tmp_path, tiny_pairs):
    with pytest.raises(ValueError, match=r"at least 259.*vocab_size=258"):
        data.train_tokenizer(TEXTS, vocab_size=258)
    with pytest.raises(ValueError, match=r"vocab_size=None"):
        data.train_tokenizer(TEXTS, vocab_size=None)
    with pytest.raises(ValueError, match=r"unit must be one of"):
        data.train_tokenizer(TEXTS, unit="syllable")
    with pytest.raises(ValueError, match=r"at least one string that is not empty"):
        data.train_tokenizer(["", ""])
    with pytest.raises(TypeError, match=r"texts must be a split.*of type str"):
        data.train_tokenizer("one text")
    with pytest.raises(TypeError, match=r'one split, such as corpus\["train"\]'):
        data.train_tokenizer(tiny_pairs)
    with pytest.raises(TypeError, match=r"7 at row 1"):
        data.train_tokenizer(["a", 7])
    with pytest.raises(TypeError, match=r"text must be a string"):
        data.train_tokenizer(TEXTS, 300).encode(b"bytes")
    (tmp_path / "not.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be a JSON file of the tokenizers library"):
        data.load_tokenizer(tmp_path / "not.json")
    with pytest.raises(FileNotFoundError):
        data.load_tokenizer(tmp_path / "none.json")
