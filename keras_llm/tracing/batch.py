"""The first batch of what `fit` reads, without taking it out."""

import keras

WANTED = "batch must be what fit gets at once, (x, y) or (x, y, sample_weight)"


def first_batch(data) -> tuple:
    """A batch as it is, or the first one of data that has batches.

    Raises:
        TypeError: `data` is neither, or an iterator, which would lose its batch.
        ValueError: it is a tuple or list, but not of two or three, or there is no batch in it.
    """
    if isinstance(data, tuple | list):
        return checked(data)
    if getattr(data, "batch_sampler", None) is not None:
        # A DataLoader. It is not iterated: ours would count the batch as taken.
        rows = next(iter(data.batch_sampler), None)
        if rows is not None:
            dataset = data.dataset
            many = getattr(dataset, "__getitems__", None)
            return checked(data.collate_fn(many(rows) if many else [dataset[row] for row in rows]))
    elif isinstance(data, keras.utils.PyDataset):
        if len(data):
            return checked(data[0])
    elif is_reiterable(data):
        for batch in data:
            return checked(batch)
    else:
        raise TypeError(f"{WANTED}, or a data set of such batches. Received: {type(data).__name__}")
    raise ValueError("batch must have a batch in it. Received: data without one")


def is_reiterable(data) -> bool:
    """Whether `data` is a collection of batches that can be iterated again."""
    single = isinstance(data, str | bytes | dict) or hasattr(data, "dtype")
    return hasattr(data, "__iter__") and not hasattr(data, "__next__") and not single


def checked(batch) -> tuple:
    """`batch` as a tuple, if it is one of two or three."""
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
        what = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise ValueError(f"{WANTED}. Received: {what}")
    return tuple(batch)
