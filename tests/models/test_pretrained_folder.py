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
from keras_llm.models import CausalTransformer, safetensors_files
from tests.models.weights import randomize

IDS = np.random.default_rng(1).integers(0, 37, (3, 20))
SIZES = [
    dict(tie_embeddings=True),
    dict(num_key_value_heads=2, tie_embeddings=False, rope_theta=500.0, d_ff=24),
    dict(num_key_value_heads=1, epsilon=1e-2, num_layers=1),
]


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


def llama(config=transformers.LlamaConfig, **options):
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
    """Changes entries of the folder's config; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize("sizes", SIZES)
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
    "model",
    [
        llama(num_key_value_heads=4),
        llama(rope_parameters={"rope_type": "default", "rope_theta": 700.0}, rms_norm_eps=1e-3),
        llama(tie_word_embeddings=True, head_dim=4),
        llama(transformers.MistralConfig, sliding_window=None),
    ],
    ids=["llama", "theta", "tied", "mistral"],
)
@pytest.mark.parametrize("size", ["5GB", "2KB"], ids=["one file", "an index"])
def test_we_read_what_transformers_writes(tmp_path, model, size):
    model.save_pretrained(tmp_path, max_shard_size=size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 1 if size == "5GB" else len(files) > 3
    ours = CausalTransformer.from_pretrained(tmp_path)
    equal(logits(ours), by_transformers(tmp_path))
    assert ours.get_config()["max_length"] == 64


def test_there_and_back(tmp_path):
    """The whole config, and every weight to the last digit."""
    options = dict(dropout=0.1, pad_id=0, document_end_id=2, epsilon=1e-5, rope_theta=700.0)
    model = build(**SIZES[1] | options)
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
    model = llama()
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


def trained(unit="subword"):
    texts = ["the cat sat on the mat", "kediler ağaçta oturur ✓"] * 3
    return data.train_tokenizer(texts, vocab_size=300, unit=unit)


@pytest.mark.torch_only
def test_a_folder_with_a_tokenizer(tmp_path):
    """Text to text, by classes of transformers that know nothing of ours."""
    tokenizer = trained()
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
    tokenizer = trained()
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
    trained().save_pretrained(tmp_path / "tokenizer")
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
    model = build(num_key_value_heads=2, tie_embeddings=False, rope_theta=500.0)
    model.save_pretrained(tmp_path)
    backbone = keras_hub.models.Llama3Backbone.from_preset(str(tmp_path))
    hidden = backbone({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    head = backbone.get_layer("token_embedding")
    equal(ops.convert_to_numpy(head(hidden, reverse=True)), logits(model))


@pytest.mark.torch_only
def test_without_transformers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model, tokenizer = build(vocab_size=300), trained()
    model.save_pretrained(tmp_path, tokenizer)
    np.testing.assert_array_equal(
        logits(CausalTransformer.from_pretrained(tmp_path)), logits(model)
    )
    assert data.Tokenizer.from_pretrained(tmp_path).vocab_size == tokenizer.vocab_size


@pytest.mark.torch_only
class TestWriting:
    def test_files_of_a_bounded_size(self, tmp_path, monkeypatch):
        """A file for each part of the bytes; the next writing leaves none of them behind."""
        model = build(tie_embeddings=False)
        (tmp_path / "README.md").write_text("mine")
        monkeypatch.setattr(safetensors_files, "BYTES_PER_FILE", 5000)
        model.save_pretrained(tmp_path)
        files = sorted(tmp_path.glob("*.safetensors"))
        assert len(files) > 3
        assert {file.stat().st_mode for file in files} == {(tmp_path / "README.md").stat().st_mode}
        assert all(sum(a.nbytes for a in load_file(file).values()) <= 5000 for file in files)
        equal(by_transformers(tmp_path), logits(model))
        equal(logits(CausalTransformer.from_pretrained(tmp_path)), logits(model))
        monkeypatch.undo()
        model.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            "README.md", "config.json", "generation_config.json", "model.safetensors"
        }  # fmt: skip

    def test_what_fails_changes_nothing(self, tmp_path, monkeypatch):
        model = build()
        model.save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        tokenizer = trained()
        monkeypatch.setattr(tokenizer, "save_pretrained", lambda folder: 1 / 0)
        model = build(vocab_size=300)
        with pytest.raises(ZeroDivisionError):
            model.save_pretrained(tmp_path, tokenizer)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_refusals(self, tmp_path):
        with pytest.raises(ValueError, match=r"at most vocab_size=37 ids.*of 2"):
            build().save_pretrained(tmp_path / "new", trained())
        with pytest.raises(TypeError, match=r"tokenizer must be a data.Tokenizer.*a str"):
            build().save_pretrained(tmp_path / "new", "gpt2")
        model = build()
        model.backbone.blocks[1].feed_forward.up.quantize("int8")
        with pytest.raises(ValueError, match="quantised model"):
            model.save_pretrained(tmp_path / "new")
        with pytest.raises(TypeError, match="write folder"):
            build().save_pretrained(save_directory=tmp_path)
        assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    build(tie_embeddings=False).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(written, tmp_path):
    """A folder that a test may damage."""
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def nothing_is_built(monkeypatch):
    def init(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr(CausalTransformer, "__init__", init)


@pytest.mark.torch_only
@pytest.mark.usefixtures("nothing_is_built")
class TestReading:
    @pytest.mark.parametrize(
        "values, named",
        [
            (dict(model_type="qwen3"), "model_type='qwen3'"),
            (dict(model_type=...), "model_type=None"),
            (dict(architectures=["LlamaForSequenceClassification"]), "architectures="),
            (dict(attention_bias=True), "attention_bias=True"),
            (dict(mlp_bias=True), "mlp_bias=True"),
            (dict(hidden_act="gelu"), "hidden_act='gelu'"),
            (dict(head_dim=8), "head_dim=8 where hidden_size / num_attention_heads is 4"),
            (dict(sliding_window=32), "sliding_window=32"),
            (dict(model_type="mistral"), "sliding_window=4096"),
            (
                dict(rope_scaling={"type": "linear", "factor": 2.0}),
                "rope_scaling={'type': 'linear', 'factor': 2.0}",
            ),
            (dict(rope_parameters={"rope_type": "llama3", "factor": 8.0}), "'llama3'"),
            (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
            (dict(quantization_config={"bits": 4}), "quantization_config={'bits': 4}"),
            (dict(auto_map={"AutoModelForCausalLM": "code.Mine"}), "auto_map="),
            (dict(attention_bias=True, mlp_bias=True), "attention_bias=True, mlp_bias=True"),
            (dict(hidden_size=...), "must have ['hidden_size']"),
        ],
    )
    def test_another_architecture(self, folder, values, named):
        edit(folder, **values)
        with pytest.raises(ValueError, match=r"config\.json must") as raised:
            CausalTransformer.from_pretrained(folder)
        assert named in str(raised.value)
        assert "models.from_transformers(AutoModelForCausalLM.from_pretrained(folder))" in str(
            raised.value
        )

    @pytest.mark.parametrize(
        "changes, named",
        [
            ({"lm_head.weight": None}, r"lm_head.weight missing where \(37, 16\) is expected"),
            (
                {"model.layers.1.self_attn.q_proj.bias": np.zeros(16, "float32")},
                r"q_proj.bias \(16,\) where none is expected",
            ),
            (
                {"model.norm.weight": np.zeros(15, "float32")},
                r"model.norm.weight \(15,\) where \(16,\)",
            ),
            (
                {f"{i}": np.zeros(1, "float32") for i in range(6)},
                "and others",
            ),
            ({"model.norm.weight": np.zeros(16, "int8")}, "model.norm.weight of I8"),
        ],
    )
    def test_other_weights(self, folder, changes, named):
        path = folder / "model.safetensors"
        weights = load_file(path) | changes
        save_file({k: v for k, v in weights.items() if v is not None}, path)
        with pytest.raises(ValueError, match=named):
            CausalTransformer.from_pretrained(folder)

    def test_a_tied_head_that_differs(self, folder):
        edit(folder, tie_word_embeddings=True)
        with pytest.raises(ValueError, match="two different matrices"):
            CausalTransformer.from_pretrained(folder)

    @pytest.mark.parametrize(
        "name",
        ["../a.safetensors", "/tmp/a.safetensors", "a/b.safetensors", r"..\a.safetensors",
         r"C:a.safetensors", "..", "pytorch_model.bin", 3, None],
    )  # fmt: skip
    def test_the_index_stays_in_the_folder(self, folder, name):
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {"model.norm.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="in the same folder"):
            CausalTransformer.from_pretrained(folder)

    def test_what_is_missing(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(FileNotFoundError, match="converted by transformers"):
            CausalTransformer.from_pretrained(folder)
        index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(FileNotFoundError, match="model-00001-of-00002"):
            CausalTransformer.from_pretrained(folder)
        with pytest.raises(FileNotFoundError, match=r"snapshot_download.*meta-llama/Llama-2-7b"):
            CausalTransformer.from_pretrained("meta-llama/Llama-2-7b")

    def test_damage(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match="no whole safetensors file"):
            CausalTransformer.from_pretrained(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(ValueError, match=r"config\.json is not JSON"):
            CausalTransformer.from_pretrained(folder)
        (folder / "config.json").write_text("[]")
        with pytest.raises(ValueError, match="must hold a dictionary"):
            CausalTransformer.from_pretrained(folder)

    def test_what_the_folder_decides(self, folder):
        with pytest.raises(TypeError, match=r"decides num_heads, rope_theta. Received"):
            CausalTransformer.from_pretrained(folder, rope_theta=1.0, num_heads=2)


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
