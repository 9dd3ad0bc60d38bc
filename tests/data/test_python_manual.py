import inspect
import itertools
import json
import sys
from pydoc_data.topics import topics

import pytest

from keras_llm.data.python_manual import manual_topics, module_docstrings, unrepeated

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]

SPLITS = ("train", "validation", "test")


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


def test_made_again_it_is_the_same_and_no_module_is_imported(python_manual):
    imported = set(sys.modules)
    documents = dict(unrepeated(manual_topics() | module_docstrings()))
    assert set(sys.modules) == imported
    stored = [document for split in SPLITS for document in python_manual[split]]
    assert sorted(documents.values()) == sorted(stored)
