"""Adam with decoupled weight decay."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_llm.arguments import check_number
from keras_llm.optimizers.optimizer import LearningRateSchedule, Optimizer
from keras_llm.optimizers.usual_learning_rate import of_adam
from keras_llm.tensor import Tensor
from keras_llm.usual_range import (
    ADAM,
    BERT,
    GPT_3,
    LATE,
    NANOCHAT,
    NOISY,
    NOISY_SIZE,
    Source,
    UsualRange,
)

LLAMA_2 = Source("Llama 2 2023", "https://arxiv.org/abs/2307.09288")

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.fused_adamw import AdamWSlot, FusedAdamW
else:
    FusedAdamW = None  # type: ignore[assignment, misc]


@keras.saving.register_keras_serializable(package="keras_llm")
class AdamW(Optimizer):
    """Adam with decoupled weight decay, as in `torch.optim.AdamW`.

    For update t, with gradient g and learning rate lr:

        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g^2
        p = p * (1 - lr * weight_decay)                      where weight decay applies
        p = p - lr * m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)

    Keras's own AdamW differs: it adds epsilon before the bias correction, applies weight decay to
    biases and norms, and in pure bfloat16 it never changes a weight, because beta_2 rounds to 1.
    Here m, v and the arithmetic are float32 where variables have less precision.

    On PyTorch the update is PyTorch's fused kernel, and `global_clipnorm` scales the gradients in
    place, as `torch.nn.utils.clip_grad_norm_` does.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.

    Example:
    >>> import keras, keras_llm
    >>> optimizer = keras_llm.optimizers.AdamW(1e-3, weight_decay=0.1, global_clipnorm=1.0)
    >>> dense = keras.layers.Dense(2)
    >>> dense.build((None, 3))
    >>> {variable.name: optimizer.decays(variable) for variable in dense.variables}
    {'kernel': True, 'bias': False}

    Args:
        learning_rate: A float, a schedule (evaluated once per update), or a callable without
            arguments. A float can be changed during training: `optimizer.learning_rate = 1e-4`.
        weight_decay: Each update computes `p <- p * (1 - learning_rate * weight_decay)`. None and 0
            mean no decay.
        beta_1: Decay rate of m, the moving average of the gradient.
        beta_2: Decay rate of v, the moving average of the squared gradient.
        epsilon: Added to the denominator.
        decay_vectors: Whether weight decay also applies to biases, norm scales and other variables
            with fewer than two dimensions.
        exclude_from_weight_decay: Regular expressions, such as `["embedding"]`. Variables whose
            path contains a match have no weight decay.
        **kwargs: Keras's own: `name`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`,
            `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`.

    Raises:
        TypeError: the learning rate is not a float or a schedule, or an argument has another
            library's name (`lr`, `betas`, `eps`, `max_grad_norm`).
        ValueError: an argument is out of range.
    """

    settings = ("beta_1", "beta_2", "epsilon")
    notes: ClassVar[dict[str, str]] = {**Optimizer.notes, "epsilon": "added to the denominator"}
    usual_ranges: ClassVar[dict[str, UsualRange]] = {
        "weight_decay": UsualRange(
            0.01,
            0.1,
            (BERT, GPT_3),
            below="weaker than language models use; with 0, weights may grow without bound",
            above="stronger than language models use: it works against what is learnt",
            none="no weight decay: AdamW without it is Adam",
        ),
        "beta_1": UsualRange(0.8, 0.9, (NANOCHAT, ADAM), below=NOISY, above=LATE),
        "beta_2": UsualRange(
            0.95,
            0.999,
            (GPT_3, ADAM),
            below=NOISY_SIZE,
            above="the size of a gradient is remembered so long that changes are noticed late",
        ),
        "epsilon": UsualRange(
            1e-10,
            1e-5,
            (NANOCHAT, LLAMA_2),
            below="so small that rounding errors are divided by it",
            above="larger than many gradients: their parameters then hardly learn",
        ),
    }
    write_instead: ClassVar[dict[str, str]] = {
        **Optimizer.write_instead,
        "betas": "beta_1=... and beta_2=...",
        "eps": "epsilon=...",
        "fused": "nothing: on PyTorch it always is",
    }

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable = 5e-5,
        weight_decay: float | None = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        decay_vectors: bool = False,
        exclude_from_weight_decay: str | Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate, weight_decay, decay_vectors, exclude_from_weight_decay, **kwargs
        )
        self.beta_1 = check_number(beta_1, "beta_1", "[0, 1)")
        self.beta_2 = check_number(beta_2, "beta_2", "[0, 1)")
        self.epsilon = check_number(epsilon, "epsilon", "[0, inf)")

    def usual_learning_rate(self, parameters: int | None) -> UsualRange:
        """The usual peak for a model of so many parameters."""
        return of_adam(parameters)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates m and v for each variable."""
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        """Updates one variable, by the equations above."""
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index], self._velocities[index]
        dtype = momentum.dtype
        gradient = ops.convert_to_tensor(gradient, dtype)
        learning_rate = ops.cast(learning_rate, dtype)
        step = ops.cast(self.iterations, dtype) + 1

        m = momentum + (gradient - momentum) * (1 - self.beta_1)
        v = velocity + (ops.square(gradient) - velocity) * (1 - self.beta_2)
        m_hat = m / one_minus_power(self.beta_1, step)
        v_hat = v / one_minus_power(self.beta_2, step)
        value = ops.cast(variable, dtype)
        if self.decays(variable):
            value = value * (1 - learning_rate * self.weight_decay)
        value = value - learning_rate * m_hat / (ops.sqrt(v_hat) + self.epsilon)

        self.assign(momentum, m)
        self.assign(velocity, v)
        self.assign(variable, ops.cast(value, variable.dtype))

    @property
    def batched_update(self) -> Any:
        """PyTorch's fused kernel, where there is one."""
        return FusedAdamW if FusedAdamW is not None and FusedAdamW.is_available() else None

    def slot(self, position: int, variable: keras.Variable) -> Any:
        """The tensors of one variable that the fused kernel takes."""
        index = self._get_variable_index(variable)
        return AdamWSlot(
            position=position,
            value=variable.value,
            momentum=self._momentums[index].value,
            velocity=self._velocities[index].value,
            decays=self.decaying(variable),
        )


def one_minus_power(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step, without the rounding error of the difference where beta^step is close to 1."""
    return -ops.expm1(step * (math.log(beta) if beta else -math.inf))
