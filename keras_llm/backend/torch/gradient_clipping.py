"""The global norm and clipping by it, in two passes over the gradients, not waiting for a GPU."""

import torch


@torch.no_grad()
def global_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The root of the sum of all squares, in float32, or in float64 where a gradient has it."""
    is_double = any(gradient.dtype == torch.float64 for gradient in gradients)
    norms = torch._foreach_norm(gradients, dtype=torch.float64 if is_double else torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def clip_by_global_norm_(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scales the gradients in place so that their norm is at most `max_norm`.

    In place as `torch.nn.utils.clip_grad_norm_` does it, and like it returns the norm before: fresh
    memory for all gradients costs more time than the clipping itself.
    """
    norm = global_norm(gradients)
    torch._foreach_mul_(gradients, max_norm / norm.clamp(min=max_norm))
    return norm
