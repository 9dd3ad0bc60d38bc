"""Updating many variables at once: in batches that one kernel takes, prepared once."""

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

# A batch of this many parameters keeps a GPU busy, and its temporary tensors small beside the
# model; on a CPU those are to stay in the cache from one kernel to the next.
GPU_BATCH = 2**25
CPU_BATCH = 2**18


class BatchedUpdate:
    """The update of some variables at once, prepared for the tensors that they have.

    Args:
        slots: A tuple for each variable with what its update needs: its tensor as `value`, and as
            `kind` what it must have in common with others to be updated together.
        tensors: What `is_for` compares.
        cpu_batch: How many parameters a batch may have on a CPU.
    """

    def __init__(self, slots: Iterable, tensors: list[torch.Tensor], cpu_batch: int = CPU_BATCH):
        self.tensors = tensors
        self.batches = list(batches(slots, cpu_batch))

    def is_for(self, tensors: list[torch.Tensor]) -> bool:
        """Whether these are the very tensors that the update was prepared for."""
        same = map(operator.is_, tensors, self.tensors)
        return len(tensors) == len(self.tensors) and all(same)


def batches(slots: Iterable, cpu_batch: int) -> Iterator[list]:
    """The slots, those of one kind and device together, in lists of bounded size, or of one."""
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
    """The tensor in `dtype` and in row-major order: itself, if it is so already.

    PyTorch's fused kernels walk through memory and take no notice of strides: handed a transposed
    gradient they update the wrong elements, without an error.
    """
    if tensor.dtype is dtype and tensor.is_contiguous():
        return tensor
    return tensor.to(dtype).contiguous()


def write_back(slots: Iterable, copies: list[torch.Tensor]):
    """Copies each working copy to the variable that it was made from, if it is another tensor."""
    for slot, copy in zip(slots, copies, strict=True):
        if copy is not slot.value:
            slot.value.copy_(copy)
