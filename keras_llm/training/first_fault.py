"""What made the loss or a gradient of a batch infinite or NaN: the first place where it shows."""

import keras
from keras import ops

from keras_llm.backend.host import to_numpy
from keras_llm.counted_tokens import countable
from keras_llm.training.step import Step


def first_fault(step: Step, data) -> str:
    """Runs a batch again, layer by layer, and says where it is not finite first.

    In this order: a weight, a floating-point input or weight of tokens, a label; the first layer
    whose output is not finite though its inputs are; the loss; the last weight, in the model's
    order, whose gradient is not finite: the first one in the order of the backward pass.

    Args:
        step: The model's step, with the weights as they were.
        data: One of `step.held`.

    Returns:
        Words for a sentence; empty where everything is finite this time.
    """
    model, layers = step.model, []
    for variable in model.variables:
        if not are_finite(variable.value):
            return f"the weight {variable.path!r}, which is not finite already"
    x, y, sample_weight = data[:3]
    for what, part in (("the input x", x), ("sample_weight", sample_weight)):
        if not are_finite(part):
            return f"{what}, which is not finite"

    def seen(name, inputs, outputs):
        if not layers and are_finite(inputs) and not are_finite(outputs):
            layers.append(name)

    try:
        check_labels(step, y, sample_weight)
        loss, gradients = step.gradients_again(data, seen)
    except ValueError as error:
        # Where values are at hand, ids and weights are checked.
        return f"an invalid input: {error}"
    if layers:
        return f"the output of the layer {layers[0]!r}"
    if not are_finite(loss):
        return "the loss"
    pairs = list(zip(model.trainable_variables, gradients, strict=True))
    for variable, gradient in reversed(pairs):
        if not are_finite(gradient):
            return f"the gradient of {variable.path!r}"
    return ""


def are_finite(values) -> bool:
    """Whether all floating-point numbers among some nested tensors are finite."""
    return all(
        bool(ops.all(ops.isfinite(leaf)))
        for leaf in keras.tree.flatten(values)
        if "float" in str(getattr(leaf, "dtype", ""))
    )


def check_labels(step, y, sample_weight):
    """Raises `ValueError` for an invalid label or a negative weight, also on a GPU."""
    if step.why_logits(sample_weight):
        return
    labels, loss = to_numpy(step.loss.labels(y)), step.loss
    weights = None if sample_weight is None else to_numpy(sample_weight)
    vocab_size = step.model.head_matrix().kernel.shape[1]
    shape = (*labels.shape[:2], vocab_size)
    with keras.device("cpu"):
        is_sum = loss.reduction == "sum"
        countable(labels, shape, loss.ignore_index, weights, None, "float32", is_sum)
