"""Updates of many variables at once, in batches that one kernel call takes."""

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

# The most parameters of a batch. On a GPU: enough to keep it busy, with temporary tensors that are
# small beside the model. On a CPU: temporary tensors that stay in the cache between kernels.
GPU_BATCH = 2**25
CPU_BATCH = 2**18


class BatchedUpdate:
    """An update of some variables at once, prepared for their present tensors.

    Args:
        slots: For each variable a tuple of the tensors that its update takes: `value` is the
            variable's own tensor, and only slots of equal `kind` are updated together.
        made_for: The objects that `is_for` compares with.
        cpu_batch: The most parameters of a batch on a CPU.
    """

    def __init__(self, slots: Iterable, made_for: list, cpu_batch: int = CPU_BATCH):
        self.made_for = made_for
        self.batches = list(batches(slots, cpu_batch))

    def is_for(self, objects: list) -> bool:
        """Whether the update was prepared for these objects, by identity."""
        same = map(operator.is_, objects, self.made_for)
        return len(objects) == len(self.made_for) and all(same)


def batches(slots: Iterable, cpu_batch: int) -> Iterator[list]:
    """The slots, grouped by device and kind, in lists with a bounded number of parameters.

    A list may exceed the bound only if it has a single slot.
    """
    groups = defaultdict(list)
    for slot in slots:
        groups[slot.value.device, slot.kind].append(slot)
    for (device, _), group in groups.items():
        limit = cpu_batch if device.type == "cpu" else GPU_BATCH
        batch, parameters = [], 0
        for slot in group:
            if batch and parameters + slot.value.numel() > limit:
                yield batch
                batch, parameters = [], 0
            batch.append(slot)
            parameters += slot.value.numel()
        yield batch


def working_copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in `dtype` and contiguous; the tensor itself if it is both already.

    PyTorch's fused kernels ignore strides: with a transposed gradient they would update the wrong
    elements, without an error.
    """
    if tensor.dtype is dtype and tensor.is_contiguous():
        return tensor
    return tensor.to(dtype).contiguous()


def write_back(slots: Iterable, copies: list[torch.Tensor]) -> None:
    """Copies each working copy back to its variable, unless it is the variable's own tensor."""
    for slot, copy in zip(slots, copies, strict=True):
        if copy is not slot.value:
            slot.value.copy_(copy)
