"""Arguments of `compile` and `fit`: what does not fit, and what other trainers call it."""

from keras_llm.arguments import (
    check_bool,
    check_non_negative_int,
    check_number,
    check_one_of,
    check_positive_int,
)
from keras_llm.backend.keras_private import built_with, inner_optimizer, known_names
from keras_llm.metrics import TokenMetric

# What other trainers call an argument, and what to write instead.
COMPILE_NAMES = {
    "gradient_accumulation_steps": "gradient_accumulation_steps=... of the optimizer",
    "max_grad_norm": "global_clipnorm=... of the optimizer",
    "learning_rate": "learning_rate=... of the optimizer",
    "lr": "learning_rate=... of the optimizer",
    "per_device_train_batch_size": "batch_size=... of fit or of the data",
    "label_smoothing": "label_smoothing=... of the loss",
    "ignore_index": "ignore_index=... of the loss",
}
FIT_NAMES = {
    "num_train_epochs": "epochs=...",
    "num_epochs": "epochs=...",
    "max_steps": "steps=...",
    "total_steps": "steps=...",
    "num_train_steps": "steps=...",
    "max_tokens": "tokens=...",
    "train_dataset": "x=...",
    "eval_dataset": "validation_data=...",
    "per_device_train_batch_size": "batch_size=...",
    "gradient_accumulation_steps": "gradient_accumulation_steps=... of the optimizer",
    "learning_rate": "learning_rate=... of the optimizer",
    "max_grad_norm": "global_clipnorm=... of the optimizer",
}


def check_arguments(loss, loss_weights, micro_batch_size):
    """Raises `ValueError` for what does not go together in `compile`.

    Args:
        loss: A `MaskedLoss`, or None for another one.
        loss_weights, micro_batch_size: As in `compile`.
    """
    is_count = isinstance(micro_batch_size, int) and not isinstance(micro_batch_size, bool)
    if not (micro_batch_size in (None, "auto") or (is_count and micro_batch_size > 0)):
        raise ValueError(
            "micro_batch_size must be a positive number of rows, 'auto', or None for the whole "
            f"batch. Received: micro_batch_size={micro_batch_size!r}"
        )
    if loss is None and micro_batch_size is not None:
        raise ValueError(
            "micro_batch_size needs a loss of keras_llm, whose sums add up over micro-batches. "
            f"Received: micro_batch_size={micro_batch_size!r}"
        )
    if loss is not None and loss.reduction == "none":
        raise ValueError(
            "compile needs a loss of one number: use reduction='mean' or reduction='sum'. "
            "Received: a loss with reduction='none'"
        )
    if loss is not None and loss_weights is not None:
        raise ValueError(
            "loss_weights balance several outputs; a loss of tokens stands alone. "
            f"Received: loss_weights={loss_weights}"
        )


def check_sizes(validation_split=0.0, initial_epoch=0, **sizes):
    """Raises `ValueError` for numbers of rows, batches or epochs that there cannot be.

    Args:
        validation_split, initial_epoch: As in `fit`.
        **sizes: Such as `batch_size`; None where Keras is to choose.
    """
    for name, size in sizes.items():
        # `validation_freq` may be a list of epochs.
        if size is not None and not isinstance(size, list | tuple | set):
            check_positive_int(size, name)
    check_number(validation_split, "validation_split", "[0, 1)")
    check_non_negative_int(initial_epoch, "initial_epoch")


# Arguments of `fit`, handed on to Keras, that are a number of rows or batches.
SIZES = ("steps_per_epoch", "validation_batch_size", "validation_steps", "validation_freq")


def check_execution(optimizer, run_eagerly, steps_per_execution, jit_compile):
    """Raises an error for what `compile` cannot run by; arguments as there."""
    if optimizer is None or isinstance(optimizer, type):
        raise ValueError(
            "optimizer must be one of keras_llm or Keras, such as optimizers.AdamW(1e-3), or its "
            f"name. Received: optimizer={optimizer}"
        )
    check_bool(run_eagerly, "run_eagerly")
    check_positive_int(steps_per_execution, "steps_per_execution")
    check_one_of(jit_compile, "jit_compile", (True, False, None, "auto"))


def check_not_of_torch(**arguments):
    """Raises `TypeError` for what a PyTorch loop would use in place of an argument of `compile`."""
    for name, value in arguments.items():
        # That of an object is its class's.
        module = getattr(value, "__module__", None) or ""
        if module.startswith("torch."):
            what = getattr(value, "__name__", type(value).__name__)
            raise TypeError(
                f"{name} must be one of keras_llm or Keras; docs/learn.md lists what PyTorch calls "
                f"it and what it is here. Received: {name}={module}.{what}"
            )


def resolve(metrics):
    """Our metrics in place of their names and classes; anything else is left to Keras."""
    if not isinstance(metrics, list | tuple):
        return metrics
    return [one() if (one := class_of_ours(metric)) else metric for metric in metrics]


def class_of_ours(metric) -> type | None:
    """The class of ours that a name or a class stands for; None for anything else."""
    known = known_names("metrics").get(metric) if isinstance(metric, str) else metric
    return known if isinstance(known, type) and issubclass(known, TokenMetric) else None


def check_compiled(model, method: str):
    """Raises `ValueError` before `compile`, where Keras looks for an optimizer and fails."""
    if not model.compiled:
        raise ValueError(
            f"{method} needs a compiled model: call model.compile(optimizer=..., loss=...) "
            f"first. Received: {type(model).__name__} {model.name!r}, not compiled"
        )


def check_thawed(model):
    """Raises `ValueError` where the optimizer has no state of variables that were thawed since."""
    if model.step is not None and model.step.divided:
        return  # The optimizer of this process has state of a part of them.
    known = {id(variable) for variable in built_with(inner_optimizer(model.optimizer))}
    thawed = [v.path for v in model.trainable_variables if id(v) not in known]
    if known and thawed:
        raise ValueError(
            "Variables that fit trains must be those that the optimizer has state of: call "
            "compile again, with a new optimizer, after layers were thawed. "
            f"Received: {len(thawed)} without, such as {thawed[0]!r}"
        )


def check_no_fit(model, method: str):
    """Raises `RuntimeError` inside of `fit`, of which it would take the step or the sums."""
    if model.run is not None:
        raise RuntimeError(
            f"{method} cannot be called by a callback while fit runs: end it by "
            "model.stop_training = True, or use evaluate, predict, generate or train_on_batch. "
            f"Received: {method} in epoch {model.run.position.epoch}"
        )
