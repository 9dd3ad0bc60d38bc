"""Products of two matrices of a narrow dtype, summed and written in a wider one."""

import torch


def adds_in_float32(left: torch.Tensor) -> bool:
    """Whether the device multiplies bfloat16 and float16 and hands out the sums in float32."""
    overloads = (torch.ops.aten.mm, torch.ops.aten.addmm)
    exist = all("dtype_out" in product.overloads() for product in overloads)
    return exist and left.device.type in ("cuda", "meta")


def product(left, right, out):
    """Writes `left @ right` to `out`, which may be of a wider dtype than theirs."""
    if out.dtype == left.dtype:
        return torch.mm(left, right, out=out)
    if adds_in_float32(left):
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(torch.mm(left, right))


def add_product(total, left, right):
    """Adds `left @ right` to `total`, which may be of a wider dtype than theirs."""
    if total.dtype == left.dtype:
        return total.addmm_(left, right)
    if adds_in_float32(left):
        return torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    return total.add_(torch.mm(left, right))
