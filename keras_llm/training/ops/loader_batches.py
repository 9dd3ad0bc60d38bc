"""Batches of a DataLoader that Keras takes apart on JAX and TensorFlow, but not on PyTorch."""

from collections.abc import Mapping

import torch

from keras_llm.data.data_loader import DataLoader


class LoaderBatches(torch.utils.data.DataLoader):
    """A DataLoader whose batches are tuples, `(x,)` where they have no labels.

    Keras makes a tuple of each batch: of a dictionary its keys, of a tensor its rows.

    Args:
        loader: The DataLoader that makes the batches.
    """

    def __init__(self, loader):
        super().__init__(loader.dataset, batch_size=None)
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if isinstance(batch, Mapping):
                batch = dict(batch)
            yield batch if isinstance(batch, tuple | list) else (batch,)


def with_tuples(x):
    """The data, with `LoaderBatches` in place of a DataLoader that is not ours."""
    is_foreign = isinstance(x, torch.utils.data.DataLoader) and not isinstance(x, DataLoader)
    return LoaderBatches(x) if is_foreign else x
