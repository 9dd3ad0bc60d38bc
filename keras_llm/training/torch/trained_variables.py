"""The variables of a model that are trained now."""

import torch


class TrainedVariables:
    """The variables of a model that are trainable, which take a small model's time to look up.

    Args:
        model: The model, built.
    """

    def __init__(self, model):
        self.model = model
        self.every = model.variables
        self.every_tensor = [variable.value for variable in self.every]
        self.variables = model.trainable_variables
        self.tensors = [variable.value for variable in self.variables]
        self.are_regularized = any(v.regularizer is not None for v in self.variables)
        # What layers may assign to in a forward pass, such as moving averages: small numbers that
        # are not trained, and, from the second batch on, that the first one has changed.
        others = [v.value for v in self.every if not v.trainable and len(v.shape) < 2]
        self.state = [tensor for tensor in others if tensor.is_floating_point()]
        self.versions = [tensor._version for tensor in self.state]
        self.marks = self.marks_now()

    def forget_constants(self):
        """Drops from `state` what a batch has left alone."""
        if self.versions is not None:
            pairs = zip(self.state, self.versions, strict=True)
            self.state = [tensor for tensor, version in pairs if tensor._version != version]
            self.versions = None

    def are_watched(self) -> bool:
        """Whether somebody wants to see each gradient while PyTorch computes it."""
        return torch.is_anomaly_enabled() or any(
            tensor._backward_hooks or tensor._post_accumulate_grad_hooks for tensor in self.tensors
        )

    def marks_now(self) -> list[bool]:
        """Which of the variables are marked as trainable."""
        return [self.model.trainable, *(variable.trainable for variable in self.every)]

    def is_still_true(self) -> bool:
        """Whether the same variables are trainable."""
        return self.marks_now() == self.marks
