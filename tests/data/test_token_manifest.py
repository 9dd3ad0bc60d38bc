"""Manifests that were changed by accident, or on purpose: a clear error or what it says."""

import hashlib
import json
import random

import pytest

from keras_llm import data
from keras_llm.data.token_manifest import Manifest
from tests.data.token_folders import encode

pytestmark = pytest.mark.backend_free

WEIRD = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    "",
    "../x",
    "/etc/passwd",
    "..\\x",
    [],
    {},
    [[]],
    "é\ud800",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, word_tokenizer):
    folder = tmp_path_factory.mktemp("manifest")
    encode([f"{i} {i}" for i in range(60)], word_tokenizer, folder)
    return folder


@pytest.fixture
def manifest(folder):
    """The file, which is as before at the end."""
    path = folder / "manifest.json"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


def write_signed(path, content):
    """As someone would who knows how the hash is made."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content))


def test_changed_bytes(manifest):
    generator, before = random.Random(0), manifest.read_bytes()
    content = Manifest.read(manifest.parent)
    for _ in range(800):
        mutated = bytearray(before)
        for _ in range(generator.choice([1, 1, 2, 8])):
            place = generator.randrange(len(mutated))
            kind = generator.randrange(3)
            if kind == 0:
                mutated[place] ^= 1 << generator.randrange(8)
            elif kind == 1:
                del mutated[place : place + generator.choice([1, 10, 1000])]
            else:
                mutated[place:place] = generator.randbytes(generator.choice([1, 5]))
            if not mutated:
                break
        manifest.write_bytes(mutated)
        try:
            found = Manifest.read(manifest.parent)
        except ValueError as error:
            assert "manifest.json" in str(error)
        else:
            assert found == content, "white space may change"


def places(content, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from places(value, (*path, key))


def test_changed_values_with_the_right_hash(manifest):
    """Nothing but our errors, and no file of elsewhere is read."""
    before = manifest.read_bytes()
    for path in places(json.loads(before)):
        for value in WEIRD:
            content = json.loads(before)
            if path:
                inner = content
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = value
            else:
                content = {"format": value}
            write_signed(manifest, content)
            try:
                tokens = data.TokenShards(manifest.parent)
            except (ValueError, FileNotFoundError) as error:
                assert str(manifest.parent) in str(error) or "not all of the text" in str(error)
            else:
                assert tokens.num_tokens == 180


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "..\\x", "C:\\x", "folder/shard_00000.ids"]
)
def test_no_name_leads_elsewhere(manifest, name):
    (manifest.parent.parent / "x").write_bytes(b"\0" * 1000)
    content = json.loads(manifest.read_bytes())
    files = content["shards"][0]["files"]
    files[name] = files.pop("shard_00000.ids")
    write_signed(manifest, content)
    with pytest.raises(ValueError, match=r"manifest\.json is not as data\.tokens writes it.*files"):
        data.TokenShards(manifest.parent)


def test_other_formats_and_versions(manifest):
    content = json.loads(manifest.read_bytes())
    write_signed(manifest, {**content, "version": 2})
    with pytest.raises(ValueError, match=r"must be of version 1.*version 2"):
        data.TokenShards(manifest.parent)
    write_signed(manifest, {**content, "format": "other"})
    with pytest.raises(ValueError, match=r"of format 'keras_llm tokens'"):
        data.TokenShards(manifest.parent)
    manifest.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"not JSON"):
        data.TokenShards(manifest.parent)
