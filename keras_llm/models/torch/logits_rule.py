"""What a transformers model makes of its head's product: found by numbers, not by its name."""

import contextlib
import math
from typing import NamedTuple

import torch

# Products of a trained model reach this; a soft cap shows only where they are large.
LARGE = 90.0
# More than any model lets through.
HUGE = 1e8
TOLERANCE = 2e-5


class LogitsRule(NamedTuple):
    """How logits come from the product of hidden vectors and head: with `z = scale * product`,

        logits = z + bias       or, with a soft cap c,      logits = c tanh(z / c)

    Attributes:
        scale: A number; 1.0 where there is none.
        bias: One number an id, `[vocab]`, or None. It is a buffer or a constant, not a parameter.
        soft_cap: The number c, or None.
        reason: Why it is none of these; empty where it is.
    """

    scale: float = 1.0
    bias: torch.Tensor | None = None
    soft_cap: float | None = None
    reason: str = ""


def plain_linear(head) -> str:
    """Why a head is more than `hidden @ weight.T + bias`; empty where it is not.

    An adapter starts at 0, so numbers cannot tell: only the class can.
    """
    if type(head) is not torch.nn.Linear:
        name = f"{type(head).__module__}.{type(head).__name__}"
        return f"the head is a {name}, not a torch.nn.Linear"
    if head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head):
        return "the head has a hook"
    return ""


@contextlib.contextmanager
def replaced(head, forward):
    """Context manager in which a head computes something else."""
    head.forward = forward
    try:
        yield
    finally:
        del head.forward


@torch.no_grad()
def logits_rule(model, head, inputs: dict) -> LogitsRule:
    """The rule, found by handing a model products of our own in place of its head's.

    Args:
        model: The transformers model, in evaluation mode.
        head: Its output embeddings.
        inputs: A few tokens.
    """
    shape = None

    def logits_of(make):
        def forward(hidden):
            nonlocal shape
            shape = (*hidden.shape[:-1], head.weight.shape[0])
            return make(torch.ones(shape, device=hidden.device))

        with replaced(head, forward):
            return model(**inputs, use_cache=False).logits.double()

    generator = torch.Generator().manual_seed(0)

    def drawn(ones):
        return torch.randn(ones.shape, generator=generator).mul_(LARGE / 3).to(ones)

    zero = logits_of(torch.zeros_like)
    if zero.shape != shape:
        return LogitsRule(reason=f"the head's {shape} become logits {tuple(zero.shape)}")
    one, huge = logits_of(lambda ones: ones) - zero, logits_of(lambda ones: ones * HUGE)
    products = None

    def kept(ones):
        nonlocal products
        products = drawn(ones)
        return products

    logits = logits_of(kept)
    products, bias = products.double(), zero.reshape(-1, shape[-1])[0]
    for rule in candidates(one, huge, bias):
        z = rule.scale * products
        if rule.soft_cap is not None:
            z = rule.soft_cap * torch.tanh(z / rule.soft_cap)
        if (z + zero - logits).abs().max() <= TOLERANCE * z.abs().max():
            is_constant = torch.equal(zero, bias.expand(shape))
            if is_constant and (rule.bias is None or rule.soft_cap is None):
                buffer = added_buffer(model, bias, lambda: logits_of(torch.zeros_like))
                return rule if buffer is None else rule._replace(bias=buffer.flatten())
    return LogitsRule(reason="the logits are neither the head's product, scaled, nor soft-capped")


def added_buffer(model, bias, logits_of_zero):
    """The buffer that is the constant, None without one: what is loaded later counts too."""
    for buffer in model.buffers():
        if buffer.numel() != bias.numel() or not torch.equal(buffer.flatten().double(), bias):
            continue
        buffer.add_(1.0)
        try:
            grown = logits_of_zero().reshape(-1, len(bias))[0]
        finally:
            buffer.copy_(bias.reshape(buffer.shape))
        if torch.allclose(grown, bias + 1.0):
            return buffer
    return None


def candidates(one, huge, bias):
    """The rules that what came of 0, of 1 and of a huge number leaves open."""
    constant = bias.float() if bias.any() else None
    scale = one.median().item()
    yield LogitsRule(scale, constant)
    cap = huge.abs().max().item()
    if 0.0 < cap < HUGE / 2 and abs(scale) < cap:
        scale = cap * math.atanh(scale / cap)
        # A scale of 1 came back as one that float32 has rounded.
        scale = 1.0 if abs(scale - 1.0) < TOLERANCE else scale
        yield LogitsRule(scale, constant, round(cap, 4))
