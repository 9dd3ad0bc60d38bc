"""A tokenizer with one special token, as GPT-2's: its padding may also be the end of a text."""

import keras
import numpy as np
import pytest
import tokenizers

from keras_llm import data, losses, models

pytestmark = pytest.mark.backend_free

END = "<|endoftext|>"
ROLES = {"start_token": END, "end_token": END}


@pytest.fixture
def path(tmp_path):
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2, END: 3}, unk_token=END)
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("pack", [True, False])
def test_padding_that_is_the_end_is_an_error(path, pack):
    tokenizer = data.load_tokenizer(path, pad_token=END, **ROLES)
    with pytest.raises(ValueError, match=r"pad_id=3, end_id=3.*pad_token=None.*-100"):
        data.causal_lm(["a b", "c"], tokenizer, 4, 2, pack=pack)
    with pytest.raises(ValueError, match=r"pad_id=3, end_id=3.*pad_token=None"):
        data.seq2seq([("a", "b")], tokenizer, batch_size=1)


def test_padding_that_is_an_unknown_word_is_an_error(path):
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer = data.Tokenizer(tokenizer, pad_token=END, start_token=END, end_token="<end>")
    data.causal_lm(["a b c"], tokenizer, 4, 1)
    with pytest.raises(ValueError, match=r"unknown word.*pad_id=3"):
        data.causal_lm(["a what c"], tokenizer, 4, 1)
    # The start of a target may be padding, as T5's is; an unknown word of a source may not.
    _, labels = next(iter(data.seq2seq([("a", "b")] * 3, tokenizer, batch_size=3)))
    assert labels[:, :2].tolist() == [[1, 4]] * 3
    with pytest.raises(ValueError, match=r"unknown word.*pad_id=3"):
        data.seq2seq([("what", "b")], tokenizer, batch_size=1)


def test_without_a_token_for_padding_labels_are_ignored_by_default(path):
    tokenizer = data.load_tokenizer(path, pad_token=None, **ROLES)
    assert tokenizer.pad_id is None
    ids, labels = next(iter(data.causal_lm(["a b c", "c"], tokenizer, 4, 2, pack=False)))
    assert ids.tolist() == [[0, 1, 2, 3], [2, 3, 3, 3]]
    assert labels.tolist() == [[1, 2, 3, -100], [3, -100, -100, -100]]
    ids, labels = next(iter(data.causal_lm(["a b c", "c"], tokenizer, 4, 2)))
    assert ids.tolist() == [[0, 1, 2, 3], [2, 3, 3, 3]]
    assert labels.tolist() == [[1, 2, 3, 2], [3, -100, -100, -100]]
    with pytest.raises(TypeError, match=r"-100.*ignore_index=None"):
        losses.MaskedSparseCategoricalCrossentropy(ignore_index=tokenizer.pad_id)


def test_pairs_whose_target_has_no_token_for_padding(path):
    target = data.load_tokenizer(path, pad_token=None, **ROLES)
    with pytest.raises(ValueError, match=r"tokenizer must have a pad_id.*target_tokenizer"):
        data.seq2seq([("a", "b")], target, batch_size=1)
    source = data.load_tokenizer(path, pad_token=END, **ROLES)
    pairs = [("a b", "c a"), ("c", "b")]
    x, labels = next(iter(data.seq2seq(pairs, source, target, batch_size=2, pad_to_multiple_of=3)))
    assert x["encoder_ids"].tolist() == [[0, 1, 3], [2, 3, 3]]
    assert x["decoder_ids"].tolist() == [[3, 2, 0], [3, 1, 3]]
    assert labels.tolist() == [[2, 0, 3], [1, 3, -100]]


def test_the_end_is_learnt(path):
    """After "a" come "b", "c" and the end, equally often: each has probability 1/3."""
    tokenizer = data.load_tokenizer(path, pad_token=None, **ROLES)
    train = data.causal_lm(["a b", "a c", "a"] * 8, tokenizer, 4, 24, pack=False)
    keras.utils.set_random_seed(0)
    model = models.CausalTransformer(4, d_model=16, num_layers=1, num_heads=2, max_length=4)
    model.compile(keras.optimizers.Adam(1e-2), losses.MaskedSparseCategoricalCrossentropy())
    model.fit(train, epochs=150, verbose=0)
    logits = keras.ops.convert_to_numpy(model(np.array([[0]])))[0, 0]
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    np.testing.assert_allclose(probabilities, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.05)
