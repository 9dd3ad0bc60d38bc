"""A program on a disk of one megabyte, which `test_small_disk` mounts: it prints what happened."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (chooses the backend before Keras loads)
import keras
import numpy as np

from keras_llm import callbacks, data, losses, models, optimizers

VOCAB = 400
IDS = np.random.default_rng(0).integers(1, VOCAB, (40, 6))
TEXTS = [" ".join(f"w{number % 300}" for number in range(i, i + 50)) for i in range(800)]


class RemovesFiller(keras.callbacks.Callback):
    """Makes room in the middle of the run."""

    def __init__(self, filler, at):
        super().__init__()
        self.filler, self.at = filler, at

    def on_train_batch_end(self, batch, logs=None):
        if self.model.run.position.steps == self.at:
            self.filler.unlink()


def trained(*given, epochs=1):
    """The weights after 20 batches an epoch; a checkpoint of this model takes about 400 KB."""
    keras.utils.set_random_seed(0)
    model = models.LanguageModel(keras.layers.Embedding(VOCAB, 40), keras.layers.Dense(VOCAB))
    model(IDS)
    model.compile(optimizers.AdamW(1e-3), losses.MaskedSparseCategoricalCrossentropy(0))
    history = model.fit(IDS, IDS, 2, epochs, verbose=0, shuffle=False, callbacks=list(given))
    return [*map(np.asarray, model.get_weights()), np.asarray(history.history["loss"])]


def checkpoints(disk):
    """Trains on a disk that is full until step 12."""
    filler, folder = disk / "filler", disk / "run"
    filler.write_bytes(bytes(300_000))
    checkpoint = callbacks.TrainingCheckpoint(folder, every_steps=2, keep=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", callbacks.CheckpointWarning)
        weights = trained(checkpoint, RemovesFiller(filler, 12))
    texts = [str(w.message) for w in told if w.category is callbacks.CheckpointWarning]
    again = trained(callbacks.TrainingCheckpoint(folder, every_steps=2, keep=1), epochs=2)
    return {
        "warnings": texts,
        "as without": all(map(np.array_equal, weights, trained())),
        "continued": all(map(np.array_equal, again, trained(epochs=2))),
        "left": sorted(path.name for path in folder.iterdir()),
    }


def tokens(disk):
    """Encodes more ids than fit, twice; then on a larger disk."""
    tokenizer = data.train_tokenizer(TEXTS, unit="word")
    (disk / "filler").write_bytes(bytes(980_000 - used(disk)))
    errors = []
    for _ in range(2):
        try:
            data.tokens(TEXTS, tokenizer, disk / "tokens", verbose=0)
        except OSError as error:
            errors.append(error.errno)
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    shards = data.tokens(TEXTS, tokenizer, disk / "tokens", verbose=0)
    read = [
        np.concatenate([np.ravel(ids) for ids, _ in data.causal_lm(source, *more, 64, 8)])
        for source, more in ((shards, [None]), (TEXTS, [tokenizer]))
    ]
    return {"errors": errors, "equal": bool(np.array_equal(*read))}


def used(disk):
    """Bytes in use."""
    facts = os.statvfs(disk)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    print(json.dumps({"checkpoints": checkpoints, "tokens": tokens}[sys.argv[1]](folder)))
