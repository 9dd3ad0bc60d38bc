"""The training step on JAX and TensorFlow, which compile it as one function of its state."""

import time
from contextlib import nullcontext

import keras
import numpy as np
from keras import ops

from keras_llm.backend.host import to_float, to_numpy
from keras_llm.backend.kept_values import values_kept
from keras_llm.backend.keras_private import jax_state
from keras_llm.training.forward_pass import unit_of
from keras_llm.training.ops.gradients import assign, clear, for_each_piece, value_and_gradients
from keras_llm.training.ops.passes import BACKEND, CompiledPasses
from keras_llm.training.ops.update_guard import layers_seen
from keras_llm.training.step_facts import GuardSettings, SkippedUpdates, StepDescription

# So many shapes, and half of an epoch spent on compiling them, are worth a word.
MANY_SHAPES = 8


class CompiledStep(CompiledPasses):
    """`Step` as a function that Keras compiles once for each shape of a batch."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        # How many shapes were compiled, and the seconds that their first calls took.
        self.shapes, self.seconds = 0, 0.0
        self.began = None

    # Epochs

    def apply_update(self):
        """Updates the weights from a short last window."""
        if self.accumulation > 1 and self.batches_in_window():
            self.update(self.model.trainable_variables)

    def batches_in_window(self) -> int:
        """How many batches wait for an update."""
        return int(to_numpy(self.window)[0])

    def begin_fit(self, callbacks):
        """Drops what an interrupted `fit` may have left."""
        self.build()
        clear([*self.gradients, self.window, self.norms])
        self.guard.begin_fit()

    def begin_epoch(self, batches_to_come: int | None):
        """Starts the epoch's sum of norms."""
        clear([self.norms])
        self.began = time.perf_counter(), self.shapes, self.seconds

    def end_epoch(self):
        """Updates from a short last window."""
        self.apply_update()

    # What is not finite

    def set_guard(self, settings: GuardSettings):
        """Sets which updates are skipped."""
        self.guard.set(settings)

    def look(self, wait: bool) -> SkippedUpdates:
        """What has been skipped."""
        return self.guard.look(self.counts_now())

    @property
    def together(self) -> int:
        """The batches of one call."""
        return self.model.steps_per_execution

    def counts_now(self):
        """The counts of what was skipped, which JAX has elsewhere while it trains."""
        return jax_state(self.model).get("metrics_variables", [self.guard.counts])[-1]

    def holding(self, batches):
        """Batches, held on their way to the step."""
        for batch in batches:
            self.held.append(self.model.unpack(batch))
            yield batch

    def gradients_again(self, data, seen):
        """Forward and backward of a batch once more, layer by layer."""
        model, parts = self.model, []
        model.jax_state_sync()
        variables, others = model.trainable_variables, model.non_trainable_variables
        changed = [*model.metrics_variables, *(v for v in others if len(v.shape) < 2)]
        data = keras.tree.map_structure(
            lambda leaf: None if leaf is None else ops.convert_to_tensor(leaf), data
        )
        unit = unit_of(self.note_shape(data[1]))

        def again(rows):
            def objective():
                return self.forward(*rows, training=True, unit=unit).objective, None

            with layers_seen(model, seen):
                objective()
            everything = [*others, *self.optimizer.variables, *model.metrics_variables]
            (loss, _), gradients = value_and_gradients(objective, variables, everything)
            parts.append((loss, *gradients))

        with values_kept(changed):
            for_each_piece(self.piece, data, again)
        loss, *gradients = [
            None if values[0] is None else sum(values) for values in zip(*parts, strict=True)
        ]
        return loss, gradients

    # What others ask

    def compilation_message(self) -> str:
        """What to tell after an epoch that mostly compiled; empty otherwise."""
        began, shapes, seconds = self.began
        shapes, seconds = self.shapes - shapes, self.seconds - seconds
        whole = time.perf_counter() - began
        if shapes < MANY_SHAPES or seconds < whole / 2:
            return ""
        return (
            f"{seconds:.0f} of this epoch's {whole:.0f} s went into compiling the step, once for "
            f"each of {shapes} shapes of a batch. Pad batches to fewer lengths, and drop or fill "
            "up a smaller last batch."
        )

    def count_compilation(self, seconds: float):
        """Notes that a function was compiled, and how long its first call took."""
        if not self.why_eager():
            self.shapes, self.seconds = self.shapes + 1, self.seconds + seconds

    def why_eager(self) -> str:
        """Why the step is not compiled; empty where it is."""
        if self.model.run_eagerly:
            return "compile was given run_eagerly=True"
        if BACKEND == "jax" and not self.model.jit_compile:
            return "compile was given jit_compile=False"
        return ""

    def gradient_norm(self) -> float | None:
        """The mean global norm of this epoch's gradients before clipping; None before any."""
        total, count = to_numpy(self.norms)
        return float(total / count) if count else None

    def running_sums(self):
        """Copies what grows from an epoch's beginning; see `Step.running_sums`.

        Keras has waited for the batch's logs here: the values are read at once.
        """
        with self.values_of_now():
            variables = [*self.sums.summed_variables(), self.norms]
            *sums, (norm, updates) = (to_numpy(v).astype("float64") for v in variables)
            if self.guard.settings.skip:
                # Nothing is left of the epoch yet.
                sums = [np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) for values in sums]
            read = [*sums, norm, updates], to_float(self.optimizer.learning_rate)
        return lambda: read

    def values_of_now(self):
        """Context manager in which variables have the values that JAX keeps while it trains."""
        state, mapping = jax_state(self.model), []
        if state:
            mapping += zip(self.model.metrics_variables, state["metrics_variables"], strict=True)
            values = state.get("optimizer_variables") or ()
            mapping += zip(self.optimizer.variables, values, strict=bool(values))
        return keras.StatelessScope(state_mapping=mapping) if mapping else nullcontext()

    def describe(self) -> StepDescription:
        """What `explain` shows of it."""
        guard = self.guard.settings, int(to_numpy(self.counts_now())[0])
        if why := self.why_eager():
            return self.description("eager", why, "", *guard)
        cost = f"{self.shapes} shapes of a batch so far, in {self.seconds:.0f} s"
        compiling = cost if self.shapes else "once for each shape of a batch"
        if BACKEND == "jax":
            return self.description("xla", "", compiling, *guard)
        return self.description("tensorflow graph", "", compiling, *guard)

    def state_dict(self) -> dict:
        """The window, the epoch's sums."""
        return {
            "variables": [np.array(v) for v in self.variables],
            "metrics": [np.array(v) for v in self.model.metrics_variables],
            "unit": self.unit,
            "tokens_per_update": self.tokens_per_update,
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` returned."""
        assign(self.variables, state["variables"])
        assign(self.model.metrics_variables, state["metrics"])
        self.unit = state["unit"]
        self.tokens_per_update = state["tokens_per_update"]
