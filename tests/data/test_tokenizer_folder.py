"""A tokenizer in a Hugging Face folder, against transformers' AutoTokenizer."""

import json

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from keras_llm import data
from keras_llm.data.tokenizer import SPECIAL_TOKENS

pytestmark = pytest.mark.backend_free

TEXTS = ["the cat sat on the mat", "kediler ağaçta oturur ✓", "the mat\n\tsat 😀"] * 3
UNITS = ["subword", "word", "character"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """By unit: ours, ours read again, and what transformers reads."""
    found = {}
    for unit in UNITS:
        folder = tmp_path_factory.mktemp(unit)
        ours = data.train_tokenizer(TEXTS, vocab_size=400, unit=unit)
        ours.save_pretrained(folder)
        again = data.Tokenizer.from_pretrained(folder)
        found[unit] = ours, again, transformers.AutoTokenizer.from_pretrained(folder)
    return found


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=50)
@given(
    text=st.text() | st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "the", "  ."])).map("".join)
)
def test_any_text(both, unit, text):
    ours, again, theirs = both[unit]
    ids = ours.encode(text)
    assert theirs(text)["input_ids"] == again.encode(text) == ids
    row = [ours.start_id, *ids, ours.end_id, ours.pad_id]
    assert theirs.decode(row, skip_special_tokens=True) == again.decode(row) == ours.decode(row)


@pytest.mark.parametrize("unit", UNITS)
def test_special_ids(both, unit):
    ours, again, theirs = both[unit]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    assert (again.start_id, again.end_id, again.pad_id) == (1, 2, 0)
    assert theirs.unk_token_id == (None if unit == "subword" else 3)
    assert len(theirs) == again.vocab_size == ours.vocab_size


def bert_like():
    """Its template writes [CLS] and [SEP] around a text; `encode` never does."""
    vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4, "b": 5}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(vocab)[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def test_no_special_id_is_added(tmp_path):
    ours = data.Tokenizer(bert_like(), "[PAD]", "[CLS]", "[SEP]")
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("b a")["input_ids"] == ours.encode("b a") == [5, 4]


@pytest.mark.parametrize(
    "tokens, want",
    [
        (dict(bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]"), (1, 2, 3)),
        (dict(eos_token="[SEP]", pad_token="[PAD]"), (2, 2, 3)),
        (dict(bos_token="[CLS]", eos_token="[SEP]"), (1, 2, None)),
        (dict(bos_token="[CLS]", eos_token="[SEP]", pad_token="[SEP]"), (1, 2, None)),
    ],
)
def test_folders_of_transformers(tmp_path, tokens, want):
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=bert_like(), **tokens)
    theirs.save_pretrained(tmp_path)
    ours = data.Tokenizer.from_pretrained(tmp_path)
    assert (ours.start_id, ours.end_id, ours.pad_id) == want
    assert ours.encode("a b c") == theirs.encode("a b c", add_special_tokens=False)


def test_an_old_folder(tmp_path):
    """With the tokens in a file of their own, each beside how it is stripped."""
    bert_like().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokens = {"bos_token": {"content": "[CLS]", "lstrip": False}, "eos_token": "[SEP]"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    ours = data.Tokenizer.from_pretrained(tmp_path)
    assert (ours.start_id, ours.end_id, ours.pad_id) == (1, 2, None)


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        data.Tokenizer.from_pretrained(tmp_path)
    bert_like().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FileNotFoundError, match=r"tokenizer_config\.json"):
        data.Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "[CLS]"}')
    with pytest.raises(ValueError, match="must name an eos_token"):
        data.Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ValueError, match="must be one of the tokenizer's special tokens"):
        data.Tokenizer.from_pretrained(tmp_path)


def test_a_subclass_stays_one(tmp_path):
    class Mine(data.Tokenizer):
        pass

    data.Tokenizer(bert_like(), "[PAD]", "[CLS]", "[SEP]").save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(tmp_path)) is Mine
