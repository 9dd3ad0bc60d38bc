"""Adam with a factored second moment: one row and one column of means per matrix."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_llm.arguments import check_number
from keras_llm.optimizers.optimizer import LearningRateSchedule, Optimizer
from keras_llm.optimizers.relative_step import RelativeStep
from keras_llm.optimizers.usual_learning_rate import ADAFACTOR, OF_ADAFACTOR, of_adam
from keras_llm.tensor import Tensor
from keras_llm.usual_range import LATE, NOISY_SIZE, PALM, UsualRange

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.grouped_adafactor import AdafactorSlot, GroupedAdafactor
else:
    GroupedAdafactor = None  # type: ignore[assignment, misc]


# The smallest normal number in float32.
TINY = 2.0**-126
COSTLY = "little memory, for the price of a full copy of the parameters"
published = functools.partial(UsualRange, sources=(ADAFACTOR,))


@keras.saving.register_keras_serializable(package="keras_llm")
class Adafactor(Optimizer):
    """Adafactor, as in Hugging Face's `transformers.optimization.Adafactor`.

    For update t, with gradient G of shape [..., rows, columns] and beta_2 = 1 - t^beta_2_decay:

        R = beta_2 * R + (1 - beta_2) * mean over columns of (G^2 + epsilon_1)       [..., rows]
        C = beta_2 * C + (1 - beta_2) * mean over rows of (G^2 + epsilon_1)          [..., columns]
        U = G / sqrt(R C / mean(R))                      G / sqrt(V), V as R, for vectors
        U = U / max(1, RMS(U) / clip_threshold)
        alpha = rho * max(epsilon_2, RMS(P)) if scale_parameter else rho
        M = beta_1 * M + (1 - beta_1) * alpha * U        alpha * U without beta_1
        P = P * (1 - alpha * weight_decay) - M           without the decay where it does not apply

    rho is the learning rate; with `relative_step`, min(1e-2, 1 / sqrt(t)), or with `warmup_init`
    min(1e-6 * t, 1 / sqrt(t)).

    For a matrix of 1000 x 1000 parameters the state has 2 thousand numbers, where AdamW's has 2
    million, as long as `beta_1` is None. State and arithmetic are float32 where variables have less
    precision. Where the gradients of a row and a column are all 0, their parameters do not change;
    Keras's own Adafactor turns them into NaN.

    Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
    2018.

    Example:
    >>> import keras_llm
    >>> optimizer = keras_llm.optimizers.Adafactor(warmup_init=True)
    >>> round(float(optimizer.learning_rate), 7)
    1e-06
    >>> optimizer = keras_llm.optimizers.Adafactor(
    ...     1e-3, relative_step=False, scale_parameter=False)

    Args:
        learning_rate: None with `relative_step`; else a float, a schedule or a callable.
        relative_step: Whether to use Adafactor's own learning rate.
        scale_parameter: Whether an update is proportional to RMS(P), the size of its variable.
        warmup_init: Whether Adafactor's own learning rate has a warm-up.
        beta_1: Decay rate of M, the moving average of the updates; None for no average, which needs
            no memory.
        beta_2_decay: The exponent with which beta_2 approaches 1.
        epsilon_1: Added to the squared gradient.
        epsilon_2: The least value of RMS(P), for `scale_parameter`.
        clip_threshold: The greatest root mean square of U.
        weight_decay: Each update computes `P <- P * (1 - alpha * weight_decay)`. None and 0 mean no
            decay.
        decay_vectors: Whether weight decay also applies to biases, norm scales and other variables
            with fewer than two dimensions, as it does in Hugging Face's Adafactor.
        exclude_from_weight_decay: Regular expressions, such as `["embedding"]`. Variables whose
            path contains a match have no weight decay.
        **kwargs: Keras's own: `name`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`,
            `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`.

    Raises:
        TypeError: the learning rate is not a float or a schedule, or an argument has another
            library's name (`lr`, `eps`, `beta1`, `decay_rate`).
        ValueError: an argument is out of range, or two contradict each other: a learning rate and
            `relative_step`, neither of them, or `warmup_init` without `relative_step`.
    """

    settings = (
        "scale_parameter",
        "beta_1",
        "beta_2_decay",
        "epsilon_1",
        "epsilon_2",
        "clip_threshold",
    )
    batched_update = GroupedAdafactor
    notes: ClassVar[dict[str, str]] = {
        **Optimizer.notes,
        "relative_step": "the learning rate is Adafactor's own",
        "scale_parameter": "an update is relative to the size of what it updates",
        "warmup_init": "Adafactor's own learning rate starts small",
        "beta_1": "of the mean of updates; none keeps no mean, and saves its memory",
        "beta_2_decay": "beta_2 = 1 - t^beta_2_decay at update t",
        "epsilon_1": "added to squared gradients",
        "epsilon_2": "least size of a variable, for scale_parameter",
        "clip_threshold": "greatest size of an update",
    }
    usual_ranges: ClassVar[dict[str, UsualRange]] = {
        "beta_1": UsualRange(0.9, 0.9, (PALM,), below=COSTLY, above=LATE),
        "beta_2_decay": published(
            -1.0,
            -0.5,
            below="the size of early gradients is hardly ever forgotten",
            above=NOISY_SIZE,
        ),
        "epsilon_1": published(
            1e-30, 1e-30, above="it hides the small gradients that it is added to"
        ),
        "epsilon_2": published(
            1e-3,
            1e-3,
            below="parameters that start at 0 hardly leave it",
            above="small parameters get large updates",
        ),
        "clip_threshold": published(
            1.0, 1.0, below="most updates are shortened", above="early updates may be too large"
        ),
    }
    write_instead: ClassVar[dict[str, str]] = {
        **Optimizer.write_instead,
        "eps": "epsilon_1=... and epsilon_2=...",
        "d": "clip_threshold=...",
        "beta2_decay": "beta_2_decay=...",
        "beta1": "beta_1=...",
        "decay_rate": "beta_2_decay=...",
    }

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable | None = None,
        relative_step: bool = True,
        scale_parameter: bool = True,
        warmup_init: bool = False,
        beta_1: float | None = None,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        weight_decay: float | None = 0.0,
        decay_vectors: bool = False,
        exclude_from_weight_decay: str | Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        if relative_step and learning_rate is not None:
            raise ValueError(
                "learning_rate and relative_step=True exclude each other: pass "
                "relative_step=False to set a learning rate of your own. "
                f"Received: learning_rate={learning_rate!r}"
            )
        if warmup_init and not relative_step:
            raise ValueError(
                "warmup_init=True needs relative_step=True. Received: relative_step=False"
            )
        if not relative_step and learning_rate is None:
            raise ValueError(
                "relative_step=False needs a learning_rate. Received: learning_rate=None"
            )
        super().__init__(
            RelativeStep(warmup_init) if relative_step else learning_rate,
            weight_decay,
            decay_vectors,
            exclude_from_weight_decay,
            **kwargs,
        )
        self.relative_step = bool(relative_step)
        self.scale_parameter = bool(scale_parameter)
        self.warmup_init = bool(warmup_init)
        self.beta_1 = None if beta_1 is None else check_number(beta_1, "beta_1", "[0, 1)")
        self.beta_2_decay = check_number(beta_2_decay, "beta_2_decay", "(-inf, 0)")
        self.epsilon_1 = check_number(epsilon_1, "epsilon_1", "[0, inf)")
        self.epsilon_2 = check_number(epsilon_2, "epsilon_2", "[0, inf)")
        self.clip_threshold = check_number(clip_threshold, "clip_threshold", "(0, inf)")

    @Optimizer.learning_rate.setter  # type: ignore[attr-defined]
    def learning_rate(self, learning_rate: Any) -> None:
        """The learning rate of the next update, rho; assignable without `relative_step`."""
        if self.relative_step:
            raise ValueError(
                "Adafactor sets its own learning rate: pass relative_step=False to assign one. "
                f"Received: learning_rate={learning_rate!r}"
            )
        Optimizer.learning_rate.fset(self, learning_rate)  # type: ignore[attr-defined]

    def usual_learning_rate(self, parameters: int | None) -> UsualRange | None:
        """The usual peak; without `scale_parameter` updates are of Adam's size."""
        if self.relative_step:
            return None
        return OF_ADAFACTOR if self.scale_parameter else of_adam(parameters)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates R and C for each matrix, V for each vector, and M if there is a `beta_1`."""
        if self.built:
            return
        super().build(variables)
        # V of a vector is kept among the rows.
        self._rows, self._columns = [], []
        for variable in variables:
            shape, path = tuple(variable.shape), variable.path.replace("/", "_")
            factored = len(shape) > 1
            rows, columns = (shape[:-1], shape[:-2] + shape[-1:]) if factored else (shape, None)
            add = functools.partial(self.add_variable, dtype=variable.dtype)
            self._rows.append(add(rows, name=f"{path}_rows"))
            self._columns.append(add(columns, name=f"{path}_columns") if factored else None)
        if self.beta_1 is not None:
            self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        """Updates one variable, by the equations above."""
        index = self._get_variable_index(variable)
        rows, columns = self._rows[index], self._columns[index]
        gradient = ops.convert_to_tensor(gradient, rows.dtype)
        value = ops.cast(variable, rows.dtype)
        # 1 - beta_2
        weight = (ops.cast(self.iterations, rows.dtype) + 1) ** self.beta_2_decay
        alpha = ops.cast(learning_rate, rows.dtype)
        if self.scale_parameter:
            alpha = alpha * ops.maximum(root_mean_square(value), self.epsilon_2)

        squares = ops.square(gradient) + self.epsilon_1
        if columns is None:
            v = rows + (squares - rows) * weight
            update = gradient * ops.rsqrt(v)
            self.assign(rows, v)
        else:
            r = rows + (ops.mean(squares, axis=-1) - rows) * weight
            c = columns + (ops.mean(squares, axis=-2) - columns) * weight
            # Two rsqrt, and never of 0: where a row and a column have only gradients of 0, the
            # product R C / mean(R) underflows to 0, and 0 * rsqrt(0) is NaN.
            row_share = ops.maximum(r / ops.mean(r, axis=-1, keepdims=True), TINY)
            update = gradient * ops.rsqrt(row_share)[..., None] * ops.rsqrt(c)[..., None, :]
            self.assign(rows, r)
            self.assign(columns, c)

        update = update / ops.maximum(root_mean_square(update) / self.clip_threshold, 1.0)
        update = update * alpha
        if self.beta_1 is not None:
            momentum = self._momentums[index]
            update = momentum + (update - momentum) * (1 - self.beta_1)
            self.assign(momentum, update)
        if self.decays(variable):
            value = value * (1 - alpha * self.weight_decay)
        self.assign(variable, ops.cast(value - update, variable.dtype))

    def slot(self, position: int, variable: keras.Variable) -> Any:
        """The tensors of one variable that `GroupedAdafactor` takes."""
        index = self._get_variable_index(variable)
        columns = self._columns[index]
        return AdafactorSlot(
            position=position,
            value=variable.value,
            rows=self._rows[index].value,
            columns=None if columns is None else columns.value,
            momentum=None if self.beta_1 is None else self._momentums[index].value,
            decays=self.decaying(variable),
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config = super().get_config()
        settings = {name: config.pop(name) for name in self.settings}
        own = {name: getattr(self, name) for name in ("relative_step", "warmup_init")}
        learning_rate = None if self.relative_step else config["learning_rate"]
        return {**config, "learning_rate": learning_rate, **own, **settings}


def root_mean_square(x: Tensor) -> Tensor:
    """sqrt(mean(x^2)), a scalar."""
    return ops.sqrt(ops.mean(ops.square(x)))
