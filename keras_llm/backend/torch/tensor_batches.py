"""Many variables, in batches that one kernel can take."""

from collections.abc import Callable, Iterable, Iterator

import torch

# A batch of this many parameters keeps a GPU busy, and its temporary tensors small beside the
# model; on a CPU they are to stay in the cache from one kernel to the next.
GPU_BATCH = 2**25
CPU_BATCH = 2**18


def batches(slots: Iterable, key: Callable, cpu_batch: int = CPU_BATCH) -> Iterator[list]:
    """The slots, those of one key and device together, in lists of bounded size.

    Args:
        slots: Anything with a tensor as its `value`.
        key: What must be equal within a list, of a slot.
        cpu_batch: How many parameters a list may have on a CPU; it always has one slot.
    """
    open_batches, sizes = {}, {}
    for slot in slots:
        device, size = slot.value.device, slot.value.numel()
        kind = device, key(slot)
        limit = cpu_batch if device.type == "cpu" else GPU_BATCH
        if kind in open_batches and sizes[kind] + size > limit:
            yield open_batches.pop(kind)
        open_batches.setdefault(kind, []).append(slot)
        sizes[kind] = size + (sizes[kind] if len(open_batches[kind]) > 1 else 0)
    yield from open_batches.values()


def working_copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in `dtype` and in row-major order: itself, if it is so already.

    The fused kernels walk through memory and take no notice of strides: handed a transposed
    gradient they update the wrong elements, without an error.
    """
    return tensor.to(dtype).contiguous()


def write_back(tensors: list[torch.Tensor], copies: list[torch.Tensor]):
    """Copies each working copy to the tensor that it was made from, if it is another."""
    for tensor, copy in zip(tensors, copies, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
