"""What `compile` was given and decided, for any compiled Keras model."""

import dataclasses
import math
from typing import Any

import keras

from keras_llm.backend.keras_private import compile_arguments, inner_optimizer
from keras_llm.training import Step, StepDescription
from keras_llm.training.compile_arguments import check_compiled


@dataclasses.dataclass(frozen=True)
class CompiledModel:
    """A compiled model and the arguments that it was compiled with.

    Attributes:
        model: The model.
        optimizer: The optimizer, without the `LossScaleOptimizer` that Keras puts around it in
            mixed float16; None where there is none.
        loss, loss_weights, metrics, weighted_metrics: As `compile` was given them.
        step: The description of a step with a loss of tokens; None where Keras's own step runs.
        output_shape: Of one output, with None for what varies; None where it is not known.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer | None
    step: StepDescription | None
    output_shape: tuple | None
    loss: Any = None
    loss_weights: Any = None
    metrics: Any = None
    weighted_metrics: Any = None

    @property
    def vocab_size(self) -> int | None:
        """V, the number of logits of a token; None where it is not known yet."""
        return self.output_shape[-1] if self.output_shape else None

    @property
    def is_of_tokens(self) -> bool:
        """Whether the outputs are known to be `[batch, length, vocab]`."""
        return self.output_shape is not None and len(self.output_shape) == 3

    @property
    def parameters(self) -> int | None:
        """How many numbers are trained; None where the model is not built."""
        return size(self.model.trainable_variables) if self.model.built else None

    @property
    def accumulation(self) -> int:
        """Batches that make an update."""
        if self.step is not None:
            return self.step.accumulation
        return self.optimizer.gradient_accumulation_steps or 1


def compiled_model(model, asker: str = "explain") -> CompiledModel:
    """What there is to explain about `model`; an error names `asker` if it is not compiled."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"{asker} needs a Keras model. Received: {type(model).__name__}")
    check_compiled(model, asker)
    arguments, step = compile_arguments(model), getattr(model, "step", None)
    step = step if isinstance(step, Step) else None
    if step is not None:
        # Keras was given only what the step does not count.
        arguments |= {"loss": step.loss, **step.sums.arguments}
    names = ("loss", "loss_weights", "metrics", "weighted_metrics")
    return CompiledModel(
        model,
        inner_optimizer(model.optimizer),
        step and step.describe(),
        output_shape(model),
        **{name: arguments.get(name) for name in names},
    )


def output_shape(model) -> tuple | None:
    """The shape of a model's only output, as far as it is known without calling it."""
    head = getattr(model, "head", None)
    vocab_size = getattr(head, "vocab_size", getattr(head, "units", None))
    if vocab_size is not None:
        return (None, None, vocab_size)
    shape = getattr(model, "output_shape", None)
    is_one = isinstance(shape, tuple) and all(isinstance(n, int | type(None)) for n in shape)
    return shape if is_one else None


def size(variables) -> int:
    """How many numbers the variables hold."""
    return sum(math.prod(variable.shape) for variable in variables)
