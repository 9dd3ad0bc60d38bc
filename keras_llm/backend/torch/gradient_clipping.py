"""Clipping by the global norm, in two passes over the gradients and without waiting for a GPU."""

import torch


@torch.no_grad()
def clip_by_global_norm_(gradients: list[torch.Tensor], max_norm: float) -> list[torch.Tensor]:
    """Scales the gradients in place so that their norm is at most `max_norm`.

    The norm is taken in float32, or in float64 where a gradient has it. In place as
    `torch.nn.utils.clip_grad_norm_` does it: fresh memory for all gradients costs more time than
    the clipping itself.
    """
    is_double = any(gradient.dtype == torch.float64 for gradient in gradients)
    norms = torch._foreach_norm(gradients, dtype=torch.float64 if is_double else torch.float32)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    torch._foreach_mul_(gradients, max_norm / norm.clamp(min=max_norm))
    return gradients
