"""What the optimizers share: learning rate, weight decay, precision, Keras's hooks."""

import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_llm.arguments import check_number
from keras_llm.names_elsewhere import NamesElsewhere
from keras_llm.optimizers.checks import check_keras_arguments, checked_learning_rate, patterns
from keras_llm.optimizers.gradients import dense, in_float32, is_low_precision
from keras_llm.optimizers.weight_averages import assign_averages, update_averages
from keras_llm.tensor import Tensor
from keras_llm.usual_range import UsualRange

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.gradient_clipping import clip_by_global_norm_
    from keras_llm.backend.torch.tensors import count_in_place
else:
    clip_by_global_norm_ = count_in_place = None  # type: ignore[assignment]


class Optimizer(NamesElsewhere, keras.optimizers.Optimizer):
    """Base class: a Keras optimizer, with these differences.

    - A schedule counts updates. Keras's own optimizers count micro-steps, so with
      `gradient_accumulation_steps=4` they go through a schedule four times too fast.
    - Weight decay is decoupled, and does not apply to biases and other vectors, nor to what
      `exclude_from_weight_decay` names. Which variables decay is saved with the state.
    - State, accumulated gradients and norms are float32 where variables are bfloat16 or float16.
    - On PyTorch all variables are updated at once; elsewhere one by one, by `update_step`.

    Subclasses define `update_step` and `settings`; for PyTorch's kernels for many tensors also
    `batched_update`, and `slot`, the tensors of one variable that those kernels take. For `explain`
    they may also define `notes`, `usual_ranges` and `usual_learning_rate`: see
    `keras_llm.usual_range`.

    Args:
        learning_rate: A float, a schedule, or a callable without arguments.
        weight_decay: Each update computes `p <- p * (1 - learning_rate * weight_decay)`. None and 0
            mean no decay.
        decay_vectors: Whether weight decay also applies to biases and to other variables with fewer
            than two dimensions.
        exclude_from_weight_decay: Regular expressions. Variables whose path contains a match have
            no weight decay.
        **kwargs: Keras's own arguments.

    Attributes:
        settings: Names of a subclass's own arguments that its update is computed with. They are
            saved, and handed to `batched_update`.
        batched_update: The class of a `BatchedUpdate` by these settings; None where there is none.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    batched_update: Any = None
    notes: ClassVar[dict[str, str]] = {
        "weight_decay": "pulls the weights towards 0",
        "decay_vectors": "biases and norm scales decay too",
        "exclude_from_weight_decay": "variables whose path matches do not decay",
    }
    usual_ranges: ClassVar[dict[str, UsualRange]] = {}
    write_instead: ClassVar[dict[str, str]] = {
        "lr": "learning_rate=...",
        "max_grad_norm": "global_clipnorm=...",
        "clip_grad_norm": "global_clipnorm=...",
        "gradient_clip_val": "global_clipnorm=...",
        "grad_clip": "global_clipnorm=...",
        "max_norm": "global_clipnorm=...",
        "clip_value": "clipvalue=...",
        "beta1": "beta_1=...",
        "beta2": "beta_2=...",
        "wd": "weight_decay=...",
        "foreach": "nothing: PyTorch's operations on lists of tensors are always used",
        "params": "nothing: fit passes the variables to the optimizer",
    }

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable,
        weight_decay: float | None,
        decay_vectors: bool,
        exclude_from_weight_decay: str | Sequence[str],
        **kwargs: Any,
    ) -> None:
        if weight_decay is not None:
            weight_decay = check_number(weight_decay, "weight_decay", "[0, inf)")
        check_keras_arguments(kwargs)
        super().__init__(checked_learning_rate(learning_rate), weight_decay=weight_decay, **kwargs)
        self.decay_vectors = bool(decay_vectors)
        self.decay_exclusions = patterns(exclude_from_weight_decay)
        self._prepared = None
        if count_in_place is not None:
            count_in_place(self.variables[0])

    # PyTorch only, and of the update that is applied now: see `apply_unless`.
    _norm: Any = None
    _skip: Any = None

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the next update; assignable where it is not a schedule."""
        if isinstance(self._learning_rate, LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        if isinstance(learning_rate, numbers.Real):
            check_number(learning_rate, "learning_rate", "[0, inf)")
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    def usual_learning_rate(self, parameters: int | None) -> UsualRange | None:
        """The usual peak of the learning rate, for so many parameters; None: not known."""
        return None

    def decays(self, variable: keras.Variable) -> bool:
        """Whether weight decay applies to `variable`.

        It does not if there is no weight decay, or if the variable's path contains a match of
        `exclude_from_weight_decay`. Unless `decay_vectors`, it does not apply to variables with
        fewer than two dimensions or whose name ends in "bias" (some layers of Keras, such as its
        attention, have biases with two dimensions). Once the optimizer is built, this is what was
        decided then, and False for a variable that it was not built with.
        """
        return bool(self.weight_decay) and self.decaying(variable)

    def decaying(self, variable: keras.Variable) -> bool:
        """`decays`, as if there were a weight decay."""
        if self.built:
            return self._decaying.get(self._var_key(variable), False)
        excluded = any(re.search(pattern, variable.path) for pattern in self.decay_exclusions)
        is_matrix = len(variable.shape) > 1 and not variable.name.endswith("bias")
        return not excluded and (self.decay_vectors or is_matrix)

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: str | Sequence[str] | None = None,
    ) -> None:
        """Excludes more variables from weight decay, before the optimizer is built.

        Args:
            var_list: Variables.
            var_names: Regular expressions, searched for in a variable's path.

        Raises:
            ValueError: the optimizer has been built.
        """
        if self.built:
            raise ValueError(
                "exclude_from_weight_decay must be called before the optimizer is built, that is, "
                "before the first fit. Received: a call of a built optimizer"
            )
        paths = [f"^{re.escape(variable.path)}$" for variable in var_list or ()]
        self.decay_exclusions += (*paths, *patterns(var_names or ()))

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the state of `variables`."""
        decaying = {self._var_key(v): self.decaying(v) for v in variables}
        super().build(variables)
        self._decaying = decaying

    def save_own_variables(self, store: Any) -> None:
        """Saves the state, and which variables decay: a loaded model's paths may be others."""
        super().save_own_variables(store)
        if self.built:
            store["decaying"] = np.array(list(self._decaying.values()))

    def load_own_variables(self, store: Any) -> None:
        """Loads the state."""
        state = {name: store[name] for name in store.keys()}  # noqa: SIM118
        decaying = state.pop("decaying", None)
        if self.built and decaying is None:
            # It was saved before it was built, and is built now, because loading a model builds
            # its optimizer. Without this, Keras would warn that the file lacks state.
            state = {str(i): v.numpy() for i, v in enumerate(self.variables)} | state
        super().load_own_variables(state)
        if self.built and decaying is not None and len(decaying) == len(self._decaying):
            self._decaying = dict(zip(self._decaying, np.array(decaying).tolist(), strict=True))
            self._prepared = None

    def add_variable(
        self, shape: Sequence[int], initializer: Any = "zeros", dtype: Any = None, **kwargs: Any
    ) -> keras.Variable:
        """Adds a variable to the state, in float32 if `dtype` has less precision.

        A moving average with decay rate 0.999 never changes in bfloat16, which has 8 significant
        bits: a change of a thousandth is rounded away.
        """
        dtype = "float32" if is_low_precision(dtype) else dtype
        return super().add_variable(shape, initializer, dtype=dtype, **kwargs)

    def apply(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Updates the variables by their gradients."""
        grads = [dense(gradient) for gradient in grads]
        if self.gradient_accumulation_steps:
            grads = [in_float32(gradient) for gradient in grads]
        super().apply(grads, trainable_variables)

    @property
    def skips_on_device(self) -> bool:
        """Whether `apply_unless` takes a condition that is not known on the host."""
        return self.batched_update is not None and not self.use_ema

    def apply_unless(
        self,
        skip: Tensor | None,
        norm: Tensor | None,
        gradients: Sequence[Tensor],
        variables: Sequence[keras.Variable],
    ) -> None:
        """Updates the variables, or changes nothing, `iterations` included; PyTorch only.

        Args:
            skip: A boolean scalar on the variables' device, whose value the host need not know:
                whether nothing changes. None for never; others need `skips_on_device`.
            norm: The global norm of the gradients, which clipping then need not compute; None where
                it is not known.
            gradients, variables: As of `apply`.
        """
        self._skip, self._norm = skip, norm
        try:
            self.apply(gradients, variables)
        finally:
            self._skip = self._norm = None
        if skip is not None:
            self.iterations.assign_sub(ops.cast(skip, self.iterations.dtype))

    def update_together(
        self,
        gradients: Sequence[Tensor],
        variables: Sequence[keras.Variable],
        learning_rate: Tensor,
    ) -> bool:
        """Updates all variables at once; returns False where there is no `batched_update`."""
        if self.batched_update is None:
            return False
        # Made again if there are other variables than last time, because one has no gradient, and
        # in a stateless scope, which has other tensors for variables and iterations.
        ends = [v.value for v in (self.variables[0], variables[0], variables[-1])]
        made_for = [*variables, *ends]
        if self._prepared is None or not self._prepared.is_for(made_for):
            slots = [self.slot(position, variable) for position, variable in enumerate(variables)]
            self._prepared = self.batched_update(slots, made_for)
        self._prepared(
            gradients,
            step=ops.cast(self.iterations, "float32") + 1,
            learning_rate=ops.convert_to_tensor(learning_rate),
            weight_decay=self.weight_decay or 0.0,
            skip=self._skip,
            **{name: getattr(self, name) for name in self.settings},
        )
        return True

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "decay_vectors": self.decay_vectors,
            "exclude_from_weight_decay": list(self.decay_exclusions),
            **{name: getattr(self, name) for name in self.settings},
        }

    # Overrides of Keras's private methods; there are no others. If Keras stops calling one, Keras's
    # own behaviour returns: tests/optimizers/test_keras_hooks.py says which, and what is lost.

    def _apply_weight_decay(self, variables):
        """Does nothing: the update applies weight decay itself, in the state's precision."""

    def _update_model_variables_moving_average(self, trainable_variables):
        averages = self._model_variables_moving_average
        update_averages(averages, trainable_variables, self.ema_momentum, self.iterations)

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        if any(is_low_precision(variable.dtype) for variable in trainable_variables):
            assign_averages(self._model_variables_moving_average, trainable_variables)
        else:
            super()._overwrite_model_variables_with_average_value(trainable_variables)

    def _clip_gradients(self, grads):
        if self.global_clipnorm and clip_by_global_norm_ is not None:
            clip_by_global_norm_(grads, self.global_clipnorm, self._norm)
            return grads
        if self.clipnorm or self.global_clipnorm or self.clipvalue:
            grads = [in_float32(gradient) for gradient in grads]
        return super()._clip_gradients(grads)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if not self.update_together(grads, trainable_variables, learning_rate):
            # Keras's sums them over replicas first, by a function that TensorFlow never forgets.
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                self.update_step(gradient, variable, learning_rate)
