"""A `CausalTransformer` as a Hugging Face folder: what transformers and KerasHub read in it, and
what is read of folders that transformers wrote."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from safetensors.numpy import load_file, save_file

from keras_llm import data
from keras_llm.models import CausalTransformer
from tests.models.folders import (
    IDS,
    UNTIED,
    build,
    by_transformers,
    edit,
    equal,
    logits,
    random_llama,
    train_tokenizer,
)  # fmt: skip

ROPE = {"rope_type": "default", "rope_theta": 700.0}


@pytest.mark.parametrize(
    "sizes",
    [
        UNTIED,
        pytest.param(dict(tie_embeddings=True), marks=pytest.mark.torch_only),
        pytest.param(dict(num_key_value_heads=1, epsilon=1e-2), marks=pytest.mark.torch_only),
    ],
)
def test_transformers_reads_what_we_write(tmp_path, sizes):
    model = build(**sizes)
    model.save_pretrained(tmp_path)
    equal(by_transformers(tmp_path), logits(model))


@pytest.mark.torch_only
@settings(max_examples=8)
@given(
    heads=st.integers(1, 3), groups=st.integers(1, 2), head_dim=st.sampled_from([2, 6, 8]),
    layers=st.integers(1, 2), d_ff=st.integers(1, 9), vocab_size=st.integers(2, 50),
    tied=st.booleans(), theta=st.floats(10, 1e6), epsilon=st.sampled_from([1e-8, 1e-5, 1e-3]),
)  # fmt: skip
def test_any_size(
    tmp_path_factory, heads, groups, head_dim, layers, d_ff, vocab_size, tied, theta, epsilon
):
    folder = tmp_path_factory.mktemp("model")
    model = build(
        vocab_size=vocab_size, d_model=heads * groups * head_dim, num_heads=heads * groups,
        num_key_value_heads=heads, num_layers=layers, d_ff=d_ff, tie_embeddings=tied,
        rope_theta=theta, epsilon=epsilon,
    )  # fmt: skip
    model.save_pretrained(folder)
    ids = IDS % vocab_size
    np.testing.assert_allclose(by_transformers(folder, ids), logits(model, ids), 1e-5, 1e-5)
    again = CausalTransformer.from_pretrained(folder)
    np.testing.assert_array_equal(logits(again, ids), logits(model, ids))


@pytest.mark.torch_only
@pytest.mark.parametrize(
    "config, options",
    [
        (transformers.LlamaConfig, dict(num_key_value_heads=4)),
        (transformers.LlamaConfig, dict(rope_parameters=ROPE, rms_norm_eps=1e-3)),
        (transformers.LlamaConfig, dict(tie_word_embeddings=True, head_dim=4)),
        (transformers.MistralConfig, dict(sliding_window=None)),
    ],
    ids=["llama", "theta", "tied", "mistral"],
)
@pytest.mark.parametrize("size", ["5GB", "2KB"], ids=["one file", "an index"])
@pytest.mark.quick(3)
def test_we_read_what_transformers_writes(tmp_path, config, options, size):
    random_llama(config, **options).save_pretrained(tmp_path, max_shard_size=size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 1 if size == "5GB" else len(files) > 3
    ours = CausalTransformer.from_pretrained(tmp_path)
    equal(logits(ours), by_transformers(tmp_path))
    assert ours.get_config()["max_length"] == 64


def test_there_and_back(tmp_path):
    """The whole config, and every weight to the last digit."""
    options = dict(dropout=0.1, pad_id=0, document_end_id=2, epsilon=1e-5, rope_theta=700.0)
    model = build(**UNTIED | options)
    model.save_pretrained(tmp_path)
    again = CausalTransformer.from_pretrained(tmp_path, name=model.name)
    assert again.get_config() == model.get_config()
    for got, want in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(got), ops.convert_to_numpy(want))
    other = CausalTransformer.from_pretrained(tmp_path, dropout=0.0, pad_id=None, name="other")
    config = other.get_config()
    assert (config["dropout"], config["pad_id"], other.name) == (0.0, None, "other")
    assert config["document_end_id"] == 2


@pytest.mark.torch_only
def test_an_old_folder(tmp_path):
    """As version 4 of transformers and earlier wrote them, with angles among the weights."""
    model = random_llama()
    model.save_pretrained(tmp_path)
    edit(tmp_path, rope_parameters=..., rope_theta=..., rope_scaling=None, head_dim=...,
         attention_bias=..., mlp_bias=..., rms_norm_eps=1e-6, pad_token_id=-1)  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    angles = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, "float32")}
    save_file(weights | angles, tmp_path / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        want = model(torch.tensor(IDS)).logits.numpy()
    equal(logits(CausalTransformer.from_pretrained(tmp_path)), want)


@pytest.mark.parametrize(
    "policy", ["bfloat16", pytest.param("mixed_bfloat16", marks=pytest.mark.torch_only)]
)
def test_bfloat16(tmp_path, policy):
    """Weights keep their dtype in the file; whichever is asked for is read, none rounded twice."""
    model = build(dtype=policy)
    model.save_pretrained(tmp_path)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    stored = torch.bfloat16 if policy == "bfloat16" else torch.float32
    assert hf.dtype == stored == hf.lm_head.weight.dtype
    want = ops.convert_to_numpy(
        ops.cast(model.backbone.blocks[1].feed_forward.up.kernel, "float32")
    )
    np.testing.assert_array_equal(hf.model.layers[1].mlp.up_proj.weight.detach().float().T, want)
    for dtype in (policy, "float32"):
        again = CausalTransformer.from_pretrained(tmp_path, dtype=dtype)
        for a, b in zip(again.weights, model.weights, strict=True):
            np.testing.assert_array_equal(
                *(ops.convert_to_numpy(ops.cast(weight, "float32")) for weight in (a, b))
            )
    equal(logits(again), by_transformers_in_float32(hf))


def by_transformers_in_float32(hf):
    with torch.no_grad():
        return hf.float()(torch.tensor(IDS)).logits.numpy()


@pytest.mark.torch_only
def test_lora_is_merged(tmp_path):
    model = build(tie_embeddings=False)
    before = logits(model)
    for layer in (
        model.backbone.blocks[0].self_attention.query,
        model.backbone.blocks[1].feed_forward.down,
    ):
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    assert np.abs(logits(model) - before).max() > 0.1
    model.save_pretrained(tmp_path)
    equal(by_transformers(tmp_path), logits(model))


@pytest.mark.torch_only
def test_a_folder_with_a_tokenizer(tmp_path):
    """Text to text, by classes of transformers that know nothing of ours."""
    tokenizer = train_tokenizer()
    model = build(vocab_size=tokenizer.vocab_size, pad_id=0)
    model.save_pretrained(tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (hf.config.bos_token_id, hf.config.eos_token_id, hf.config.pad_token_id) == (1, 2, 0)
    prompts = ["the cat", "the cat sat on"]
    theirs.padding_side = "left"
    rows = theirs(prompts, return_tensors="pt", padding=True)
    got = hf.generate(
        input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], max_new_tokens=12
    )
    width = rows["input_ids"].shape[1]
    want = model.generate([tokenizer.encode(text) for text in prompts], 12, end_id=tokenizer.end_id)
    for text, a, b in zip(prompts, got.numpy(), want, strict=True):
        new = b[len(tokenizer.encode(text)) :]
        assert len(new) > 3 and not np.any(new == 0)
        np.testing.assert_array_equal(a[width : width + len(new)], new)
        assert theirs.decode(a, skip_special_tokens=True) == tokenizer.decode(b)
    assert data.Tokenizer.from_pretrained(tmp_path).encode("the mat") == tokenizer.encode("the mat")


@pytest.mark.torch_only
def test_generation_ends_at_the_end(tmp_path):
    tokenizer = train_tokenizer()
    model = build(vocab_size=tokenizer.vocab_size)
    prompt = tokenizer.encode("the cat")
    free = model.generate(prompt, 12)[len(prompt) :]
    # What is generated in the third place becomes the end.
    tokenizer.end_id = int(free[2])
    model.save_pretrained(tmp_path, tokenizer)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    got = hf.generate(torch.tensor([prompt]), max_new_tokens=12)[0].numpy()
    want = model.generate(prompt, 12, end_id=tokenizer.end_id)
    np.testing.assert_array_equal(got, want)
    assert len(got) <= len(prompt) + 3


@pytest.mark.torch_only
def test_a_tokenizer_of_transformers(tmp_path):
    train_tokenizer().save_pretrained(tmp_path / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    theirs.chat_template = "{{ messages }}"
    build(vocab_size=300).save_pretrained(tmp_path / "model", theirs)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again.chat_template == "{{ messages }}"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)


@pytest.mark.torch_only
def test_keras_hub_reads_it(tmp_path, monkeypatch):
    """KerasHub has a reader, a Llama and rotary positions of its own."""
    keras_hub = pytest.importorskip("keras_hub")
    # Its readers are imported together; that of Gemma 3 wants a package which Llama's does not.
    monkeypatch.setitem(sys.modules, "sentencepiece", SimpleNamespace(SentencePieceProcessor=None))
    model = build(**UNTIED)
    model.save_pretrained(tmp_path)
    backbone = keras_hub.models.Llama3Backbone.from_preset(str(tmp_path))
    hidden = backbone({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    head = backbone.get_layer("token_embedding")
    equal(ops.convert_to_numpy(head(hidden, reverse=True)), logits(model))


@pytest.mark.torch_only
def test_without_transformers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model, tokenizer = build(vocab_size=300), train_tokenizer()
    model.save_pretrained(tmp_path, tokenizer)
    np.testing.assert_array_equal(
        logits(CausalTransformer.from_pretrained(tmp_path)), logits(model)
    )
    assert data.Tokenizer.from_pretrained(tmp_path).vocab_size == tokenizer.vocab_size


@pytest.mark.torch_only
def test_a_tied_head_that_is_written_twice(tmp_path):
    model = build(tie_embeddings=True)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, path)
    np.testing.assert_array_equal(
        logits(CausalTransformer.from_pretrained(tmp_path)), logits(model)
    )
