"""How the files of a Hugging Face folder are written, and what is refused, by name and early."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_llm.models import CausalTransformer, safetensors_files
from tests.models.folders import (
    build,
    by_transformers,
    edit,
    equal,
    logits,
    random_llama,
    train_tokenizer,
)  # fmt: skip

pytestmark = pytest.mark.torch_only


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
        tokenizer = train_tokenizer()
        monkeypatch.setattr(tokenizer, "save_pretrained", lambda folder: 1 / 0)
        model = build(vocab_size=300)
        with pytest.raises(ZeroDivisionError):
            model.save_pretrained(tmp_path, tokenizer)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_refusals(self, tmp_path):
        with pytest.raises(ValueError, match=r"at most vocab_size=37 ids.*of 2"):
            build().save_pretrained(tmp_path / "new", train_tokenizer())
        with pytest.raises(TypeError, match=r"tokenizer must be a data.Tokenizer.*a str"):
            build().save_pretrained(tmp_path / "new", "gpt2")
        with pytest.raises(
            TypeError, match=r"tokenizer must be a data.Tokenizer.*LlamaForCausalLM"
        ):
            build().save_pretrained(tmp_path / "new", random_llama())
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
