"""The formulas of the losses, written out over whole float64 rows with torch's own functions."""

import torch
import torch.nn.functional as F


def crossentropy(logits, labels, smoothing=0.0, z_loss=0.0):
    """Per token; `torch.nn.functional.cross_entropy` plus the squared log-sum-exp."""
    loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return loss + z_loss * torch.logsumexp(logits, -1) ** 2


def focal(logits, labels, gamma, alpha=None, smoothing=0.0, z_loss=0.0):
    """Per token; equation 5 of Lin et al. with the softmax's probability of the label."""
    p = logits.softmax(-1).gather(-1, labels[:, None])[:, 0]
    loss = (1 - p) ** gamma * F.cross_entropy(
        logits, labels, reduction="none", label_smoothing=smoothing
    )
    if alpha is not None:
        alpha = torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)
        loss = loss * alpha.expand(logits.shape[-1])[labels]
    return loss + z_loss * torch.logsumexp(logits, -1) ** 2


def reduce(losses, weights, reduction):
    """Mean over the weights, sum, or none."""
    if reduction == "none":
        return losses * weights
    total = (losses * weights).sum()
    return total if reduction == "sum" else total / weights.sum()
