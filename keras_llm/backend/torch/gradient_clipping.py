"""The global norm and clipping by it, without a host-device synchronisation."""

import torch


@torch.no_grad()
def global_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """sqrt(sum of all squares), in float64 if a gradient is float64, else in float32."""
    is_double = any(gradient.dtype == torch.float64 for gradient in gradients)
    norms = torch._foreach_norm(gradients, dtype=torch.float64 if is_double else torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def clip_by_global_norm_(
    gradients: list[torch.Tensor], max_norm: float, norm: torch.Tensor | None = None
) -> torch.Tensor:
    """Scales the gradients in place so that their global norm is at most `max_norm`.

    Returns the norm before, like `torch.nn.utils.clip_grad_norm_`. In place, because allocating new
    gradients takes longer than clipping them. `norm` is the norm before, where it is known.
    """
    norm = global_norm(gradients) if norm is None else norm
    torch._foreach_mul_(gradients, max_norm / norm.clamp(min=max_norm))
    return norm
