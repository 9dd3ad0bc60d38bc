"""AdamW's update of all variables with PyTorch's fused kernel."""

from typing import NamedTuple

import torch

from keras_llm.backend.torch.batched_update import (
    GPU_BATCH,
    BatchedUpdate,
    working_copy,
    write_back,
)

# Private in PyTorch: the kernel that `torch.optim.AdamW(fused=True)` calls.
kernel = getattr(torch, "_fused_adamw_", None)


class AdamWSlot(NamedTuple):
    """The tensors of one variable's update; `position` is the index of its gradient."""

    position: int
    value: torch.Tensor
    momentum: torch.Tensor
    velocity: torch.Tensor
    decays: bool

    @property
    def kind(self):
        """Equal for all slots of a batch."""
        return self.momentum.dtype, self.decays


class FusedAdamW(BatchedUpdate):
    """AdamW's update; variables with and without weight decay are in different batches."""

    def __init__(self, slots: list[AdamWSlot], made_for: list):
        # The kernel needs no temporary tensors that would have to fit in a CPU's cache.
        super().__init__(slots, made_for, cpu_batch=GPU_BATCH)
        self.states = [
            ([slot.momentum for slot in batch], [slot.velocity for slot in batch])
            for batch in self.batches
        ]
        self.values = [[slot.value for slot in batch] for batch in self.batches]

    @staticmethod
    def is_available() -> bool:
        """Whether this PyTorch has the kernel."""
        return kernel is not None

    @torch.no_grad()
    def __call__(
        self,
        gradients: list[torch.Tensor],
        step: torch.Tensor,
        learning_rate: torch.Tensor,
        weight_decay: float,
        beta_1: float,
        beta_2: float,
        epsilon: float,
        skip: torch.Tensor | None = None,
    ):
        """Updates values, momentums and velocities in place.

        Args:
            gradients: One for each slot.
            step: The number of this update, from 1: a float32 scalar on the variables' device.
            learning_rate: A scalar on the variables' device; its value is not read on the host.
            weight_decay: The weight decay of the slots that decay.
            beta_1: Decay rate of the momentums.
            beta_2: Decay rate of the velocities.
            epsilon: Added to the denominator.
            skip: A boolean scalar on the variables' device: whether nothing is to change.
        """
        found_inf = None if skip is None else skip.float()
        for batch, values, (momentums, velocities) in zip(
            self.batches, self.values, self.states, strict=True
        ):
            dtype, decays = batch[0].kind
            copies = [working_copy(value, dtype) for value in values]
            kernel(
                copies,
                [working_copy(gradients[slot.position], dtype) for slot in batch],
                momentums,
                velocities,
                [],
                [step] * len(batch),
                lr=learning_rate,
                beta1=beta_1,
                beta2=beta_2,
                weight_decay=weight_decay if decays else 0.0,
                eps=epsilon,
                amsgrad=False,
                maximize=False,
                found_inf=found_inf,
            )
            write_back(batch, copies)
