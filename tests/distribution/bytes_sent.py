"""A program for torchrun: what its process sends while it trains, counted in two places.

It prints a line of JSON for each way of training. `reductions` are the sizes in bytes of all calls
of `torch.distributed.all_reduce`, of each update; `written` are the bytes that the kernel counts as
written by this process from the end of the first update to the end of the last.
"""

import json
import re
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (first: it joins the other processes)
import keras
import numpy as np
import torch.distributed as dist

from keras_llm import distribution, losses, metrics, models

VOCAB, ROWS, UPDATES = 2000, 32, 5
reductions, all_reduce = [[]], dist.all_reduce


def counted(tensor, *arguments, **named):
    """`all_reduce`, noted."""
    reductions[-1].append(tensor.numel() * tensor.element_size())
    return all_reduce(tensor, *arguments, **named)


dist.all_reduce = counted


def written():
    """Bytes that this process has written so far, to sockets and to anything else."""
    return int(re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())[1])


class Updates(keras.callbacks.Callback):
    """Begins a new list of reductions after each update, and looks at what was written."""

    def on_train_begin(self, logs=None):
        reductions[:], self.marks = [[]], []

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) > len(self.marks):
            self.marks.append(written())
            reductions.append([])


def train(name, frozen=False, accumulation=None, micro_batches=None, **settings):
    """Trains a model for some updates, and prints what was counted."""
    keras.utils.set_random_seed(0)
    model = models.CausalTransformer(VOCAB, 128, 1, 2, max_length=8, **settings)
    if frozen:
        model.backbone.trainable = False
    rows_of_each = ROWS // distribution.world().size
    model.compile(
        keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulation),
        losses.MaskedSparseCategoricalCrossentropy(0),
        metrics=[metrics.Perplexity()],
        micro_batch_size=micro_batches and rows_of_each // micro_batches,
    )
    batches = UPDATES * (accumulation or 1)
    ids = np.random.default_rng(0).integers(1, VOCAB, (ROWS * batches, 8))
    watch = Updates()
    model.fit(ids, ids, batch_size=ROWS, verbose=0, shuffle=False, callbacks=[watch])
    fact = model.explain(show=False)["How it runs"]["sent for an update"]
    line = {
        "name": name,
        "rank": distribution.world().rank,
        "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        "variables": len(model.trainable_variables),
        # What follows the last update is of the epoch's end.
        "reductions": reductions[:UPDATES],
        "written": (watch.marks[-1] - watch.marks[0]) / (UPDATES - 1),
        "explained": fact.value,
        "shown": fact.text,
    }
    print(f"{json.dumps(line)}\n", end="", flush=True)


if __name__ == "__main__":
    train("plain")
    train("eight micro-batches", micro_batches=8)
    train("accumulation", accumulation=4)
    train("frozen", frozen=True, tie_embeddings=False)
    train("bfloat16", dtype="bfloat16")
