"""Many variables, in batches that one kernel can take."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch

# A batch of this many parameters keeps a GPU busy, and its temporary tensors small beside the
# model; on a CPU those are to stay in the cache from one kernel to the next.
GPU_BATCH = 2**25
CPU_BATCH = 2**18


def batches(slots: Iterable, kind: Callable, cpu_batch: int = CPU_BATCH) -> Iterator[list]:
    """The slots, those of one kind and device together, in lists of bounded size.

    Args:
        slots: Anything with a tensor as its `value`.
        kind: What must be equal within a list, of a slot.
        cpu_batch: How many parameters a list may have on a CPU; it always has one slot.
    """
    groups = defaultdict(list)
    for slot in slots:
        groups[slot.value.device, kind(slot)].append(slot)
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
    return tensor.to(dtype).contiguous()


def write_back(tensors: list[torch.Tensor], copies: list[torch.Tensor]):
    """Copies each working copy to the tensor that it was made from, if it is another."""
    for tensor, copy in zip(tensors, copies, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
