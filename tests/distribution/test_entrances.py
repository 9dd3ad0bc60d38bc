"""What programs call beside `fit`: the first of several processes writes and prints, all go on."""

import json
from pathlib import Path

import pytest

from tests.distribution.processes import launch

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]

SCRIPT = Path(__file__).parent / "entrances.py"
FILES = {"config.json", "generation_config.json", "model.safetensors"}
TOKENIZER = {"special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What three processes have printed, and what each has found; the first one is the first."""
    folder = tmp_path_factory.mktemp("world")
    printed = launch(3, SCRIPT, folder)
    found = [json.loads(line) for line in printed.splitlines() if line.startswith('{"rows"')]
    assert len(found) == 3
    return printed, sorted(found, key=lambda each: -each["prepared"]), folder


def test_one_process_prepares_a_data_set_and_all_read_it(world):
    _, found, _ = world
    assert [each["prepared"] for each in found] == [1, 0, 0]
    assert len({each["rows"] for each in found}) == 1 and found[0]["rows"] > 150


def test_a_tokenizer_is_the_same_in_all_processes(world):
    _, found, _ = world
    assert found[0]["definitions"] == found[1]["definitions"] == found[2]["definitions"]


def test_the_first_process_writes_and_the_others_wait_until_it_has(world):
    _, found, folder = world
    assert [set(each["moved"]) for each in found] == [FILES | TOKENIZER, set(), set()]
    assert [each["saved"] for each in found] == [True, False, False]
    # When the call returns, the files are there for everybody.
    assert all(set(each["read"]) == FILES | TOKENIZER for each in found)
    assert (folder / "again.json").read_text() == (folder / "mine/0/tokenizer.json").read_text()


def test_each_process_predicts_everything_and_the_first_prints(world):
    printed, found, _ = world
    assert len({each["logits"] for each in found}) == 1
    assert printed.count("1/1 - ") == 1
    # Of `data.show`, a row's heading.
    assert printed.count("tokens count") == 1
