"""Validation every few steps, for epochs that last hours."""

from collections.abc import Sequence

import keras

from keras_llm.arguments import check_positive_int
from keras_llm.callbacks.prompts import checked_prompts
from keras_llm.training.arrays import three_parts


class Evaluation(keras.callbacks.Callback):
    """Evaluates the model, and continues prompts, every few steps of `fit`.

    The numbers, `val_loss` and the metrics, go to the run's log points: to `history.steps` and to
    every callback that has `on_log`. They are in the logs of the epoch's end too, where they are
    those of the last evaluation. The sums of the epoch that is being trained are left alone.

    Callbacks that Keras calls once an epoch act after every evaluation if they are given here: for
    them an epoch is an evaluation, counted from 0, and `loss` is the mean since the last log point.

    Args:
        data: As `validation_data` of `fit`: a tuple `(x, y)`, `(x, y, sample_weight)`, or a loader.
        every_steps: Batches between two evaluations.
        prompts: A text or several, for models with `generate(ids, ...)`; their continuations are
            `logs["samples"]`, a dictionary from prompt to text.
        tokenizer: What encodes the prompts and decodes what is generated; needed with `prompts`.
        callbacks: Such as `keras.callbacks.EarlyStopping("val_loss", patience=3)` or a
            `keras.callbacks.ModelCheckpoint` that saves the best weights.
        batch_size: Rows of a batch, where `data` is arrays.
        name: Where there are several evaluations, each has one: with `"news"` the logs have
            `val_news_loss`. The callbacks inside see `val_loss`.
        **generate: What else `model.generate` is given, such as `max_new_tokens=40`.

    Raises:
        TypeError: a callback, a prompt or the tokenizer is none.
        ValueError: `every_steps` or `batch_size` is not a positive integer, `name` is no string or
            empty, there is no data, or prompts come without a tokenizer.

    Example:
    >>> import numpy as np
    >>> from keras_llm import callbacks, losses, models
    >>> model = models.CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    >>> x, y = np.array([[1, 2, 3]] * 8), np.array([[2, 3, 4]] * 8)
    >>> evaluation = callbacks.Evaluation((x, y), every_steps=3)
    >>> history = model.fit(x, y, batch_size=1, verbose=0, callbacks=[evaluation])
    >>> [point["step"] for point in history.steps if "val_loss" in point]
    [3, 6]
    """

    # Between two evaluations it does nothing.
    reads_logs_when_they_are_computed = True

    def __init__(
        self,
        data,
        every_steps: int,
        prompts: str | Sequence[str] = (),
        tokenizer=None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        batch_size: int | None = None,
        name: str | None = None,
        **generate,
    ):
        super().__init__()
        self.data, self.batch_size, self.generate = data, batch_size, generate
        if name is not None and not (name and isinstance(name, str)):
            raise ValueError(f"name must be a string that is not empty. Received: name={name!r}")
        self.prefix = "val_" if name is None else f"val_{name}_"
        self.every_steps = check_positive_int(every_steps, "every_steps")
        if isinstance(data, tuple):
            three_parts(data, "data")
        if data is None:
            raise ValueError("data must be what to evaluate on, such as (x, y). Received: None")
        if batch_size is not None:
            check_positive_int(batch_size, "batch_size")
        self.prompts, self.tokenizer = checked_prompts(prompts, tokenizer), tokenizer
        self.callbacks = keras.tree.flatten(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, keras.callbacks.Callback):
                raise TypeError(f"callbacks must be Keras callbacks. Received: {callback!r}")
        self.logs, self.count = {}, 0

    def set_model(self, model):
        """Takes the model, for its own callbacks too."""
        super().set_model(model)
        for callback in self.callbacks:
            callback.set_model(model)

    def on_train_begin(self, logs=None):
        """Begins a run, in which nothing has been evaluated yet."""
        self.run = self.model.run
        self.logs, self.count, self.last = {}, 0, self.run.position.steps
        for callback in self.callbacks:
            callback.set_params(self.params)
            callback.on_train_begin(logs)

    def on_train_batch_end(self, batch, logs=None):
        """Evaluates where it is time to."""
        steps = self.run.position.steps
        is_due = steps // self.every_steps > self.last // self.every_steps
        self.last = steps
        if is_due:
            self.evaluate()

    def on_epoch_end(self, epoch, logs=None):
        """Adds the last evaluation's numbers, where `fit` has made no validation of its own."""
        for name, value in self.logs.items():
            logs.setdefault(name, value)

    def on_train_end(self, logs=None):
        """Ends its own callbacks, which may put the best weights back."""
        for callback in self.callbacks:
            callback.on_train_end(logs)

    def evaluate(self):
        """Evaluates now, and tells the run and its own callbacks."""
        data = self.data if isinstance(self.data, tuple) else (self.data,)
        x, y, sample_weight = three_parts(data, "data")
        results = self.model.evaluate(
            *(x, y, self.batch_size), verbose=0, sample_weight=sample_weight, return_dict=True
        )
        results = {name: float(value) for name, value in results.items()}
        self.logs = {f"{self.prefix}{name}": value for name, value in results.items()}
        self.run.record(self.logs | ({"samples": self.samples()} if self.prompts else {}))
        # Keras's callbacks make names of files from logs, with an `epoch` of their own.
        point = self.run.history.steps[-1:] or [{}]
        logs = {k: v for k, v in point[0].items() if k not in ("step", "epoch", "samples")}
        logs |= {f"val_{name}": value for name, value in results.items()}
        for callback in self.callbacks:
            callback.on_epoch_begin(self.count)
            callback.on_epoch_end(self.count, logs)
        self.count += 1

    def samples(self) -> dict[str, str]:
        """The model's continuation of each prompt."""
        ids = [self.tokenizer.encode(prompt) for prompt in self.prompts]
        texts = [self.tokenizer.decode(self.model.generate(i, **self.generate)) for i in ids]
        return dict(zip(self.prompts, texts, strict=True))

    def state_dict(self) -> dict:
        """How many evaluations there were, and the last one's numbers."""
        return {"logs": self.logs, "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Goes on after what `state_dict` returned."""
        self.logs, self.count = dict(state["logs"]), state["count"]
