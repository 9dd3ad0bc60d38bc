"""A `keras.Model` that hands Keras's hooks to its `Step`."""

import contextlib
import functools
from collections.abc import Mapping
from typing import ClassVar

import keras
from keras import ops

from keras_llm.backend import HeadMatrix
from keras_llm.backend.keras_private import jax_state
from keras_llm.checks.compile_checks import ignored_label
from keras_llm.data.process_rows import RowsOfOneProcess
from keras_llm.distribution import world
from keras_llm.training.arrays import as_arrays, check_batch

BACKEND = keras.backend.backend()
if BACKEND != "torch":
    from keras_llm.training.ops.failed_steps import values_given_back
    from keras_llm.training.ops.filled_batches import weights_and_count
    from keras_llm.training.ops.step_function import StepFunction


class StepModel(keras.Model):
    """A `keras.Model` whose `step`, if it is not None, does the work of Keras's trainer."""

    # The `Step` that compile made; None with a loss that is not one of tokens.
    step = None
    # Whether an update may leave weights without a gradient; else Keras warns of them.
    may_leave_weights_unused = False
    # What a model makes of the loss of its labels, where it does: see `Distillation.mixed`.
    mixed = None
    # What reads batches of other forms than Keras's, where the model takes such: a `BatchReader`.
    reader = None
    # The `Run` of the `fit` that runs.
    run = None
    # The `FirstBatch` that waits for the first step of a `fit`, and the one that sees it run.
    _waiting = _watching = None
    # On JAX and TensorFlow, by kind.
    _step_functions: ClassVar[dict] = {}

    # Keras's hooks: one batch

    def __call__(self, inputs, *args, **kwargs):
        """Keras's, which takes other mappings and lists of numbers for what is no input."""
        if self.reader is not None:
            inputs = as_arrays(dict(inputs) if isinstance(inputs, Mapping) else inputs)
        return super().__call__(inputs, *args, **kwargs)

    def train_step(self, *state_and_data):
        """One batch and its update."""
        *state, data = state_and_data
        data = self.unpack(data)
        if self.step is None:
            self.check_alone()
            return super().train_step(*state, data)
        return self.step.train_batch(*state, data)

    def check_alone(self):
        """Raises `RuntimeError` where Keras's own step would train a model in each process."""
        if (size := world().size) > 1:
            raise RuntimeError(
                "Training by several processes needs a loss of keras_llm, such as "
                "losses.MaskedSparseCategoricalCrossentropy(): with this one each process would "
                f"train a model of its own. Received: loss={self.loss!r}, {size} processes"
            )

    def test_step(self, *state_and_data):
        """One batch of evaluation."""
        *state, data = state_and_data
        data = self.unpack(data)
        if self.step is None:
            return super().test_step(*state, data)
        return self.step.test_batch(*state, data)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of a batch; the logged loss and the metrics are updated on the way."""
        if self._watching is not None:
            self._watching.look_at_predictions(y_pred)
        if self.step is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        return self.step.loss_of_logits(y, y_pred, sample_weight)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics that `compute_loss` did not, and returns all results."""
        labels = y if self.step is None else self.step.loss.labels(y)
        if BACKEND != "torch":
            # Keras itself calls this once, with what `fit` reads, to build its metrics.
            sample_weight, _ = weights_and_count(sample_weight)
        return super().compute_metrics(x, labels, y_pred, sample_weight)

    # Keras's hooks: metrics

    @property
    def metrics(self):
        """The logged loss first, then the metrics."""
        if self.step is None:
            return super().metrics
        return self.step.sums.metrics + [m for m in super().metrics if m.name != "loss"]

    @property
    def metrics_variables(self):
        """All that changes with a batch, apart from the model's and the optimizer's variables."""
        variables = super().metrics_variables
        return variables if self.step is None else [*variables, *self.step.variables]

    def get_metrics_result(self):
        """All results by name, the logged loss first.

        Where several processes train, those of all of them: each has to call it.
        """
        metrics = self.metrics
        if self.step is None or self.step.sums.mean not in metrics:
            # A subclass keeps metrics of its own, as in Keras's guides.
            return super().get_metrics_result()
        others = {}
        with self.step.metrics_of_all():
            for metric in [m for m in metrics if m not in self.step.sums.metrics]:
                # Keras's container of metrics may be empty.
                result = metric.result() if getattr(metric, "built", True) else {}
                others |= result if isinstance(result, dict) else {metric.name: result}
            return self.step.sums.results(others)

    def _initialize_ddp(self):
        # From Keras 3.16 on, where a group of processes is there, Keras would train a copy of the
        # model that means over processes, not over tokens. Where it calls this no more, our step
        # still does not use that copy.
        pass

    def _flatten_metrics_in_order(self, logs):
        # Keras would look the results up by the metrics' names, of which two may be one. Where it
        # stops calling this, train_on_batch returns one of the two twice.
        if self.step is None:
            return super()._flatten_metrics_in_order(logs)
        results = list(logs.values())
        return results[0] if len(results) == 1 else results

    def _symbolic_build(self, iterator=None, *args, **kwargs):
        # Keras builds its own losses and metrics with a batch as the data has it. Where it stops
        # calling this, those cannot be used with batches that have their labels inside of x.
        if self.reader is not None and iterator is not None:
            iterator = ((*place, [self.unpack(batch)]) for *place, [batch] in iterator)
        if self.step is not None and self.built:
            # Keras would make state of all variables, though this process keeps a part of it.
            self.step.build_optimizer()
        try:
            super()._symbolic_build(iterator, *args, **kwargs)
        except RuntimeError as error:
            # Keras advises to build the model, where ids of a wrong type are what is wrong.
            if isinstance(error.__context__, TypeError):
                raise error.__context__ from None
            raise

    # Keras's hooks: functions of many batches

    def make_train_function(self, force=False):
        """Keras's, for the step; what waits for the first batch sees it."""
        if self.train_function is None or force:
            function = self._make("train", super().make_train_function)

            def one_step(*state_and_data):
                if self.run is not None and self.run.is_passing:
                    return self.pass_by(*state_and_data)
                if self._waiting is None:
                    return function(*state_and_data)
                first_batch, self._waiting = self._waiting, None
                # In a compiled function predictions have no values.
                is_seen = self.run_eagerly or BACKEND == "torch"
                self._watching = first_batch if is_seen else None
                try:
                    return first_batch.run(function, *state_and_data)
                finally:
                    self._watching = None

            self.train_function = one_step
        return self.train_function

    def pass_by(self, *state_and_data):
        """Takes what a step would, and does nothing: the batch was trained before."""
        *state, data = state_and_data
        if not isinstance(data, list):
            # An iterator, on JAX and TensorFlow.
            for _ in range(self.steps_per_execution):
                next(data)
        return ({}, *state) if state else {}

    def make_test_function(self, force=False):
        """Keras's, for the step."""
        if self.test_function is None or force:
            self.test_function = self._make("test", super().make_test_function)
        return self.test_function

    def make_predict_function(self, force=False):
        """Keras's."""
        if self.predict_function is None or force:
            self.predict_function = self._make("predict", super().make_predict_function)
        return self.predict_function

    def jax_state_sync(self):
        """Gives the variables their values, which Keras has elsewhere in an epoch on JAX.

        Keras has this method there only, and does not know which were frozen since the last step.
        """
        if BACKEND != "jax":
            return
        state = jax_state(self)
        parts = ("trainable_variables", "non_trainable_variables")
        if state:
            for function in self._step_functions.values():
                values = function.sorted([state[part] for part in parts])
                for part, value in zip(parts, values, strict=True):
                    state[part] = value
        super().jax_state_sync()

    def _make(self, kind: str, make):
        """Keras's function of a kind, which is not left on the model."""
        name, step = f"{kind}_function", f"{kind}_step"

        def made():
            own, before, jit_compile = vars(self), getattr(self, name), self.jit_compile
            given = own.get(step)
            if BACKEND == "torch":
                # For the graphs of the step: all of it, with the backward pass, the optimizer and
                # Keras's own bookkeeping, would be compiled in pieces.
                self.jit_compile = jit_compile and self.step is None
            else:
                # jax.jit caches by the function, and for other variables it must be another one.
                own[step] = functools.partial(getattr(self, step))
            try:
                make(force=True)
                return getattr(self, name)
            finally:
                self.jit_compile = jit_compile
                setattr(self, name, before)
                if BACKEND != "torch":
                    own.pop(step)
                    own |= {} if given is None else {step: given}

        if BACKEND == "torch":
            return made()
        if self.step is None:
            function = made()
        else:
            if kind == "train" and self.built and not self.optimizer.built:
                # For what is trainable now: a callback may freeze a layer before the first batch.
                self.optimizer.build(self.trainable_variables)
            self.step.build()
            function = StepFunction(self.step, made, kind == "train")
            self._step_functions[kind] = function
        return values_given_back(self, function) if BACKEND == "jax" else function

    # What a step asks of a model

    def modes_kept(self):
        """Context manager in which training may change the modes of what is inside the model."""
        return contextlib.nullcontext()

    def unpack(self, data):
        """A batch as `(x, y, sample_weight)`."""
        kind = RowsOfOneProcess if isinstance(data, RowsOfOneProcess) else tuple
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.reader is not None:
            sample_weight = self.reader.weights(x, sample_weight)
            x, y = self.reader.read(x, y, ignored_label(self.loss))
        # In TensorFlow's graph a batch may have no shape.
        if self.step is not None and kind is tuple and BACKEND != "tensorflow":
            check_batch(x)
        if BACKEND != "torch" and self.step is not None:
            sample_weight, self.step.filled = weights_and_count(sample_weight)
        return kind((x, y, sample_weight))

    def penalty(self):
        """What the layers add to the loss of every token: regularisation and `add_loss`."""
        return sum((ops.sum(loss) for loss in self.losses), 0.0)

    def with_host_facts(self, x, on_host):
        """The inputs `x`, with what layers have to know of their values without asking the device.

        Args:
            x: The inputs on the device.
            on_host: The same before they were copied there.
        """
        return x

    def why_logits(self) -> str:
        """Why the logits cannot be computed from `head_matrix`; empty where they can."""
        return "the model has no head of its own"

    def head_matrix(self) -> HeadMatrix:
        """What makes the logits from the backbone's hidden vectors."""
        raise NotImplementedError

    def call_ends_with_head(self) -> bool:
        """Whether the predictions are `head(backbone(inputs))`."""
        return False

    def flops_per_token(self, length: int) -> float | None:
        """Operations that training spends on a token, in a sequence of `length`, if known."""
        return None
