"""A corpus: named splits, each a sequence of texts (or of tuples of texts, one a field)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from keras_llm.data.unicode_text import check_unicode

ROWS_PER_READ = 4096


class Corpus(dict):
    """A dictionary of splits; the error for an unknown split lists those that exist.

    Example:

    >>> corpus = Corpus(train=["one", "two"], validation=["three"], test=["four"])
    >>> corpus["validation"]
    ['three']
    >>> corpus["dev"]
    Traceback (most recent call last):
    ...
    KeyError: "There is no split 'dev'. The splits are: 'train', 'validation', 'test'."
    """

    def __missing__(self, name):
        names = ", ".join(map(repr, self))
        raise KeyError(f"There is no split {name!r}. The splits are: {names}.")


class Split(Sequence):
    """The text of one split of a tensorflow-datasets set, read from its files on access.

    A row is a `str` if the split has one field, else a tuple with one `str` per field. `split[3]`
    is a row, `split[10:20]` a list of rows, and `split["en"]` the same split with that field only.

    Args:
        source: The split's records, undecoded: what `builder.as_data_source(split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)` returns.
        fields: Names of its text features; `"outer/inner"` is a feature within another.
    """

    def __init__(self, source: Sequence[bytes], fields: Sequence[str]):
        self.source = source
        self.fields = tuple(fields)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | slice | str):
        if isinstance(key, str):
            if key not in self.fields:
                raise KeyError(f"There is no field {key!r}. The fields are: {self.fields}.")
            return Split(self.source, [key])
        positions = range(len(self))[key]
        if isinstance(key, slice):
            return self._read(positions)
        return self._read([positions])[0]

    def __iter__(self) -> Iterator:
        for start in range(0, len(self), ROWS_PER_READ):
            yield from self[start : start + ROWS_PER_READ]

    def __repr__(self) -> str:
        return f"Split(rows={len(self)}, fields={self.fields})"

    def _read(self, positions: Sequence[int]) -> list:
        from tensorflow_datasets.proto import tf_example_pb2

        # Many times faster than tensorflow-datasets' own decoding of single records: all records
        # in one call, and only the wanted fields.
        rows = []
        for record in self.source.__getitems__(list(positions)):
            features = tf_example_pb2.Example.FromString(record).features.feature
            texts = [features[field].bytes_list.value[0].decode("utf-8") for field in self.fields]
            rows.append(tuple(texts) if len(texts) > 1 else texts[0])
        return rows


def iterate_rows(texts: Iterable, name: str) -> Iterator[tuple[str, ...]]:
    """Every row of a split, or of any iterable of strings or of tuples of strings, as a tuple.

    Errors call it by the `name` that it has as the caller's argument.
    """
    if isinstance(texts, Mapping):
        raise TypeError(
            f'{name} must be one split, such as corpus["train"]. '
            f"Received: a mapping with the keys {list(texts)}"
        )
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(
            f"{name} must be a split, or an iterable of strings or of tuples of strings. "
            f"Received: {name}={str(texts)[:80]!r} (of type {type(texts).__name__})"
        )
    for position, row in enumerate(texts):
        fields = (row,) if isinstance(row, str) else row
        if not isinstance(fields, tuple | list) or not all(isinstance(f, str) for f in fields):
            raise TypeError(
                f"Every row of {name} must be a string or a tuple of strings. "
                f"Received: {row!r} at row {position}"
            )
        for field in fields:
            check_unicode(field, f"row {position} of {name}")
        yield tuple(fields)
