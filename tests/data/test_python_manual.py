import inspect
import itertools
import json
import sys
from pydoc_data.topics import topics

import pytest

from keras_llm import data
from keras_llm.data import python_manual as module

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]

SPLITS = ("train", "validation", "test")
module_docstrings = module.module_docstrings


@pytest.fixture(scope="module")
def made(data_dir):
    """The data set, the modules' docstrings that it was made of, and what was imported for them."""
    documents, imported = {}, set()

    def noted():
        before = set(sys.modules)
        documents.update(module_docstrings())
        # A file's encoding is looked up.
        imported.update(each for each in sys.modules.keys() - before if "encodings." not in each)
        return documents

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "module_docstrings", noted)
        return data.load("python_manual", data_dir=data_dir), documents, imported


@pytest.fixture(scope="module")
def python_manual(made):
    return made[0]


def test_size(python_manual):
    sizes = [sum(map(len, python_manual[split])) for split in SPLITS]
    assert 2e6 < sum(sizes) < 4e6
    assert sizes[0] > 0.8 * sum(sizes)
    assert min(sizes[1:]) > 0.02 * sum(sizes)


def test_holds_the_manual_and_the_docstrings(python_manual):
    text = "\n".join(document for split in SPLITS for document in python_manual[split])
    assert topics["yield"].strip() in text
    assert "json.dumps(obj, *, skipkeys=False, ensure_ascii=True" in text
    assert inspect.cleandoc(json.dumps.__doc__) in text
    assert "class json.decoder.JSONDecoder\n\nSimple JSON" in text


def test_nothing_held_out_is_trained_on(python_manual):
    paragraphs = {
        split: {p for text in python_manual[split] for p in text.split("\n\n") if len(p) >= 80}
        for split in SPLITS
    }
    assert all(len(each) > 100 for each in paragraphs.values())
    for one, other in itertools.combinations(paragraphs.values(), 2):
        assert not one & other


def test_what_is_stored_is_what_was_made_and_no_module_is_imported(made):
    python_manual, documents, imported = made
    assert not imported
    stored = [document for split in SPLITS for document in python_manual[split]]
    assert sorted(stored) == sorted(
        dict(module.unrepeated(module.manual_topics() | documents)).values()
    )


def test_modules_that_are_read_again_have_the_same_docstrings(made, monkeypatch):
    _, documents, _ = made
    some = {"asyncio", "email", "json", "unittest"}
    monkeypatch.setattr(sys, "stdlib_module_names", some)
    again = module_docstrings()
    assert len(again) > 60
    # In the same order too: of two that repeat each other the first one is whole.
    wanted = {k: text for k, text in documents.items() if k.split()[1].split(".")[0] in some}
    assert list(again.items()) == list(wanted.items())
