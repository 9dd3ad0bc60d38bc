"""The card, the versions, and the two ceilings: products and copies."""

import datetime
import importlib.metadata
import platform
import subprocess

import torch

from gpu_parts.rows import measure

PACKAGES = ["torch", "triton", "keras", "transformers", "liger-kernel", "cut-cross-entropy"]


def run(rows):
    rows.add("date", value=str(datetime.date.today()))
    rows.add("card", value=card(rows.device))
    rows.add("Python", value=platform.python_version())
    for name in PACKAGES:
        rows.add(name, value=version(name))
    size = 256 if rows.small else 8192
    a, b = (torch.randn(size, size, device=rows.device, dtype=torch.bfloat16) for _ in range(2))
    milliseconds, _ = measure(lambda: torch.mm(a, b), rows.device)
    rows.add("bfloat16 product", TFLOPs=2e-9 * size**3 / milliseconds, ms=milliseconds, size=size)
    source = torch.randn(2**20 if rows.small else 2**30, device=rows.device)
    target = torch.empty_like(source)
    milliseconds, _ = measure(lambda: target.copy_(source), rows.device)
    moved = 2 * source.numel() * source.element_size()
    rows.add("copy", TBs=1e-9 * moved / milliseconds, ms=milliseconds, bytes=moved)


def card(device):
    if device == "cpu":
        return "a CPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip() or torch.cuda.get_device_name()


def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
