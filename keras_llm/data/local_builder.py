"""A data set made from this machine's own files, with rows held out by their names alone."""

import hashlib
import inspect
from collections.abc import Iterator

import tensorflow_datasets as tfds


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A tensorflow-datasets builder of texts: a subclass has fields, a version and rows."""

    fields: tuple[str, ...]
    homepage: str

    def rows(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Of each row: the name that decides its split, a key of its own, and its texts."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.cleandoc(self.__doc__),
            features=tfds.features.FeaturesDict({f: tfds.features.Text() for f in self.fields}),
            supervised_keys=self.fields if len(self.fields) == 2 else None,
            homepage=self.homepage,
        )

    def _split_generators(self, dl_manager):
        splits = {"train": {}, "validation": {}, "test": {}}
        for name, key, texts in self.rows():
            splits[split_of(name)][key] = dict(zip(self.fields, texts, strict=True))
        return {name: self._generate_examples(rows) for name, rows in splits.items()}

    def _generate_examples(self, rows):
        yield from rows.items()


def split_of(name: str) -> str:
    """`"train"`, `"validation"` or `"test"` for 90%, 5% and 5% of all names, on every machine.

    >>> [split_of(word) for word in ("keras", "torch", "jax")]
    ['train', 'train', 'train']
    """
    percent = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8]) % 100
    return "train" if percent < 90 else "validation" if percent < 95 else "test"
