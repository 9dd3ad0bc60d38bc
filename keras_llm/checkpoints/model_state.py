"""What a model has learnt: its variables, its optimizer's, and its step's state."""

from keras_llm.backend.host import to_numpy
from keras_llm.checkpoints.torch_tensors import is_tensor


def model_state(model) -> dict:
    """All that the next update depends on, apart from random states."""
    model.jax_state_sync()
    step = model.step
    return {
        "weights": values(model.variables),
        "optimizer": values(model.optimizer.variables),
        "step": None if step is None else step.state_dict(),
        # A step has these in its own state.
        "metrics": [value(v) for v in model.metrics_variables] if step is None else None,
    }


def load_weights(model, state: dict) -> None:
    """The variables of the model and its optimizer as `model_state` found them."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    assign(model.variables, state["weights"], "the model")
    assign(model.optimizer.variables, state["optimizer"], "the optimizer")


def load_step(model, state: dict) -> None:
    """The step's state, or the metrics' where Keras's own step runs."""
    if model.step is not None:
        model.step.load_state_dict(state["step"])
    else:
        for variable, saved in zip(model.metrics_variables, state["metrics"], strict=True):
            variable.assign(saved)


def values(variables) -> dict:
    """The values of variables by their paths; a path that occurs again gets a number."""
    found = {}
    for variable in variables:
        path, number = variable.path, 0
        while path in found:
            number += 1
            path = f"{variable.path}~{number}"
        found[path] = value(variable)
    return found


def value(variable):
    """A variable's tensor on PyTorch, an array elsewhere."""
    tensor = variable.value
    return tensor.detach() if is_tensor(tensor) else to_numpy(tensor)


def assign(variables, saved: dict, what: str) -> None:
    """Gives variables their saved values, in their order.

    Names may differ: Keras numbers the layers of a process.

    Raises:
        ValueError: there are more, or fewer, or one has another shape; no variable was changed.
    """
    here = [tuple(variable.shape) for variable in variables]
    there = [tuple(array.shape) for array in saved.values()]
    if here != there:
        different = [
            f"{path} is {new} and was {old}"
            for path, old, new in zip(saved, there, here, strict=False)
            if old != new
        ]
        raise ValueError(
            f"The variables of {what} must be those that were saved. Received: "
            f"{len(here)} variables for {len(there)}; {'; '.join(different[:3]) or 'same shapes'}"
        )
    for variable, array in zip(variables, saved.values(), strict=True):
        variable.assign(array)
