"""The head alone: hidden vectors to the loss and both gradients, beside what else there is."""

import torch
import torch.nn.functional as F

from gpu_parts.rows import free_memory, measure

SHAPES = [(16_384, 768, 50_304), (8_192, 4_096, 128_256)]  # tokens, d_model, vocabulary


def run(rows):
    for shape in [(32, 16, 101)] if rows.small else SHAPES:
        products = None
        tokens, d_model, vocab = shape
        hidden, table, labels = make_inputs(*shape, rows.device)
        for name, make in SIDES.items():
            label = f"{tokens} x {d_model} x {vocab}, {name}"
            with rows.side(label):
                step = make(hidden, table, labels)
                milliseconds, peak = measure(step, rows.device)
                products = products or milliseconds
                loss = step()
                rows.add(
                    label,
                    ms=milliseconds,
                    over_products=milliseconds / products,
                    peak_GB=1e-9 * peak,
                    loss=float(loss) if loss is not None else None,
                )
            hidden.grad = table.grad = step = loss = None
            free_memory(rows.device)


def make_inputs(tokens, d_model, vocab, device):
    """Hidden vectors and a table `[vocab, d_model]`, both to be differentiated, and labels."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, device=device, generator=generator).to(torch.bfloat16)

    hidden = normal(tokens, d_model).requires_grad_()
    table = (normal(vocab, d_model) / d_model**0.5).requires_grad_()
    return hidden, table, torch.randint(vocab, (tokens,), device=device, generator=generator)


def products(hidden, table, labels):
    """The three products alone, of a gradient that is already there."""
    h, w = hidden.detach(), table.detach()
    gradient = torch.randn(len(h), len(w), device=h.device, dtype=h.dtype)
    outputs = torch.empty_like(gradient), torch.empty_like(h), torch.empty_like(w)

    def step():
        torch.mm(h, w.T, out=outputs[0])
        torch.mm(gradient, w, out=outputs[1])
        torch.mm(gradient.T, h, out=outputs[2])

    return step


def with_gradients(loss):
    """A side: `loss(hidden, table, labels)`, forward and backward."""

    def make(hidden, table, labels):
        def step():
            hidden.grad = table.grad = None
            value = loss(hidden, table, labels)
            value.backward()
            return value.detach()

        return step

    return make


def ours(hidden, table, labels):
    from keras_llm.backend.torch.vocabulary_pass import vocabulary_pass
    from keras_llm.losses import MaskedSparseCategoricalCrossentropy

    formula = MaskedSparseCategoricalCrossentropy().formula
    weights = torch.ones(len(labels), device=labels.device)

    def loss(hidden, table, labels):
        scale = 1.0 / len(labels)
        return vocabulary_pass(
            hidden, table.T, None, labels, weights, formula, scale, 1, training=True
        )[0]

    return with_gradients(loss)(hidden, table, labels)


def whole_logits(hidden, table, labels):
    return F.cross_entropy((hidden @ table.T).float(), labels)


def compiled(hidden, table, labels):
    torch._dynamo.reset()
    step = torch.compile(whole_logits, dynamic=False)
    return with_gradients(step)(hidden, table, labels)


def linear_cross_entropy(hidden, table, labels):
    return F.linear_cross_entropy(hidden, table, labels)


def liger(hidden, table, labels):
    from liger_kernel.transformers.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyLoss,
    )

    loss = LigerFusedLinearCrossEntropyLoss()
    return with_gradients(lambda h, w, t: loss(w, h, t))(hidden, table, labels)


def cut_cross_entropy(hidden, table, labels):
    from cut_cross_entropy import linear_cross_entropy

    return with_gradients(linear_cross_entropy)(hidden, table, labels)


SIDES = {
    "three products alone": products,
    "ours, with accuracy": ours,
    "whole logits, compiled": compiled,
    "whole logits": with_gradients(whole_logits),
    "F.linear_cross_entropy": with_gradients(linear_cross_entropy),
    "Liger": liger,
    "cut cross entropy": cut_cross_entropy,
}
