"""Data sets that tests share, built once a session in a temporary place."""

import pytest

from keras_llm import data
from tests.data.tiny_pairs import TinyPairs


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session")
def tiny_pairs(data_dir):
    return data.load(TinyPairs(data_dir=data_dir))


@pytest.fixture(scope="session")
def word_tokenizer():
    """Words "0" to "99", whose ids are not their own numbers."""
    return data.train_tokenizer([" ".join(map(str, range(100)))], unit="word")
