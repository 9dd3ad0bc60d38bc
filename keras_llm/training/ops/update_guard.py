"""Which updates are skipped on JAX and TensorFlow, decided in the compiled step."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_llm.backend.keras_private import all_layers
from keras_llm.training.gradient_outliers import UNKNOWN, is_outlier, remembered
from keras_llm.training.ops.gradients import clear, zeros
from keras_llm.training.step_facts import GuardSettings, SkippedUpdates


class UpdateGuard:
    """Keeps what is not finite out of the epoch's sums and the weights, and counts it."""

    def __init__(self):
        self.settings = GuardSettings()
        # How many updates were not finite, how many of those were the last ones, and how many had
        # an unusually large gradient.
        self.counts = zeros((3,), "skipped_updates")
        # 1 where the loss of a batch of this window was not finite.
        self.lost = zeros((), "lost_batch")
        self.norms = None
        # All that had been skipped at the last look.
        self.known = 0

    @property
    def variables(self) -> list:
        """What is kept between two batches; the counts last."""
        norms = [] if self.norms is None else [self.norms]
        return [*norms, self.lost, self.counts]

    def set(self, settings: GuardSettings):
        """Sets which updates are skipped."""
        if settings == self.settings:
            return
        self.settings, self.norms = settings, None
        if settings.deviations is not None:
            self.norms = zeros((settings.window,), "latest_norms")
            self.norms.assign(self.norms + UNKNOWN)

    def begin_fit(self):
        """Begins a new window and a new row."""
        clear([self.lost])
        self.counts.assign(self.counts * np.array([1, 0, 1], "float32"))
        self.look(self.counts)

    def begin_batch(self, sums, state) -> list:
        """What a batch may spoil, as `end_batch` takes it.

        Args:
            sums: The variables of the epoch's sums, first those of the logged loss.
            state: What layers assign to in a forward pass.
        """
        if not self.settings.skip:
            return []
        sums = [variable for variable in sums if is_float(variable)]
        for variable in sums:
            value = ops.convert_to_tensor(variable)
            variable.assign(ops.where(ops.isfinite(value), value, ops.zeros_like(value)))
        pairs = [(variable, True) for variable in sums]
        pairs += [(v, False) for v in state if is_float(v) and len(v.shape) < 2]
        # Copies: TensorFlow's tensor of a variable is the variable, with what it will hold.
        return [(v, ops.copy(v), is_sum) for v, is_sum in pairs]

    def end_batch(self, before: list):
        """Takes back what a batch with a loss that is not finite has added.

        Where nothing is left, the sums become NaN until the next batch: a loss of 0 would be wrong.
        """
        if not before:
            return
        total, kept, _ = before[0]
        bad = ops.logical_not(ops.isfinite(ops.sum(ops.convert_to_tensor(total))))
        is_empty = kept[1] == 0
        for variable, value, is_sum in before:
            if is_sum:
                value = ops.where(is_empty, ops.cast(np.nan, value.dtype), value)
            variable.assign(ops.where(bad, value, ops.convert_to_tensor(variable)))
        lost = ops.convert_to_tensor(self.lost)
        self.lost.assign(ops.maximum(lost, ops.cast(bad, "float32")))

    def decide(self, norm, overflows: bool):
        """Whether an update is skipped; None where none ever is.

        Args:
            norm: The global norm of its gradients.
            overflows: Whether a norm that is not finite is the loss scale's, which skips by itself.
        """
        if not self.settings.skip:
            return None
        bad = ops.convert_to_tensor(self.lost) > 0
        if not overflows:
            bad = ops.logical_or(bad, ops.logical_not(ops.isfinite(norm)))
        outlier = ops.zeros_like(bad)
        if self.norms is not None:
            recent = ops.convert_to_tensor(self.norms)
            is_far = is_outlier(norm, recent, self.settings.deviations)
            outlier = ops.logical_and(is_far, ops.isfinite(norm))
            self.norms.assign(remembered(norm, recent))
        clear([self.lost])
        total, in_a_row, outliers = ops.unstack(ops.convert_to_tensor(self.counts))
        one = ops.cast(bad, "float32")
        more = ops.cast(outlier, "float32")
        self.counts.assign(ops.stack([total + one, (in_a_row + one) * one, outliers + more]))
        return ops.logical_or(bad, outlier)

    def look(self, counts) -> SkippedUpdates:
        """What was skipped, from the values of `counts`: it is looked at after every batch."""
        total, in_a_row, outliers = (int(n) for n in np.asarray(ops.convert_to_tensor(counts)))
        before, self.known = self.known, total + outliers
        return SkippedUpdates([0] if self.known > before else [], total, in_a_row, outliers)


def is_float(variable) -> bool:
    """Whether a variable can be infinite."""
    return "float" in keras.backend.standardize_dtype(variable.dtype)


@contextlib.contextmanager
def layers_seen(model, seen):
    """Context manager in which `seen(path, inputs, outputs)` is called after each layer."""
    watched = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Layer)]

    def watching(layer, call):
        def watched_call(*args, **kwargs):
            outputs = call(*args, **kwargs)
            seen(layer.path, (args, kwargs), outputs)
            return outputs

        return watched_call

    for layer in watched:
        vars(layer)["call"] = watching(layer, layer.call)
    try:
        yield
    finally:
        for layer in watched:
            del vars(layer)["call"]
