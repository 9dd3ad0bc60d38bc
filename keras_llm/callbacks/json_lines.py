"""The log points of a run in a file that grows."""

import json
import os
from pathlib import Path

import keras


class JSONLines(keras.callbacks.Callback):
    """Writes every log point of a run as a line of JSON, as soon as it is there.

    A line has the `"step"` and the numbers of `StepLog`; those of an evaluation are a line of their
    own. `pandas.read_json(path, lines=True)` reads the file. A run that continues an earlier one
    keeps its lines up to the step at which it goes on; any other run begins the file anew.

    Args:
        path: The file. Folders are made.

    Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from keras_llm import callbacks, losses, models
    >>> path = pathlib.Path(tempfile.mkdtemp(), "log.jsonl")
    >>> model = models.CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    >>> x, y = np.array([[1, 2, 3]] * 20), np.array([[2, 3, 4]] * 20)
    >>> _ = model.fit(x, y, batch_size=1, verbose=0, callbacks=[callbacks.JSONLines(path)])
    >>> [json.loads(line)["step"] for line in path.read_text().splitlines()]
    [10, 20]
    """

    # Of several processes the first has it.
    only_writes = True

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)

    def on_train_begin(self, logs=None):
        """Begins the file, or drops the lines of steps that are trained again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        steps = self.model.run.position.steps
        kept = []
        if steps and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if is_until(line, steps)]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(self, step: int, logs: dict) -> None:
        """Writes a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **logs}, ensure_ascii=False) + "\n")


def is_until(line: str, steps: int) -> bool:
    """Whether a line is whole and of one of the first steps."""
    try:
        return json.loads(line)["step"] <= steps
    except (ValueError, KeyError, TypeError):
        return False
