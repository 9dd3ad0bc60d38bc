"""What `compile` was given and decided, for any compiled Keras model."""

import contextlib
import dataclasses
import math
from typing import Any, NamedTuple

import keras

from keras_llm.backend.keras_private import compile_arguments
from keras_llm.losses import TokenLoss

ARGUMENTS = ("loss", "loss_weights", "metrics", "weighted_metrics")


@dataclasses.dataclass(frozen=True)
class Compiled:
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
    loss: Any
    loss_weights: Any
    metrics: Any
    weighted_metrics: Any
    step: Any
    output_shape: tuple | None

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


def compiled(model, asker: str = "explain") -> Compiled:
    """What there is to explain about `model`.

    Args:
        model: Anything.
        asker: The function that needs a compiled model, for the error.

    Raises:
        TypeError: it is not a Keras model.
        ValueError: it has not been compiled.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"{asker} needs a Keras model. Received: {type(model).__name__}")
    if not model.compiled:
        raise ValueError(
            f"{asker} needs a compiled model: call model.compile(optimizer=..., loss=...) first. "
            f"Received: {type(model).__name__} {model.name!r}, not compiled"
        )
    step, arguments = step_and_arguments(model)
    optimizer = model.optimizer
    return Compiled(
        model=model,
        optimizer=getattr(optimizer, "inner_optimizer", optimizer),
        step=step,
        output_shape=output_shape(model),
        **{name: arguments.get(name) for name in ARGUMENTS},
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


# What follows is all that explain and trace know of the inside of the step.


class StepDescription(NamedTuple):
    """What a step with a loss of tokens does, as `model.step.describe()` says it."""

    accumulation: int
    micro_batch_size: int | str | None
    tokens_per_update: float | None
    why_logits: str
    sample_weight_needs_logits: bool
    layers: str
    why_layers: str
    compiling: str


def step_and_arguments(model) -> tuple[StepDescription | None, dict]:
    """The description of the step, None for Keras's own, and the arguments of `compile`."""
    arguments, accounts = compile_arguments(model), getattr(model, "accounts", None)
    if accounts is None:
        return None, arguments
    # Keras was given only what is not counted by ours.
    arguments |= {"loss": accounts.loss, **accounts.arguments}
    window, capture = getattr(model, "window", None), getattr(model, "capture", None)
    why_layers = "run_eagerly=True" if model.run_eagerly else getattr(capture, "reason", "") or ""
    compiling = {
        True: "compiled by torch.compile",
        "auto": "compiled by torch.compile where that is faster",
    }.get(getattr(model, "graphs_are_compiled", False), "")
    layers = {
        "torch": "graph",
        "jax": "xla" if model.jit_compile else "eager",
        "tensorflow": "tensorflow graph",
    }[keras.backend.backend()]
    if layers == "tensorflow graph" and model.jit_compile:
        compiling = "compiled by XLA"
    description = StepDescription(
        accumulation=window.size if window else 1,
        micro_batch_size=model.micro_batch_size,
        tokens_per_update=model.tokens_per_update,
        why_logits=why_logits(model, accounts) if model.built else "",
        sample_weight_needs_logits=not accounts.can_do_without_logits(sample_weight=True),
        layers="eager" if why_layers or (window and why_logits(model, accounts)) else layers,
        why_layers=why_layers,
        compiling=compiling,
    )
    return description, arguments


def why_logits(model, accounts) -> str:
    """Why the logits of a batch are held; empty where they are not."""
    if not isinstance(accounts.loss, TokenLoss):
        return f"{type(accounts.loss).__name__} reads whole rows of them"
    if not accounts.loss.from_logits:
        return "the model's outputs are probabilities (from_logits=False)"
    left = [m for m in keras.tree.flatten([accounts.left, accounts.left_weighted]) if m is not None]
    if left:
        return f"metrics need them: {', '.join(getattr(m, 'name', str(m)) for m in left)}"
    if not model.head_is_matrix():
        return "the head is more than a matrix, or the model's own call or compute_loss is used"
    return ""


@contextlib.contextmanager
def step_state_kept(model):
    """Context manager that restores the accumulated gradients of the step on exit."""
    window = getattr(model, "window", None)
    kept = dict(vars(window)) if window is not None else {}
    try:
        yield
    finally:
        if window is not None:
            vars(window).update(kept)
