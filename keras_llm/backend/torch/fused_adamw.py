"""AdamW's update of all variables by PyTorch's fused kernel."""

from typing import NamedTuple

import torch

from keras_llm.backend.torch.tensor_batches import GPU_BATCH, batches, working_copy, write_back

# Private in PyTorch; `torch.optim.AdamW(fused=True)` is hardly more than a call of it.
kernel = getattr(torch, "_fused_adamw_", None)


class AdamWSlot(NamedTuple):
    """A variable with what its update needs."""

    value: torch.Tensor
    gradient: torch.Tensor
    momentum: torch.Tensor
    velocity: torch.Tensor
    weight_decay: float

    @property
    def kind(self):
        """What slots of one batch have in common."""
        return self.momentum.dtype, self.weight_decay


@torch.no_grad()
def fused_adamw(
    slots: list[AdamWSlot],
    step: torch.Tensor,
    learning_rate: torch.Tensor,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> bool:
    """Updates values, momentums and velocities in place, and says whether PyTorch has the kernel.

    Args:
        slots: The variables. Those of less precision than their state are updated in a copy.
        step: Which update this is, from 1 on: a float32 scalar on the variables' device.
        learning_rate: A scalar on the variables' device; nothing waits for its value.
        beta_1: Decay of the momentums.
        beta_2: Decay of the velocities.
        epsilon: Added to the denominator.
    """
    if kernel is None:
        return False
    # The kernel needs no temporary tensors, so there is no cache to fit on a CPU.
    for batch in batches(slots, lambda slot: slot.kind, cpu_batch=GPU_BATCH):
        dtype, weight_decay = batch[0].kind
        copies = [working_copy(slot.value, dtype) for slot in batch]
        kernel(
            copies,
            [working_copy(slot.gradient, dtype) for slot in batch],
            [slot.momentum for slot in batch],
            [slot.velocity for slot in batch],
            [],
            [step] * len(batch),
            lr=learning_rate,
            beta1=beta_1,
            beta2=beta_2,
            weight_decay=weight_decay,
            eps=epsilon,
            amsgrad=False,
            maximize=False,
        )
        write_back([slot.value for slot in batch], copies)
    return True
