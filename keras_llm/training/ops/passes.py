"""What Keras compiles of the training step on JAX and TensorFlow: a function of its state."""

import keras
import numpy as np
from keras import ops

from keras_llm.backend.keras_private import batches_through
from keras_llm.backend.ops.device_rows import devices_of_rows
from keras_llm.counted_tokens import skipped_weights
from keras_llm.training.arrays import has_rows
from keras_llm.training.forward_pass import unit_of
from keras_llm.training.ops.empty_batches import without_empty
from keras_llm.training.ops.filled_batches import (
    filled_up,
    missing_rows,
    with_count,
    with_ignored_rows,
    without_weight,
)
from keras_llm.training.ops.gradients import (
    apply_if,
    apply_unless,
    assign,
    clear,
    eagerly,
    for_each_piece,
    value_and_gradients,
    variables_allowed,
    when_taken,
    zeros,
    zeros_like,
)
from keras_llm.training.ops.step_function import check_one_replica
from keras_llm.training.ops.update_guard import UpdateGuard
from keras_llm.training.shared_sums import flat
from keras_llm.training.step import Step

BACKEND = keras.backend.backend()


class CompiledPasses(Step):
    """The part of `CompiledStep` that Keras compiles, once for each shape of a batch.

    What is kept between two batches are Keras variables, which JAX hands in and out with the
    metrics' own: gradients, tokens and batches of the window, and the sum of the gradients' norms.
    `micro_batch_size="auto"` stays with the whole batch: a compiled function cannot go on after
    memory has run out.
    """

    def __init__(self, model, *arguments):
        check_one_replica(model)
        super().__init__(model, *arguments)
        self.piece = None if self.micro_batch_size == "auto" else self.micro_batch_size
        # Batches, and tokens divided by the unit; the sum of the norms, and their number.
        self.window, self.norms = zeros((2,), "window"), zeros((2,), "gradient_norms")
        self.unit, self.guard = None, UpdateGuard()
        self.trained, self.gradients = None, []
        # How many rows of the batch that is traced were added, where a metric has to know.
        self.filled = 0
        # How often a step was traced.
        self.traces = 0

    # State

    @property
    def variables(self) -> list:
        """What is kept between two batches."""
        self.build()
        return [*self.gradients, self.window, self.norms, *self.guard.variables]

    @property
    def adds_gradients(self) -> bool:
        """Whether an update has the gradients of several passes."""
        return self.accumulation > 1 or self.piece is not None

    def build(self):
        """Creates the accumulated gradients, outside of any function that is compiled."""
        if self.adds_gradients and self.trained is None and self.model.built:
            self.trained = self.model.trainable_variables
            self.gradients = [zeros_like(v, "accumulated_gradient") for v in self.trained]

    def gradients_of(self, variables) -> list:
        """The variables that hold the gradients of some of the model's variables."""
        held = {id(v): gradient for v, gradient in zip(self.trained, self.gradients, strict=True)}
        return [held[id(variable)] for variable in variables]

    # Batches

    def batches(self, data, batch_size, steps, shuffle):
        """Where batches are spread over devices, those of Keras, filled up: see `fill_up`.

        On TensorFlow those of Keras, none of them empty.
        """
        if devices_of_rows() == 1 and (BACKEND == "jax" or has_rows(data[0])):
            return data, shuffle

        def filled(batches):
            for batch in batches:
                parts = self.fill_up(*keras.utils.unpack_x_y_sample_weight(batch))
                yield keras.utils.pack_x_y_sample_weight(*parts)

        change = filled if BACKEND == "jax" else without_empty
        options = {"batch_size": batch_size, "steps_per_epoch": steps, "shuffle": shuffle}
        changed = batches_through(change, data, **options)
        return (data, shuffle) if changed is None else ((changed, None, None), False)

    def fill_up(self, x, y, sample_weight):
        """A batch of which each device gets as many rows: others are added that do not count."""
        devices = devices_of_rows()
        if devices == 1:
            return x, y, sample_weight
        missing = missing_rows(x, devices)
        x, y = filled_up(x, missing), with_ignored_rows(y, missing, self.loss)
        sample_weight = without_weight(sample_weight, missing)
        if any(m is not None for m in flat([self.sums.left, self.sums.left_weighted])):
            sample_weight = with_count(sample_weight, missing, devices)
        return x, y, sample_weight

    @skipped_weights()
    def train_batch(self, *state_and_data):
        """One batch, and an update if enough batches are there."""
        self.traces += 1
        *state, data = state_and_data
        if not state:
            with when_taken(data):
                return self.train(data)
        return self.with_state(state[0], lambda: self.train(data))

    def test_batch(self, *state_and_data):
        """One batch of evaluation."""
        self.traces += 1
        *state, data = state_and_data
        if not state:
            return self.test(data)
        return self.with_state(state[0], lambda: self.test(data))

    def with_state(self, state, function):
        """Runs a function with JAX's state in the variables; returns its result and the state."""
        model = self.model
        groups = [model.trainable_variables, model.non_trainable_variables, model.metrics_variables]
        if len(state) == 4:
            groups.insert(2, self.optimizer.variables)
        mapping = [
            pair
            for group, values in zip(groups, state, strict=True)
            for pair in zip(group, values, strict=True)
        ]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            result = function()
        return result, tuple([scope.get_current_value(v) for v in group] for group in groups)

    def train(self, data):
        """One batch, and an update if enough batches are there; returns the logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        positions = self.note_shape(y)
        # One unit for all batches: a window may have batches of several shapes.
        self.unit = self.unit or unit_of(positions)
        if not self.model.built:
            # TensorFlow traces the first step of a model before anything has built it.
            self.model(x, training=False)
        variables = self.model.trainable_variables
        if not self.optimizer.built:
            eagerly(lambda: self.optimizer.build(variables))
        eagerly(self.build)
        if self.held is not None and BACKEND == "tensorflow" and self.model.run_eagerly:
            self.held.append(data)
        sums = [v for metric in self.model.metrics for v in metric.variables]
        before = self.guard.begin_batch(sums, self.model.non_trainable_variables)
        passes = []
        data = x, y, sample_weight, self.rows_of_data(x)
        for_each_piece(self.piece, data, lambda rows: passes.append(self.gradient(rows, variables)))
        self.guard.end_batch(before)
        if self.adds_gradients:
            self.window.assign(self.window + np.array([1.0, 0.0], "float32"))
            full = None if self.accumulation == 1 else self.window[0] >= self.accumulation
            changed = [*variables, *self.optimizer.variables, *self.variables]
            apply_if(full, lambda: self.update(variables), changed)
        else:
            self.apply(variables, passes[0])
        return self.model.get_metrics_result()

    def gradient(self, data, variables):
        """Forward and backward of one micro-batch; its gradient, or None where it was added up."""
        x, y, sample_weight, are_of_data = data
        model, optimizer = self.model, self.optimizer
        others = [*model.non_trainable_variables, *optimizer.variables, *model.metrics_variables]

        def objective():
            passed = self.forward(x, y, sample_weight, training=True, unit=self.unit)
            return optimizer.scale_loss(passed.objective), passed[1:]

        (_, (tokens, y_pred)), gradients = value_and_gradients(objective, variables, others)
        self.count_logits(y_pred, y, sample_weight, are_of_data)
        if not self.adds_gradients:
            return gradients
        for total, gradient in zip(self.gradients_of(variables), gradients, strict=True):
            if gradient is not None:
                total.assign(total + ops.cast(gradient, "float32"))
        if self.sums_gradients:
            added = ops.stack([ops.zeros((), "float32"), ops.cast(tokens / self.unit, "float32")])
            self.window.assign(self.window + added)
        return None

    def test(self, data):
        """One batch of evaluation; returns the logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self.forward(x, y, sample_weight, training=False).y_pred
        self.count_logits(y_pred, y, sample_weight, self.rows_of_data(x))
        return self.model.get_metrics_result()

    def rows_of_data(self, x):
        """Which rows of a batch were not added by `fill_up`; None for all of them."""
        if not self.filled:
            return None
        count = keras.tree.flatten(x)[0].shape[0]
        return np.arange(count) < count - self.filled

    def count_logits(self, y_pred, y, sample_weight, are_of_data):
        """Brings the metrics that need logits up to date."""
        if y_pred is None:
            return
        data = y, y_pred, sample_weight
        if are_of_data is not None:
            kept = np.flatnonzero(are_of_data)
            if not len(kept):
                return
            data = keras.tree.map_structure(lambda t: None if t is None else t[kept], data)
        y, y_pred, sample_weight = data
        # Keras creates its metrics with their first batch.
        with variables_allowed():
            self.model.compute_metrics(None, y, y_pred, sample_weight=sample_weight)

    # Updates

    def update(self, variables):
        """Updates the variables from the window, and empties it."""
        held = self.gradients_of(variables)
        divisor = 1.0
        if self.sums_gradients:
            # A window with nothing to count has gradient 0 already.
            divisor = ops.maximum(self.window[1], np.finfo("float32").tiny)
        self.apply(variables, [gradient / divisor for gradient in held])
        clear([*held, self.window])

    def apply(self, variables, gradients):
        """Notes the norm of the gradients and hands them to the optimizer, if they are finite."""
        known = [ops.cast(gradient, "float32") for gradient in gradients if gradient is not None]
        squares = [ops.sum(ops.square(gradient)) for gradient in known]
        norm = ops.sqrt(sum(squares, ops.zeros((), "float32")))
        scale = getattr(self.optimizer, "dynamic_scale", None)
        skip = self.guard.decide(norm, overflows=scale is not None)
        if known:
            self.note_norm(norm, scale, skip)
        changed = [*variables, *self.optimizer.variables]
        apply_unless(skip, lambda: self.optimize(variables, gradients), changed)

    def optimize(self, variables, gradients):
        """Hands the gradients to the optimizer."""
        optimizer = self.optimizer
        if BACKEND == "jax" and hasattr(optimizer, "inner_optimizer"):
            # The loss scale's overflow is a condition in the graph: only stateless_apply has it.
            state = [v.value for v in optimizer.variables]
            values = [v.value for v in variables]
            values, state = optimizer.stateless_apply(state, gradients, values)
            assign([*variables, *optimizer.variables], [*values, *state])
        else:
            optimizer.apply(gradients, variables)

    def note_norm(self, norm, scale, skip):
        """Adds a global norm; of an update that was skipped or overflowed, nothing."""
        left_out = ops.zeros_like(norm, "bool") if skip is None else skip
        if scale is not None:
            left_out = ops.logical_or(left_out, ops.logical_not(ops.isfinite(norm)))
            norm = norm / ops.convert_to_tensor(scale)
        counts = ops.cast(ops.logical_not(left_out), "float32")
        norm = ops.where(left_out, ops.zeros_like(norm), norm)
        self.norms.assign(self.norms + ops.stack([norm, counts]))
