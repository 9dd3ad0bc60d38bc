"""Tokenizers of transformers in place of ours."""

import numpy as np
import pytest
import transformers

import keras_llm
from keras_llm import data, losses, models
from tests.data.chat_tokenizer import chat_tokenizer

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("pad_token", ["<pad>", "</s>", None])
def test_next_tokens(pad_token):
    """Each text as `tokenizer(text)` has it, and its end, which counts though it may be padding."""
    tokenizer = chat_tokenizer(pad_token=pad_token)
    texts = ["The sky is blue.", "<s>2 + 2"]
    blue, two = (tokenizer(text.removeprefix("<s>"))["input_ids"] + [1] for text in texts)
    ids, labels = next(iter(data.causal_lm(texts, tokenizer, 8, 2, pack=False)))
    padding = 8 - len(two) + 1
    assert ids.tolist() == [blue[:-1] + [1] * (9 - len(blue)), two[:-1] + [1] * padding]
    assert labels.tolist() == [
        blue[1:] + [-100] * (9 - len(blue)),
        two[1:] + [-100] * padding,
    ]
    ((ids, labels),) = data.causal_lm(texts, chat_tokenizer(adds_bos=False), 100, 2)
    assert ids[0, : len(blue) - 1].tolist() == [*blue[1:-1], 1]


def test_pairs():
    tokenizer = chat_tokenizer()
    pairs = [("The sky", "is blue"), ("2", "4")]
    x, labels = next(iter(data.seq2seq(pairs, tokenizer, batch_size=2, pad_to_multiple_of=1)))
    source = tokenizer(["The sky", "2"], padding=True)["input_ids"]
    targets = tokenizer(["is blue", "4"], add_special_tokens=False)["input_ids"]
    long, short = ([*ids, 1] for ids in targets)
    more = len(long) - len(short)
    assert x["encoder_ids"].tolist() == source
    assert labels.tolist() == [long, short + [-100] * more]
    assert x["decoder_ids"].tolist() == [[0, *long[:-1]], [0, *short[:-1]] + [1] * more]
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"needs a tokenizer\.pad_token"):
        data.seq2seq(pairs, tokenizer, batch_size=2)


def test_a_slow_tokenizer_whose_decoder_starts_with_padding():
    tokenizer = transformers.ByT5Tokenizer()
    x, labels = next(iter(data.seq2seq([("a", "b")], tokenizer, batch_size=1, max_length=2)))
    assert x["encoder_ids"].tolist() == [tokenizer("a")["input_ids"]]
    assert labels.tolist() == [tokenizer("b")["input_ids"]]
    assert x["decoder_ids"][0, 0] == tokenizer.pad_token_id == 0


def test_where_ids_become_text():
    """What only decodes takes a tokenizer of transformers as it is."""
    tokenizer = chat_tokenizer()
    batch = next(iter(data.instruction([{"text": "The sky is blue."}], tokenizer, 16)))
    model = models.CausalTransformer(400, d_model=8, num_layers=1, num_heads=2, max_length=16)
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    text = str(keras_llm.trace(model, batch, tokenizer, show=False))
    assert "␣sky" in text and "</s>" in text
    plots = pytest.importorskip("keras_llm.plots")
    ax = plots.token_loss(model, "The sky is blue.", tokenizer)
    assert np.ma.count(ax.collections[0].get_array()) == len(tokenizer("The sky is blue.")[0]) - 1
