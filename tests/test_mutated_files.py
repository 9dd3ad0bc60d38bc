"""Thousands of damaged files: a clear error or a right load, and nothing else."""

import json
import resource
import time

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from keras_llm import data
from keras_llm.models import CausalTransformer
from tests.mutations import mutated_bytes, mutated_json

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]

TEXTS = ["the cat sat on the mat", "kediler ağaçta oturur ✓"]
# Ours. FileNotFoundError is for an index that names other files.
ERRORS = (ValueError, TypeError, FileNotFoundError)
SECONDS, MEGABYTES = 2.0, 400


def survive(rng, write, load, content: bytes, count: int, is_json: bool = True) -> int:
    """Loads damaged files again and again; returns how many of them were loaded.

    Args:
        write: Writes the content to the file.
        load: Loads it, and raises `AssertionError` where what was loaded is not what it says.
        content: What the file has when it is whole.
        count: How many mutations.
        is_json: Whether it is JSON, of which values are changed too.
    """
    loaded = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        mutate = mutated_json if is_json and number % 3 else mutated_bytes
        damaged = mutate(rng, content)
        write(damaged)
        began = time.monotonic()
        try:
            load()
            loaded += 1
        except ERRORS as error:
            # Not a number or a name alone, as of a KeyError.
            assert len(str(error)) > 30, (number, error, damaged[:500])
        except BaseException as error:
            error.add_note(f"Mutation {number}: {damaged[:2000]!r}")
            raise
        assert time.monotonic() - began < SECONDS, (number, damaged[:500])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES
    return loaded


def check_tokenizer(tokenizer, text: str):
    """It has the vocabulary that the library of tokenizers reads in the file, and works."""
    vocabulary = tokenizers.Tokenizer.from_str(text).get_vocab()
    assert tokenizer.vocab_size == max(vocabulary.values()) + 1
    for token, i in list(vocabulary.items())[:5]:
        assert tokenizer._tokenizer.token_to_id(token) == i
    ids = tokenizer.encode("the cat")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert isinstance(tokenizer.decode([*ids, tokenizer.start_id, tokenizer.end_id]), str)


@pytest.mark.parametrize("unit", ["subword", "word", "character"])
def test_tokenizer_files(tmp_path, unit):
    rng = np.random.default_rng(0)
    path = tmp_path / "tokenizer.json"
    data.train_tokenizer(TEXTS, 280, unit=unit).save(path)

    def load():
        tokenizer = data.load_tokenizer(path)
        check_tokenizer(tokenizer, path.read_text(encoding="utf-8"))

    assert survive(rng, path.write_bytes, load, path.read_bytes(), 900) > 20


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_tokenizer_folders(tmp_path, name):
    rng = np.random.default_rng(1)
    tokenizer = data.train_tokenizer(TEXTS, unit="word")
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if name != "tokenizer_config.json":
        (tmp_path / "tokenizer_config.json").write_text("{}")

    def load():
        again = data.Tokenizer.from_pretrained(tmp_path)
        assert {again.start_id, again.end_id} <= {0, 1, 2, 3}
        assert again.encode("the cat") == tokenizer.encode("the cat")

    assert survive(rng, path.write_bytes, load, content, 700) > 20


def write_model(folder, with_index: bool):
    """A small model's folder; with an index, its weights are in two files."""
    model = CausalTransformer(
        23, 8, 1, 2, max_length=16, num_key_value_heads=1, d_ff=8, tie_embeddings=False, pad_id=0
    )
    model.save_pretrained(folder)
    if with_index:
        whole = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(whole)
        files = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}
        for file in set(files.values()):
            save_file({n: a for n, a in whole.items() if files[n] == file}, folder / file)
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def check_model(model, folder):
    """Its weights are those of the files, and it can be called."""
    files = folder.glob("*.safetensors")
    read = {name: array for file in files for name, array in load_file(file).items()}
    np.testing.assert_array_equal(
        model.backbone.token_embedding.embeddings.numpy(), read["model.embed_tokens.weight"]
    )
    np.testing.assert_array_equal(model.head.kernel.numpy().T, read["lm_head.weight"])
    config = json.loads((folder / "config.json").read_bytes())
    assert model.backbone.config.max_length == config["max_position_embeddings"]
    assert model.backbone.config.dropout == (config.get("keras_llm") or {}).get("dropout", 0.0)
    assert tuple(model(np.array([[1]])).shape) == (1, 1, 23)


@pytest.mark.parametrize(
    ("name", "count", "with_index"),
    [
        ("config.json", 700, False),
        ("model.safetensors", 300, False),
        ("model.safetensors.index.json", 300, True),
    ],
)
def test_model_folders(tmp_path, name, count, with_index):
    rng = np.random.default_rng(2)
    write_model(tmp_path, with_index)
    path = tmp_path / name

    def load():
        check_model(CausalTransformer.from_pretrained(tmp_path), tmp_path)

    is_json = name.endswith(".json")
    assert survive(rng, path.write_bytes, load, path.read_bytes(), count, is_json) > 5


def test_the_header_of_safetensors(tmp_path):
    """It is JSON behind its length: changed without touching the length's truth."""
    rng = np.random.default_rng(3)
    write_model(tmp_path, with_index=False)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")

    def write(header):
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])

    def load():
        check_model(CausalTransformer.from_pretrained(tmp_path), tmp_path)

    survive(rng, write, load, content[8 : 8 + size], 500)


def test_json_lines(tmp_path):
    rng = np.random.default_rng(4)
    tokenizer = data.train_tokenizer(TEXTS, 280)
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "the cat", "completion": " sat", "text": None, "tools": [1]}

    def load():
        loader = data.instruction(path, tokenizer, 16)
        ids, labels = next(iter(loader))
        assert ids.shape == labels.shape
        assert bool((ids < tokenizer.vocab_size).all())

    content = json.dumps(row, ensure_ascii=False).encode()
    survive(rng, path.write_bytes, load, content, 800)


def test_positions_of_a_loader():
    rng = np.random.default_rng(5)
    tokenizer = data.train_tokenizer(TEXTS, unit="word")
    loader = data.causal_lm(TEXTS * 9, tokenizer, 4, 2, shuffle=True)
    state = {"seed": 0, "epoch": 2, "step": 3}
    content = json.dumps(state).encode()
    damaged = {}

    def load():
        loader.load_state_dict(state)
        before = loader.state_dict()
        try:
            loader.load_state_dict(damaged["state"])
        finally:
            after = loader.state_dict()
            assert after in (before, damaged["state"])
        next(iter(loader))

    def write(text):
        try:
            damaged["state"] = json.loads(text)
        except ValueError:
            damaged["state"] = text.decode("latin-1")

    survive(rng, write, load, content, 600)
