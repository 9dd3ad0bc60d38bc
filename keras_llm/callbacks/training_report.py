"""A page that grows while a model trains."""

import dataclasses
import os
import time
import weakref
from collections.abc import Sequence

import keras

from keras_llm.callbacks.prompts import checked_prompts
from keras_llm.callbacks.report_page import EpochRow, ReportPage
from keras_llm.explanation.explain import explain


class TrainingReport(keras.callbacks.Callback):
    """Writes one HTML file about a training: curves, epochs, samples, and what `compile` decided.

    The file needs no network and no other file. It is written when training begins, after every
    epoch and every `Evaluation`, when training ends, and, where that is interrupted, when Python
    exits; a process that is killed leaves the file of the last of these. Between those times it
    does nothing. Curves are over steps, raw and smoothed, where the run has log points (a loss of
    keras_llm, and epochs of more than 10 steps), else by epoch.

    A prompt is continued before training and after every epoch, with the same arguments each time,
    so that one can read how the model learns. Greedy generation, and sampling with a `seed`, do not
    change the random state of the training.

    A callback that is given to `fit` again with `initial_epoch` adds to the epochs that it has.
    Those of an earlier process come with a `TrainingCheckpoint`.

    Args:
        path: The HTML file. An earlier one is overwritten.
        prompts: A text or several, for models with `generate(ids, ...)`.
        tokenizer: What encodes the prompts and decodes what is generated; needed with `prompts`.
        title: The page's heading.
        **generate: What else `model.generate` is given, such as `max_new_tokens=40`,
            `temperature=0.8`, `seed=0`; for a `Seq2SeqTransformer`, `start_id` and `end_id`.

    Raises:
        ImportError: Matplotlib, which draws the curves, is not installed.
        ValueError: prompts without a tokenizer, or for a model that cannot generate.

    Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from keras_llm import callbacks, losses, models
    >>> path = pathlib.Path(tempfile.mkdtemp(), "report.html")
    >>> model = models.CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    >>> x, y = np.array([[1, 2, 3]]), np.array([[2, 3, 4]])
    >>> history = model.fit(x, y, verbose=0, callbacks=[callbacks.TrainingReport(path)])
    >>> "Finished after epoch 1 of 1" in path.read_text(encoding="utf-8")
    True
    """

    # Of several processes the first has it.
    only_writes = True

    def __init__(
        self,
        path: str | os.PathLike,
        prompts: str | Sequence[str] = (),
        tokenizer=None,
        title: str = "Training report",
        **generate,
    ):
        super().__init__()
        self.prompts = checked_prompts(prompts, tokenizer)
        # An error now is better than one after an epoch of training.
        import keras_llm.plots  # noqa: F401

        self.tokenizer = tokenizer
        self.generate = generate
        self.page = ReportPage(path, title, self.prompts)
        self.interruption = None

    def set_model(self, model):
        """Takes the model, and refuses one that cannot continue the prompts."""
        super().set_model(model)
        if self.prompts and not hasattr(model, "generate"):
            raise ValueError(
                "prompts need a model with generate(ids, ...), such as a CausalTransformer. "
                f"Received: a {type(model).__name__}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the page in the first epoch of this `fit`; keeps the rows of earlier epochs."""
        rows = [row for row in self.page.rows if row.epoch <= epoch]
        self.page.rows = rows
        status = f"in epoch {epoch + 1} of {self.params['epochs']}."
        if not rows or rows[-1].epoch != epoch:
            rows.append(EpochRow(epoch, samples=self.samples()))
            self.write(f"Now {status}")
        if self.interruption is not None:
            self.interruption.detach()
        # Called when the callback is deleted or Python exits, unless training ends before. The page
        # holds no reference to the callback or the model.
        self.interruption = weakref.finalize(self, self.page.write, f"Interrupted {status}")
        self.began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        """Adds the epoch to the page."""
        seconds = time.monotonic() - self.began
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self.page.rows.append(EpochRow(epoch + 1, logs, seconds, self.samples()))
        self.write(f"After epoch {epoch + 1} of {self.params['epochs']}.")

    def on_log(self, step, logs):
        """Writes the page with what an evaluation has found."""
        is_evaluation = any(name.startswith("val_") for name in logs)
        if is_evaluation and self.model.run.position.batch > 0:
            self.write(f"After step {step:,}.")

    def on_train_end(self, logs=None):
        """Writes the page for the last time."""
        if self.interruption is None:
            return  # no epoch was asked for
        self.interruption.detach()
        epoch, total = self.page.rows[-1].epoch, self.params["epochs"]
        self.write(f"{'Finished' if epoch == total else 'Stopped'} after epoch {epoch} of {total}.")

    def samples(self) -> tuple[str, ...]:
        """The model's continuation of each prompt."""
        ids = (self.tokenizer.encode(prompt) for prompt in self.prompts)
        return tuple(self.tokenizer.decode(self.model.generate(i, **self.generate)) for i in ids)

    def write(self, status: str):
        """Writes the page."""
        run = getattr(self.model, "run", None)
        self.page.points = [] if run is None else run.history.steps
        self.page.explained = explain(self.model, show=False).to_html()
        self.page.write(status)

    def state_dict(self) -> dict:
        """The epochs on the page."""
        return {"rows": [dataclasses.asdict(row) for row in self.page.rows]}

    def load_state_dict(self, state: dict) -> None:
        """Goes on with the epochs that `state_dict` returned."""
        rows = [row | {"samples": tuple(row["samples"])} for row in state["rows"]]
        self.page.rows = [EpochRow(**row) for row in rows]
