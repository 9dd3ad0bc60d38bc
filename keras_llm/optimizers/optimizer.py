"""What both optimizers share: learning rate, weight decay, precision, Keras's hooks."""

import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_llm.names_elsewhere import check_names
from keras_llm.usual_range import UsualRange

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.gradient_clipping import clip_by_global_norm_
    from keras_llm.backend.torch.tensors import count_in_place
else:
    clip_by_global_norm_ = count_in_place = None

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


class Optimizer(keras.optimizers.Optimizer):
    """A Keras optimizer with what language models need of all of them.

    - A schedule is asked for the learning rate of an *update*. Keras asks for that of a micro-step,
      which with `gradient_accumulation_steps=4` runs through the schedule four times too fast.
    - Weight decay is decoupled and leaves out biases and other vectors, and what
      `exclude_from_weight_decay` names; both survive a save.
    - State, accumulated gradients and norms are float32 where variables are bfloat16 or float16.
    - On PyTorch all variables are updated at once; elsewhere one by one, by `update_step`.

    Subclasses write `update_step`; where PyTorch has kernels for many variables, `update_together`,
    and `slot`, which is what those need of a variable. For `explain` they may also write `notes`,
    `usual_ranges` and `usual_learning_rate`: see `keras_llm.usual_range`.

    Args:
        learning_rate: A float, a schedule, or a callable without arguments.
        weight_decay: Times the learning rate, the part of a variable that goes with each update.
            None and 0 are no decay.
        decay_vectors: Whether biases and variables of less than two dimensions decay too.
        exclude_from_weight_decay: Regular expressions; a variable whose path contains a match does
            not decay.
        **kwargs: Keras's own arguments.
    """

    notes: ClassVar[dict[str, str]] = {
        "weight_decay": "pulls the weights towards 0",
        "decay_vectors": "biases and norm scales decay too",
        "exclude_from_weight_decay": "variables whose path matches do not decay",
    }
    usual_ranges: ClassVar[dict[str, UsualRange]] = {}
    # A name that people bring from elsewhere, and what to write instead.
    write_instead: ClassVar[dict[str, str]] = {
        "lr": "learning_rate=...",
        "params": "nothing: fit hands the variables over",
    }

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable,
        weight_decay: float | None,
        decay_vectors: bool,
        exclude_from_weight_decay: str | Sequence[str],
        **kwargs,
    ):
        check_names(type(self), kwargs, self.write_instead)
        super().__init__(
            checked_learning_rate(learning_rate),
            weight_decay=None if weight_decay is None else at_least_0("weight_decay", weight_decay),
            **kwargs,
        )
        self.decay_vectors = bool(decay_vectors)
        self.decay_exclusions = patterns(exclude_from_weight_decay)
        self._prepared = None
        if count_in_place is not None:
            count_in_place(self.variables[0])

    # The global norm of the last gradients before they were clipped, on PyTorch.
    gradient_norm = None

    @property
    def learning_rate(self):
        """The learning rate of the next update; assignable where it is not a schedule."""
        if isinstance(self._learning_rate, LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    def usual_learning_rate(self, parameters: int | None) -> UsualRange | None:
        """The usual peak of the learning rate, for so many parameters; None: not known."""
        return None

    def decays(self, variable: keras.Variable) -> bool:
        """Whether weight decay shrinks `variable`.

        It does not shrink a variable whose path contains a match of an exclusion, nor, unless
        `decay_vectors`, one of less than two dimensions or one named as a bias: some of Keras's
        layers, attention for one, have biases of two. Once the optimizer is built, the answer is
        that of the build, and no for a variable that it was not built with.
        """
        return bool(self.weight_decay) and self.decaying(variable)

    def decaying(self, variable) -> bool:
        """Whether `variable` is one of those that decay where there is a weight decay."""
        if self.built:
            return self._decaying.get(self._var_key(variable), False)
        if any(re.search(pattern, variable.path) for pattern in self.decay_exclusions):
            return False
        is_matrix = len(variable.shape) > 1 and not variable.name.endswith("bias")
        return self.decay_vectors or is_matrix

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Leaves more variables out of the weight decay, before the optimizer is built.

        Args:
            var_list: Variables.
            var_names: Regular expressions that are searched in a variable's path.

        Raises:
            ValueError: the optimizer has been built.
        """
        if self.built:
            raise ValueError(
                "exclude_from_weight_decay must be called before the optimizer is built, that is, "
                "before the first fit"
            )
        paths = [f"^{re.escape(variable.path)}$" for variable in var_list or ()]
        self.decay_exclusions = (*self.decay_exclusions, *paths, *patterns(var_names or ()))

    def build(self, variables):
        """Creates the state of `variables`."""
        decaying = {self._var_key(v): self.decaying(v) for v in variables}
        super().build(variables)
        self._decaying = decaying

    def save_own_variables(self, store):
        """Saves the state, with which variables decay: paths change when a model is loaded."""
        super().save_own_variables(store)
        if self.built:
            store["decaying"] = np.array(list(self._decaying.values()))

    def load_own_variables(self, store):
        """Loads the state."""
        state = {name: store[name] for name in store.keys()}  # noqa: SIM118
        decaying = state.pop("decaying", None)
        if self.built and decaying is None:
            # Saved before it was built; a model builds it when it is loaded, and Keras would warn
            # that there is no state for the variables.
            state = {str(i): v.numpy() for i, v in enumerate(self.variables)} | state
        super().load_own_variables(state)
        if self.built and decaying is not None and len(decaying) == len(self._decaying):
            self._decaying = dict(zip(self._decaying, np.array(decaying).tolist(), strict=True))
            self._prepared = None

    def add_variable(self, shape, initializer="zeros", dtype=None, **kwargs):
        """Adds a variable to the state, in float32 if `dtype` has less precision.

        A moving average in bfloat16 stands still: a thousandth of a number is less than half of
        its distance to the next.
        """
        dtype = "float32" if is_low_precision(dtype) else dtype
        return super().add_variable(shape, initializer, dtype=dtype, **kwargs)

    def apply(self, grads, trainable_variables=None):
        """Updates the variables by their gradients."""
        grads = [dense(gradient) for gradient in grads]
        if self.gradient_accumulation_steps:
            grads = [in_float32(gradient) for gradient in grads]
        super().apply(grads, trainable_variables)

    def update_together(self, gradients, variables, learning_rate) -> bool:
        """Updates all variables at once, and says whether it did."""
        return False

    def prepared(self, update: type, variables):
        """The `BatchedUpdate` of these variables and this optimizer's state.

        It is made anew where there are other tensors than the last time: a few variables without a
        gradient, or a stateless scope, which also has another tensor for the iterations.
        """
        tensors = [variable.value for variable in (self.variables[0], *variables)]
        if self._prepared is None or not self._prepared.is_for(tensors):
            slots = [self.slot(position, variable) for position, variable in enumerate(variables)]
            self._prepared = update(slots, tensors)
        return self._prepared

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "decay_vectors": self.decay_vectors,
            "exclude_from_weight_decay": list(self.decay_exclusions),
        }

    # Keras's private hooks, all of them. Where Keras stops calling one, its own way takes over;
    # tests/optimizers/test_keras_hooks.py tells which, and what is lost.

    def _apply_weight_decay(self, variables):
        """Nothing: the update itself decays, in the state's precision."""

    def _update_model_variables_moving_average(self, trainable_variables):
        # Keras's, but in the averages' precision: ema_momentum=0.99 is 0.988 in bfloat16.
        for variable, average in zip(
            trainable_variables, self._model_variables_moving_average, strict=True
        ):
            if average is not None:
                # The first update sets the average.
                begun = ops.cast(ops.cast(self.iterations, average.dtype) > 0, average.dtype)
                away = ops.cast(variable, average.dtype) - average
                average.assign(average + away * (1 - self.ema_momentum * begun))

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        if not any(is_low_precision(variable.dtype) for variable in trainable_variables):
            super()._overwrite_model_variables_with_average_value(trainable_variables)
            return
        # Keras's on TensorFlow casts nothing.
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            if average is not None:
                variable.assign(ops.cast(average, variable.dtype))

    def _clip_gradients(self, grads):
        if self.global_clipnorm and clip_by_global_norm_ is not None:
            self.gradient_norm = clip_by_global_norm_(grads, self.global_clipnorm)
            return grads
        if self.clipnorm or self.global_clipnorm or self.clipvalue:
            grads = [in_float32(gradient) for gradient in grads]
        return super()._clip_gradients(grads)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if not self.update_together(grads, trainable_variables, learning_rate):
            super()._backend_update_step(grads, trainable_variables, learning_rate)


def checked_learning_rate(learning_rate):
    """`learning_rate` as Keras wants it, or an error that says what to write."""
    if isinstance(learning_rate, LearningRateSchedule) or callable(learning_rate):
        return learning_rate
    if isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, numbers.Integral):
        return at_least_0("learning_rate", learning_rate)
    raise TypeError(
        "learning_rate must be a float or a schedule, as in learning_rate=5e-5. "
        f"Received: learning_rate={learning_rate!r}"
    )


def patterns(exclude_from_weight_decay) -> tuple[str, ...]:
    """The regular expressions, or an error that says what to write."""
    if isinstance(exclude_from_weight_decay, str):
        return (exclude_from_weight_decay,)
    for pattern in exclude_from_weight_decay:
        if not isinstance(pattern, str):
            raise TypeError(
                "exclude_from_weight_decay must be regular expressions for the variables' paths; "
                "for variables call optimizer.exclude_from_weight_decay(variables). "
                f"Received: {pattern!r}"
            )
    return tuple(exclude_from_weight_decay)


def at_least_0(name: str, value) -> float:
    """`value` as a float, or an error that names the argument."""
    if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0. Received: {name}={value!r}")
    return float(value)


def below_1(name: str, value) -> float:
    """`value` as a float in [0, 1), or an error that names the argument."""
    if not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1. Received: {name}={value!r}")
    return float(value)


def is_low_precision(dtype) -> bool:
    """Whether `dtype`, or Keras's float type where it is None, has less precision than float32."""
    return keras.backend.standardize_dtype(dtype) in ("bfloat16", "float16")


def dense(gradient):
    """The gradient as one tensor.

    TensorFlow's gradient of an embedding is a list of rows, where a token that occurs twice has
    two: their squares, and with them the norm and Adam's v, would be those of neither.
    """
    if not hasattr(gradient, "dense_shape"):
        return gradient
    shape = ops.cast(gradient.dense_shape, gradient.indices.dtype)
    return ops.scatter(gradient.indices[:, None], gradient.values, shape)


def in_float32(gradient):
    """The gradient, in float32 if it has less precision; None stays None."""
    if gradient is None or not is_low_precision(gradient.dtype):
        return gradient
    return ops.cast(gradient, "float32")
