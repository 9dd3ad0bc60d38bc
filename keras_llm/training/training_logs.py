"""What language-model people look at beside the loss while a model trains."""

import time

import keras

from keras_llm import backend
from keras_llm.backend.host import to_float


class TrainingLogs(keras.callbacks.Callback):
    """Adds to the progress bar and to `fit`'s history:

        learning_rate       of the next update
        gradient_norm       global norm before clipping, the mean over the epoch's updates
        tokens_per_second   tokens that count, over the epoch's time without validation
        peak_memory_gb      the most that the device has held, in 10^9 bytes, where it tells
        mfu                 model FLOPs utilisation, where the device's peak is known

    Utilisation is `tokens_per_second * flops_per_token / peak`, with the model's own
    `flops_per_token` and the peak of dense bfloat16 products. Padding and recomputation do not
    count as work (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B).

    The first epoch's time includes what is compiled in it. `fit` puts one of these before your own
    callbacks, so that they find the numbers in their `logs`.
    """

    # It adds to logs that somebody else reads; it is no reason to compute them.
    reads_logs_when_they_are_computed = True

    def __init__(self):
        super().__init__()
        # Of an epoch that another process has begun.
        self.earlier = {}

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        earlier, self.earlier = self.earlier, {}
        self.began, self.ended = time.perf_counter() - earlier.get("seconds", 0.0), None
        self.updates = earlier.get("updates", int(self.model.optimizer.iterations))

    def on_train_batch_end(self, batch, logs=None):
        """Adds to the progress bar's numbers, when it has new ones."""
        # JAX has the optimizer's variables elsewhere until the epoch ends.
        if logs and keras.backend.backend() != "jax":
            logs.update(self.numbers())

    def on_test_begin(self, logs=None):
        """Stops the clock: validation is not training."""
        self.end_count()

    def on_epoch_end(self, epoch, logs=None):
        """Adds the epoch's numbers."""
        if self.ended is None:
            self.end_count()
        logs.update(self.numbers())

    def end_count(self):
        """Ends the epoch's time and count of tokens, before validation starts its own."""
        step = self.model.step
        self.ended, self.tokens = time.perf_counter(), step.epoch_tokens()
        step.count_updates(self.tokens, int(self.model.optimizer.iterations) - self.updates)

    def state_dict(self) -> dict[str, float]:
        """The time and the updates before the epoch that is not over; empty between two epochs."""
        if self.ended is not None:
            return {}
        return {"seconds": time.perf_counter() - self.began, "updates": self.updates}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on, in the epoch that begins next, with what `state_dict` returned."""
        self.earlier = dict(state)

    def numbers(self) -> dict[str, float]:
        """The numbers that are known, as they are now."""
        model, step = self.model, self.model.step
        seconds = step.of_first((self.ended or time.perf_counter()) - self.began)
        tokens = self.tokens if self.ended is not None else step.epoch_tokens()
        numbers = {
            "learning_rate": to_float(model.optimizer.learning_rate),
            "gradient_norm": step.gradient_norm(),
            "tokens_per_second": tokens / seconds,
            "peak_memory_gb": backend.peak_memory_gb(),
            "mfu": utilisation(model, tokens / seconds),
        }
        return {name: value for name, value in numbers.items() if value is not None}


def utilisation(model, tokens_per_second: float) -> float | None:
    """The share of the device's peak that the model's own operations took, if both are known."""
    peak, length = backend.peak_flops(model.compute_dtype), model.step.length
    flops = model.flops_per_token(length) if peak and length else None
    return None if flops is None else tokens_per_second * flops / peak
