"""A run with checkpoints in which something happens to process 1: `faulty.py DIRECTORY FAULT`.

Each process writes DIRECTORY/result.RANK when its `fit` returns.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (joins the others before Keras loads)
import keras
import numpy as np
import torch

from keras_llm import callbacks, metrics, models
from keras_llm.distribution import world
from tests.distribution.trained import VOCAB, X, Y, adamw, loss

AT = 7


class Fault(keras.callbacks.Callback):
    """What happens after a step of process 1."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def on_train_batch_end(self, batch, logs=None):
        if world().rank != world().size - 1 or self.model.run.position.steps != AT:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.kind == "error":
            raise ValueError("a bad batch")
        if self.kind == "memory":
            raise torch.OutOfMemoryError("no room for 1 GB")
        if self.kind == "stop":
            self.model.stop_training = True


def main():
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    keras.utils.set_random_seed(3)
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_length": 24}
    model = models.CausalTransformer(VOCAB, **sizes)
    optimizer = adamw(gradient_accumulation_steps=2)
    model.compile(optimizer, loss(), metrics=[metrics.Perplexity()])
    checkpoint = callbacks.TrainingCheckpoint(folder / "run", every_steps=3)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(logs["loss"]))
    )
    history = model.fit(
        *(X, Y, 5, 3), verbose=0, callbacks=[Fault(kind), watch, checkpoint], shuffle=False
    )
    result = {
        "history": {k: v for k, v in history.history.items() if "second" not in k},
        "sums": [float(np.abs(w).sum(dtype="float64")) for w in model.get_weights()],
        "losses": seen,
        "time": time.time(),
    }
    (folder / f"result.{world().rank}").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
