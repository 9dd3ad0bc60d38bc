"""The first batch of what `fit` reads, without taking it out."""

from collections.abc import Mapping

import keras

from keras_llm.explanation.counted_tokens import WANTED, checked_batch


def first_batch(data):
    """A batch as it is, or the first one of data that has batches.

    Raises:
        TypeError: `data` is neither, or an iterator, which would lose its batch.
        ValueError: it is a tuple or list, but not of two or three, or there is no batch in it.
    """
    if isinstance(data, tuple | list) or (isinstance(data, Mapping) and "labels" in data):
        return checked_batch(data)
    if getattr(data, "batch_sampler", None) is not None:
        # A DataLoader. It is not iterated: ours would count the batch as taken.
        rows = next(iter(data.batch_sampler), None)
        if rows is not None:
            dataset = data.dataset
            many = getattr(dataset, "__getitems__", None)
            items = many(rows) if many else [dataset[row] for row in rows]
            return checked_batch(data.collate_fn(items))
    elif isinstance(data, keras.utils.PyDataset):
        if len(data):
            return checked_batch(data[0])
    elif (
        isinstance(data, str | bytes | dict)
        or hasattr(data, "dtype")
        or hasattr(data, "__next__")
        or not hasattr(data, "__iter__")
    ):
        raise TypeError(f"{WANTED}, or a data set of such batches. Received: {type(data).__name__}")
    else:
        for batch in data:
            return checked_batch(batch)
    raise ValueError("batch must have a batch in it. Received: data without one")
