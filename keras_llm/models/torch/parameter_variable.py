"""A parameter of a PyTorch module as a Keras variable."""

import contextlib

import keras


class ParameterVariable(keras.Variable):
    """A variable that is a parameter: one tensor, one mark of being trained, seen from both sides.

    Args:
        parameter: A `torch.nn.Parameter` on Keras's device.
        name: As in `named_parameters()`; its parts are those of the variable's `path`.
    """

    def __init__(self, parameter, name: str):
        # Keras asks for `trainable` while it makes the variable.
        self.parameter = parameter
        *scopes, name = name.split(".")
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            super().__init__(parameter, trainable=parameter.requires_grad, name=name)

    @property
    def trainable(self) -> bool:
        """The parameter's `requires_grad`, also where somebody sets that later."""
        return self.parameter.requires_grad

    @trainable.setter
    def trainable(self, value: bool):
        self.parameter.requires_grad = value
