"""Models that cannot be trained here: refused by name, before anything is done to them."""

import pytest
import torch
import transformers

from keras_llm import models

from . import transformers_zoo as zoo

pytestmark = pytest.mark.torch_only
BERT = {
    **{"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 16},
}


def test_no_model_of_transformers():
    with pytest.raises(TypeError, match=r"model of Hugging Face transformers.*Linear"):
        models.from_transformers(torch.nn.Linear(2, 2))


def test_an_encoder():
    hf = transformers.BertForMaskedLM(transformers.BertConfig(**BERT))
    with pytest.raises(ValueError, match=r"BertForMaskedLM.*later tokens"):
        models.from_transformers(hf)


def test_a_decoder_of_the_same_class_is_none():
    config = transformers.BertConfig(**BERT, is_decoder=True)
    models.from_transformers(transformers.BertLMHeadModel(config))


def test_a_classifier():
    hf = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
    with pytest.raises(ValueError, match=r"head over its vocabulary.*SequenceClassification"):
        models.from_transformers(hf)


def test_a_model_without_weights_yet():
    with torch.device("meta"):
        hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**zoo.GROUPED))
    with pytest.raises(ValueError, match=r"on one device.*meta"):
        models.from_transformers(hf)


def test_a_backbone_without_its_head():
    hf = transformers.AutoModel.from_config(transformers.LlamaConfig(**zoo.GROUPED))
    with pytest.raises(ValueError, match=r"head over its vocabulary.*LlamaModel"):
        models.from_transformers(hf)


def test_what_the_model_of_transformers_can_do_is_named():
    model = models.from_transformers(zoo.make("llama"))
    with pytest.raises(AttributeError, match=r"'generate'; .* has: model\.hf\.generate$"):
        model.generate(torch.tensor([[3]]))
    with pytest.raises(AttributeError, match=r"'save_pretrained'; .*model\.hf\.save_pretrained$"):
        model.save_pretrained("folder")
    with pytest.raises(AttributeError, match=r"no attribute 'nothing_like_this'$"):
        model.nothing_like_this  # noqa: B018
    assert not hasattr(model, "config")
    assert model.backbone.name == "backbone"
