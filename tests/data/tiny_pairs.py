"""A small translation set, built as tensorflow-datasets builds one."""

import tensorflow_datasets as tfds

SENTENCES = [(f"bir ağaç, {i} dal", f"a tree, {i} branches") for i in range(70)]


class TinyPairs(tfds.core.GeneratorBasedBuilder):
    """Seventy pairs of sentences, of which ten and ten are held out."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.Translation(("tr", "en")),
            supervised_keys=("tr", "en"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, 50),
            "validation": self._generate_examples(50, 60),
            "test": self._generate_examples(60, 70),
        }

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, dict(zip(("tr", "en"), SENTENCES[i], strict=True))
