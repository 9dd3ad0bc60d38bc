"""The partial derivatives of a loss's formula, by autograd on vectors of one number a token."""

import torch


def differentiate(formula, nll, lse, mean_logit, labels, vocab_size):
    """`token_loss` of vectors, and its three partial derivatives; None for a number not used."""
    with torch.enable_grad():
        numbers = [x.detach().requires_grad_() for x in (nll, lse, mean_logit)]
        losses = formula(*numbers, labels, vocab_size)
        partials = torch.autograd.grad(losses.sum(), numbers, allow_unused=True)
    return losses.detach(), partials
