"""The log points of a run in TensorBoard, without TensorFlow."""

import os

import keras


class TensorBoard(keras.callbacks.Callback):
    """Writes every log point of a run for TensorBoard: curves over steps, samples as text.

    `keras.callbacks.TensorBoard` writes a point an epoch and needs TensorFlow; this one writes what
    `StepLog` has, by `torch.utils.tensorboard`, which needs the package `tensorboard` alone. A run
    that continues an earlier one hides the points of steps that it trains again.

    Args:
        directory: Where TensorBoard looks: `tensorboard --logdir DIRECTORY`.

    Raises:
        ImportError: the package `tensorboard` is not installed.
    """

    # Of several processes the first has it.
    only_writes = True

    def __init__(self, directory: str | os.PathLike):
        super().__init__()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard needs the package tensorboard: pip install tensorboard"
            ) from error
        self.directory, self.make_writer, self.writer = os.fspath(directory), SummaryWriter, None

    def on_train_begin(self, logs=None):
        """Opens a file of its own, as TensorBoard wants it for each process."""
        steps = self.model.run.position.steps
        self.writer = self.make_writer(self.directory, purge_step=steps + 1 if steps else None)

    def on_log(self, step: int, logs: dict) -> None:
        """Writes the numbers and the samples of a step."""
        for name, value in logs.items():
            if name == "samples":
                for prompt, text in value.items():
                    self.writer.add_text(prompt, text, step)
            else:
                self.writer.add_scalar(name, value, step)

    def end_run(self) -> None:
        """Closes the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
