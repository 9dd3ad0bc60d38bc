"""Small models and data for the tests of the warnings."""

import warnings

import keras
import numpy as np

from keras_llm import losses, models, optimizers
from keras_llm.training import SanityWarning

VOCAB, PAD, LENGTH = 31, 0, 12
RNG = np.random.default_rng(0)
# Documents of 3 to 13 tokens, none of them PAD; in text no token is like its neighbours.
DOCUMENTS = [RNG.permutation(np.arange(1, VOCAB))[:n] for n in (3, 5, 8, 13, 10, 4, 13, 7)]
FULL = np.stack([RNG.permutation(np.arange(1, VOCAB))[: LENGTH + 2] for _ in range(8)])
BACKEND = keras.backend.backend()
# What is tested is a warning, not the step, which TensorFlow would trace for each model.
EAGERLY = BACKEND == "tensorflow"


def padded(rows, side="right", fill=PAD):
    out = np.full((len(rows), LENGTH + 1), fill)
    for row, ids in zip(out, rows, strict=True):
        row[slice(len(ids)) if side == "right" else slice(LENGTH + 1 - len(ids), None)] = ids
    return out


def causal(**kwargs):
    return models.CausalTransformer(VOCAB, 16, 1, 2, max_length=LENGTH, **kwargs)


def seq2seq():
    return models.Seq2SeqTransformer(VOCAB, 16, 1, 2, max_length=16, dropout=0.0)


def unbuilt(cls=models.LanguageModel):
    """A model whose head is not built before its first batch."""
    return cls(keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB))


def small(cls=models.LanguageModel):
    model = unbuilt(cls)
    model(FULL)
    return model


def compiled(model, loss=None, optimizer=None, **kwargs):
    loss = losses.MaskedSparseCategoricalCrossentropy(PAD) if loss is None else loss
    model.compile(optimizer or optimizers.AdamW(1e-3), loss, **{"run_eagerly": EAGERLY} | kwargs)
    return model


def sanity(action):
    """The sanity warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SanityWarning)
        action()
    return [str(warning.message) for warning in caught]


def of_fit(model, x, y, **kwargs):
    """Those of a fit of two epochs of two steps."""
    options = {"batch_size": (len(y) + 1) // 2, "epochs": 2, "verbose": 0, "shuffle": False}
    return sanity(lambda: model.fit(x, y, **options | kwargs))


def only(messages, start, guide):
    [message] = messages
    assert message.startswith(start)
    assert message.endswith(f"(examples/guides/{guide}.py)")
    assert "\n" not in message


def keras_dataset(*arrays):
    """Two batches of four rows."""

    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return tuple(array[4 * index : 4 * index + 4] for array in arrays)

    return Rows()
