"""A `keras.Model` whose training step is exact per token: Keras's hooks, handed to `model.step`."""

import contextlib
import functools
from typing import ClassVar

import keras
from keras import ops

from keras_llm.backend.keras_private import jax_state
from keras_llm.checks.compile_checks import compile_messages
from keras_llm.checks.first_batch import FirstBatch
from keras_llm.checks.sanity_warning import warn
from keras_llm.losses import MaskedLoss
from keras_llm.names_elsewhere import check_names
from keras_llm.training.arrays import as_arrays, check_not_negative, class_weights
from keras_llm.training.compile_arguments import (
    COMPILE_NAMES,
    FIT_NAMES,
    check_arguments,
    check_not_of_torch,
    resolve,
)
from keras_llm.training.shared_sums import SharedSums, flat
from keras_llm.training.step_callback import StepCallback, with_callbacks
from keras_llm.training.training_logs import TrainingLogs

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    from keras_llm.training.torch.step import TorchStep as BackendStep
else:
    from keras_llm.training.ops.step import CompiledStep as BackendStep
    from keras_llm.training.ops.step_function import StepFunction


class TokenModel(keras.Model):
    """A `keras.Model` whose `loss`, `val_loss` and metrics are exact per token.

    Keras logs the mean of its batches' means. Compiled with one of our losses, this one has a
    `step`, which does in sums what Keras's own step does in means. With any other loss `step` is
    None, and Keras's own step runs unchanged.
    """

    # The `Step` that compile made; None with a loss that is not one of tokens.
    step = None
    # The `FirstBatch` that waits for the first step of a `fit`, and the one that sees it run.
    _waiting = _watching = None
    # What compile has warned of.
    _warned = ()
    _is_fitting = False
    # On JAX and TensorFlow, by kind.
    _step_functions: ClassVar[dict] = {}

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
        micro_batch_size: int | str | None = None,
        **kwargs,
    ):
        """Keras's `compile`, with the loss and the metrics checked against each other.

        Warns, with a `SanityWarning`, when a metric counts tokens that the loss ignores, when the
        loss and the model disagree about logits, and when the learning rate is far from usual.
        Arguments that are not named here are as for `keras.Model.compile`.

        Args:
            jit_compile: On PyTorch, whether `torch.compile` makes kernels of the backbone's graph.
                `"auto"` does it where it pays: where compiling takes less than a tenth of the time
                that is to come. `explain` shows what was decided.
            micro_batch_size: How many rows of `fit`'s batch are in memory at once; the update is
                that of the whole batch. `"auto"` starts with the whole batch and, on PyTorch,
                halves when memory runs out.

        Raises:
            TypeError: the optimizer or the loss is one of PyTorch, or an argument has another name
                here.
            ValueError: the loss has `reduction="none"`, which leaves nothing to minimise;
                `loss_weights` come with one of our losses; `micro_batch_size` comes with another
                loss or is not a number of rows.
            RuntimeError: training would run on several devices, where the backend cannot.
        """
        check_names(TokenModel.compile, kwargs, COMPILE_NAMES)
        check_not_of_torch(optimizer=optimizer, loss=loss)
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
        metrics, weighted_metrics = resolve(metrics), resolve(weighted_metrics)
        optimizer = keras.optimizers.get(optimizer)
        kwargs |= {
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
            "auto_scale_loss": auto_scale_loss,
        }
        is_ours = isinstance(loss, MaskedLoss)
        check_arguments(loss if is_ours else None, loss_weights, micro_batch_size)
        if self.step is not None:
            self.step.give_back_accumulation()
        self.step, self._step_functions = None, {}
        if is_ours:
            sums = SharedSums(loss, metrics, weighted_metrics)
            # Keras gets what is not counted there; an empty list clears what it had before.
            again = [] if self.compiled else None
            left, left_weighted = sums.left or again, sums.left_weighted or again
            super().compile(optimizer, metrics=left, weighted_metrics=left_weighted, **kwargs)
            self.loss = loss
            self.step = BackendStep(self, self.optimizer, sums, micro_batch_size, jit_compile)
        else:
            super().compile(optimizer, loss, loss_weights, metrics, weighted_metrics, **kwargs)
        every_metric = [*flat(metrics), *flat(weighted_metrics)]
        self._warned = compile_messages(self, optimizer, loss, every_metric)
        for message in self._warned:
            warn(message)

    # Keras's hooks: one batch

    def train_step(self, *state_and_data):
        """One batch and its update."""
        if self.step is None:
            return super().train_step(*state_and_data)
        return self.step.train_batch(*state_and_data)

    def test_step(self, *state_and_data):
        """One batch of evaluation."""
        if self.step is None:
            return super().test_step(*state_and_data)
        return self.step.test_batch(*state_and_data)

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
        """All results by name, the logged loss first."""
        if self.step is None:
            return super().get_metrics_result()
        others = {}
        for metric in self.metrics[len(self.step.sums.metrics) :]:
            if not getattr(metric, "built", True):
                continue  # Keras's container of metrics, empty
            result = metric.result()
            others |= result if isinstance(result, dict) else {metric.name: result}
        return self.step.sums.results(others)

    def _flatten_metrics_in_order(self, logs):
        # Keras would look the results up by the metrics' names, of which two may be one. Where it
        # stops calling this, train_on_batch returns one of the two twice.
        if self.step is None:
            return super()._flatten_metrics_in_order(logs)
        results = list(logs.values())
        return results[0] if len(results) == 1 else results

    # Keras's hooks: functions of many batches

    def make_train_function(self, force=False):
        """Keras's, for the step; what waits for the first batch sees it."""
        if self.train_function is None or force:
            function = self._make("train", super().make_train_function)

            def one_step(*state_and_data):
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
        """Keras's, on JAX: gives the variables their values, also those frozen since the step."""
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

        if BACKEND == "torch" or self.step is None:
            return made()
        if kind == "train" and self.built and not self.optimizer.built:
            # For what is trainable now: a callback may freeze a layer before the first batch.
            self.optimizer.build(self.trainable_variables)
        self.step.build()
        self._step_functions[kind] = StepFunction(self.step, made)
        return self._step_functions[kind]

    # Calls of the user

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=None,
        class_weight=None,
        sample_weight=None,
        **kwargs,
    ):
        """Keras's `fit`; with a loss of tokens its logs have what `TrainingLogs` adds.

        Warns, with a `SanityWarning`, of what is wrong with the first batch. `class_weight` weighs
        each token by its label; it needs `y` as an array.
        """
        check_names(keras.Model.fit, kwargs, FIT_NAMES)
        x, y, sample_weight = self._prepared(x, y, sample_weight, class_weight)
        if self.step is not None:
            class_weight = None
        if shuffle is None:
            # A DataLoader has an order of its own, and Keras warns that it does not change it.
            shuffle = not hasattr(x, "batch_sampler")
        if isinstance(validation_data, tuple):
            validation_data = tuple(as_arrays(part) for part in validation_data)
        ours = []
        if self.step is not None:
            ours += [StepCallback(self.step, callbacks), TrainingLogs()]
        if type(self).compute_loss is TokenModel.compute_loss:
            # Nobody knows what another one does with labels.
            ours.append(FirstBatch((x, y, sample_weight), self._warned))
            self._waiting = ours[-1]
        kwargs |= {
            "validation_split": validation_split,
            "validation_data": validation_data,
            "shuffle": shuffle,
            "class_weight": class_weight,
            "sample_weight": sample_weight,
        }
        callbacks = with_callbacks(ours, callbacks)
        self._is_fitting = True
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        finally:
            self._waiting, self._is_fitting = None, False
            if self.step is not None:
                self.step.end_fit()

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Keras's `evaluate`. Called by a callback of `fit`, it leaves that epoch's logs alone."""
        x, y, sample_weight = self._prepared(x, y, sample_weight)
        call = functools.partial(
            super().evaluate,
            *(x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict),
            **kwargs,
        )
        if self.step is None:
            return call()
        # Keras's mark of the validation that fit makes, when the epoch's batches are over.
        is_validation = kwargs.get("_use_cached_eval_dataset", False)
        if is_validation:
            self.step.end_epoch()
        with self._metrics_kept(unless=is_validation):
            self.step.begin_test(callbacks)
            try:
                return call()
            finally:
                self.step.end_test()

    def predict(self, x, *args, **kwargs):
        """Keras's `predict`."""
        return super().predict(as_arrays(x), *args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Keras's `train_on_batch`; `class_weight` weighs each token by its label."""
        x, y, sample_weight = self._prepared(x, y, sample_weight, class_weight)
        class_weight = class_weight if self.step is None else None
        with self._metrics_kept():
            return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Keras's `test_on_batch`."""
        x, y, sample_weight = self._prepared(x, y, sample_weight)
        with self._metrics_kept():
            return super().test_on_batch(x, y, sample_weight, return_dict)

    def _prepared(self, x, y, sample_weight, class_weight=None):
        """The arguments as arrays, the class weights as weights of tokens."""
        x, y, sample_weight = as_arrays(x), as_arrays(y), as_arrays(sample_weight)
        if self.step is None:
            return x, y, sample_weight
        if class_weight is not None:
            if sample_weight is not None:
                raise ValueError(
                    "class_weight and sample_weight exclude each other: multiply the weights. "
                    f"Received: class_weight={class_weight} and a sample_weight"
                )
            if not hasattr(self.step.loss.labels(y), "shape"):
                raise ValueError(
                    "class_weight needs the labels as an array, fit(x, y, class_weight=...). With "
                    "other data put the weights into a focal loss, gamma=0 and alpha=[one number a "
                    f"class]. Received: y={type(y).__name__}"
                )
            sample_weight = class_weights(self.step.loss.labels(y), class_weight)
        elif sample_weight is not None and self.step.loss.reduction != "sum":
            check_not_negative(sample_weight)
        return x, y, sample_weight

    @contextlib.contextmanager
    def _metrics_kept(self, unless: bool = False):
        """Context manager for what a callback calls in the middle of an epoch's sums."""
        if unless or self.step is None or not self._is_fitting:
            yield
            return
        if BACKEND == "jax":
            # In the middle of an epoch JAX has the variables' values elsewhere.
            self.jax_state_sync()
        variables = self.metrics_variables
        before = [ops.copy(variable) for variable in variables]
        try:
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    # What a step asks of a model

    def penalty(self):
        """What the layers add to the loss of every token: regularisation and `add_loss`."""
        return sum((ops.sum(loss) for loss in self.losses), 0.0)

    def why_logits(self) -> str:
        """Why the logits cannot be computed from `head_matrix`; empty where they can."""
        return "the model has no head of its own"

    def head_matrix(self):
        """The kernel `[d_model, vocab]` and the bias (or None) that make the logits."""
        raise NotImplementedError

    def call_ends_with_head(self) -> bool:
        """Whether the predictions are `head(backbone(inputs))`."""
        return False

    def flops_per_token(self, length: int) -> float | None:
        """Operations that training spends on a token, in a sequence of `length`, if known."""
        return None

    # Saving

    def get_compile_config(self):
        """What `compile` was called with, serialised."""
        if self.step is None:
            return super().get_compile_config()
        self.step.give_back_accumulation()
        try:
            config = super().get_compile_config()
        finally:
            self.step.take_over_accumulation()
        serialize = keras.saving.serialize_keras_object
        arguments = {"loss": self.loss, **self.step.sums.arguments}
        config |= {key: serialize(value) for key, value in arguments.items()}
        return config | {"micro_batch_size": self.step.micro_batch_size}

    def compile_from_config(self, config):
        """Compiles as `get_compile_config` says."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)
