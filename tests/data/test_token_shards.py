"""Batches from files: the same as from memory; damage is named or mended."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import data
from keras_llm.data import token_shards
from tests.data.token_folders import encode, files_of, write_text

pytestmark = pytest.mark.backend_free

documents = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=2, max_size=30)


def batches(loader, epochs=2):
    return [(ids.tolist(), labels.tolist()) for _ in range(epochs) for ids, labels in loader]


@pytest.fixture(scope="module")
def made(tmp_path_factory, word_tokenizer):
    folder = tmp_path_factory.mktemp("made")
    write_text(folder / "my.txt")
    encode(folder / "my.txt", word_tokenizer, folder / "tokens")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(made / "tokens", tmp_path / "tokens")
    return tmp_path / "tokens"


@given(
    documents=documents,
    seq_len=st.integers(1, 9),
    batch_size=st.integers(1, 9),
    pack=st.booleans(),
    shuffle=st.booleans(),
    shard_bytes=st.integers(1, 60),
)
@settings(max_examples=20)
def test_batches_are_those_from_memory(
    tmp_path_factory, word_tokenizer, documents, seq_len, batch_size, pack, shuffle, shard_bytes
):
    texts = [" ".join(map(str, each)) for each in documents]
    options = {"seq_len": seq_len, "batch_size": batch_size, "pack": pack, "shuffle": shuffle}
    folder = tmp_path_factory.mktemp("tokens")
    tokens = encode(texts, word_tokenizer, folder, shard_bytes=shard_bytes)
    expected = data.causal_lm(texts, word_tokenizer, **options)
    with pytest.MonkeyPatch.context() as patch:
        # Files are opened again and again.
        patch.setattr(token_shards, "OPEN_FILES", 2)
        for given_as in (tokens, folder, str(folder), data.TokenShards(folder, verify=True)):
            found = data.causal_lm(given_as, **options)
            assert batches(found) == batches(expected)
            expected.load_state_dict({"seed": 0, "epoch": 0, "step": 0})
    assert len(tokens) == len(texts)


def test_tensors_and_padding(made, word_tokenizer):
    for ids, labels in data.causal_lm(made / "tokens", seq_len=4, batch_size=8, pack=False):
        assert ids.shape == labels.shape
        assert ids.dtype == labels.dtype
        assert ids.is_contiguous() and labels.is_contiguous()
        assert str(ids.dtype) == "torch.int64"
        np.testing.assert_array_equal(ids[labels == word_tokenizer.pad_id], word_tokenizer.pad_id)


def test_a_mixture_of_files(made, tmp_path, word_tokenizer):
    tokens = encode([f"{i}" for i in range(90, 99)], word_tokenizer, tmp_path / "other")
    options = {"weights": {"a": 1, "b": 3}, "seq_len": 2, "batch_size": 5, "shuffle": True}
    found = data.causal_lm({"a": made / "tokens", "b": tokens}, **options)
    texts = {
        "a": data.load_text(made / "my.txt"),
        "b": [f"{i}" for i in range(90, 99)],
    }
    texts["a"] = [text for split in texts["a"].values() for text in split]
    expected = data.causal_lm(texts, word_tokenizer, **options)
    assert batches(found) == batches(expected)
    other = data.train_tokenizer(["1 2 3"], unit="word")
    encode(["1 2 3"], other, tmp_path / "third")
    with pytest.raises(ValueError, match=r"Between 'a' and 'b': vocab_size was 104"):
        data.causal_lm({"a": made / "tokens", "b": tmp_path / "third"}, **options)


@pytest.mark.slow
def test_workers_open_the_files(made):
    options = {"seq_len": 3, "batch_size": 4, "pack": False, "shuffle": True}
    alone = data.causal_lm(made / "tokens", **options)
    helped = data.causal_lm(made / "tokens", **options, num_workers=2)
    assert batches(helped) == batches(alone)


def test_another_tokenizer(made, word_tokenizer):
    data.causal_lm(made / "tokens", word_tokenizer, seq_len=4, batch_size=2)
    other = data.train_tokenizer(["1 2 3"], unit="word")
    with pytest.raises(ValueError, match=r"tokenizer must be the one that encoded.*vocab_size was"):
        data.causal_lm(made / "tokens", other, seq_len=4, batch_size=2)


def test_errors_before_anything_is_read(made, tmp_path):
    with pytest.raises(ValueError, match=r"seq_len must be a positive integer.*None"):
        data.causal_lm(made / "tokens", batch_size=2)
    with pytest.raises(ValueError, match=r"batch_size must be a positive integer.*None"):
        data.causal_lm(made / "tokens", seq_len=2)
    with pytest.raises(FileNotFoundError, match=r"data\.tokens wrote: .*manifest\.json is missing"):
        data.causal_lm(tmp_path, seq_len=2, batch_size=2)
    with pytest.raises(TypeError, match=r"texts must be given with a tokenizer.*list"):
        data.causal_lm(["1 2"], seq_len=2, batch_size=2)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": lambda path: path.write_bytes(
        bytes(byte ^ (4 if i == 10 else 0) for i, byte in enumerate(path.read_bytes()))
    ),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a link": lambda path: path.symlink_to(path.rename(path.parent.parent / path.name)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["shard_00000.ids", "shard_00001.offsets"])
def test_a_damaged_shard_is_named_and_then_mended(made, folder, word_tokenizer, damage, name):
    before = files_of(folder)
    DAMAGES[damage](folder / name)
    verify = damage == "flipped"
    with pytest.raises(
        (ValueError, FileNotFoundError), match=rf"{name} (is|must).*encodes it again"
    ):
        data.TokenShards(folder, verify=verify)
    with pytest.warns(UserWarning, match=rf"{name} .*It is encoded again"):
        encode(made / "my.txt", word_tokenizer, folder, verify=verify)
    assert files_of(folder) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_named(made, folder, word_tokenizer, damage):
    before = files_of(folder)
    DAMAGES[damage](folder / "manifest.json")
    with pytest.raises((ValueError, FileNotFoundError), match=r"manifest\.json"):
        data.TokenShards(folder)
    if damage != "missing":
        with pytest.raises(ValueError, match=r"manifest\.json"):
            encode(made / "my.txt", word_tokenizer, folder)
    encode(made / "my.txt", word_tokenizer, folder, overwrite=damage != "missing")
    assert files_of(folder) == before


def test_damaged_text_is_not_mended_with_another(made, folder, word_tokenizer, tmp_path):
    write_text(tmp_path / "my.txt", first=1)
    (folder / "shard_00000.ids").unlink()
    with (
        pytest.warns(UserWarning, match=r"encoded again"),
        pytest.raises(ValueError, match=r"part that made shard 0 is another"),
    ):
        encode(tmp_path / "my.txt", word_tokenizer, folder)
    assert not (folder / "shard_00000.ids").exists()


def test_flipped_bits_that_only_reading_finds(folder):
    ids = np.fromfile(folder / "shard_00001.ids", "<u2")
    ids[3] = 60_000
    ids.tofile(folder / "shard_00001.ids")
    with pytest.raises(ValueError, match=r"shard_00001\.ids is damaged: it holds the id 60000"):
        list(data.causal_lm(folder, seq_len=4, batch_size=4))
    offsets = np.fromfile(folder / "shard_00001.offsets", "<i8")
    offsets[[3, 4]] = offsets[[4, 3]]
    offsets.tofile(folder / "shard_00001.offsets")
    with pytest.raises(ValueError, match=r"shard_00001\.offsets is damaged: its numbers do not"):
        data.causal_lm(folder, seq_len=4, batch_size=4, pack=False)


def test_what_is_not_whole_is_not_read(folder, word_tokenizer):
    from keras_llm.data.token_manifest import Manifest

    manifest = Manifest.read(folder)
    manifest.complete = False
    manifest.write(folder)
    with pytest.raises(ValueError, match=r"shards and not all of the text: call data\.tokens"):
        data.TokenShards(folder)


@pytest.mark.parametrize("source", ["memory", "files", "mixture"])
def test_fingerprint(made, word_tokenizer, source):
    """Plain values, the same for the same data, and another for each thing that matters."""

    def fingerprint(first="1 2 3", **options):
        options = {"seq_len": 2, "batch_size": 3, "shuffle": True, **options}
        texts = [first, "4 5 6 7"]
        if source == "files":
            texts = made / "tokens"
        if source == "mixture":
            options = {"weights": {"a": 1, "b": 1}, **options}
            texts = {"a": texts, "b": made / "tokens"}
        found = data.causal_lm(texts, word_tokenizer, **options).fingerprint()
        assert json.loads(json.dumps(found)) == found
        return found

    first = fingerprint()
    assert first == fingerprint(seed=5)
    assert {"rows", "batch_size", "shuffle", "seq_len", "pack", "tokens"} <= set(first)
    changes = [{"batch_size": 4}, {"seq_len": 3}, {"pack": False}]
    changes += [] if source == "mixture" else [{"shuffle": False}]
    changes += [{"weights": {"a": 1, "b": 2}}] if source == "mixture" else []
    changes += [] if source == "files" else [{"first": "1 2 4"}]
    for change in changes:
        found = fingerprint(**change)
        (name,) = change
        name = "tokens" if name == "first" else name
        assert found[name] != first[name]
