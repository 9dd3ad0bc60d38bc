"""What the device tells about itself."""

import torch

# Dense bfloat16 (float16 before Ampere) operations a second, from NVIDIA's data sheets. The first
# name that a device's name contains is its own.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(compute_dtype: str) -> float | None:
    """Operations a second that the device could do, if that is known for its kind and dtype."""
    if not torch.cuda.is_available() or compute_dtype not in ("bfloat16", "float16"):
        return None
    return peak_of(torch.cuda.get_device_name())


def peak_of(device_name: str) -> float | None:
    """The peak of a kind of device."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def has_flash_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether PyTorch's flash attention runs on tensors of this kind: half precision, on a GPU."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or head_dim > 256:
        return False
    if not torch.backends.cuda.is_flash_attention_available():
        return False
    # Tensors of a GPU that is not there are a tracer's: they stand for those of a new one.
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)


def peak_memory_gb() -> float | None:
    """The most that tensors have taken on the GPU so far, in 10^9 bytes."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
