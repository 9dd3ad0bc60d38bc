"""What the tests of Hugging Face folders share: models, and what transformers makes of a folder."""

import json

import numpy as np
import torch
import transformers
from keras import ops

from keras_llm import data
from keras_llm.models import CausalTransformer
from tests.models.weights import randomize

IDS = np.random.default_rng(1).integers(0, 37, (3, 20))
UNTIED = dict(num_key_value_heads=2, tie_embeddings=False, rope_theta=500.0, d_ff=24)


def build(**options):
    sizes = dict(vocab_size=37, d_model=16, num_layers=2, num_heads=4, max_length=64) | options
    return randomize(CausalTransformer(**sizes), scale=0.2)


def logits(model, ids=IDS):
    return ops.convert_to_numpy(model(ids))


def by_transformers(folder, ids=IDS):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def equal(got, want):
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def random_llama(config=transformers.LlamaConfig, **options):
    """A random model of transformers, of which every part matters."""
    sizes = dict(
        vocab_size=37, hidden_size=16, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**sizes | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def edit(folder, **values):
    """Changes entries of the folder's config; `...` removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def train_tokenizer(unit="subword"):
    texts = ["the cat sat on the mat", "kediler ağaçta oturur ✓"] * 3
    return data.train_tokenizer(texts, vocab_size=300, unit=unit)
