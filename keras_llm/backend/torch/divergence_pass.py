"""The divergence of a student from a teacher, chunk by chunk, without the logits of a batch."""

import torch

from keras_llm.backend.chunks import chunk_rows
from keras_llm.backend.head_matrix import HeadMatrix, logits_of
from keras_llm.backend.torch.tensors import upcast_dtype


def divergence_pass(hidden, head, teacher_hidden, teacher_head, weights, temperature, training):
    """`sum w T^2 KL(softmax(z_teacher / T) || softmax(z / T))`, summed over the vocabulary.

    Args:
        hidden, teacher_hidden: `[tokens, d_model]`, of any two widths.
        head, teacher_head: A `HeadMatrix` each, over the same vocabulary.
        weights: `[tokens]`; rows of weight 0 are left out.
        temperature: T.
        training: Whether gradients are made, of the student's hidden vectors, kernel and bias.

    Returns:
        The sum, which can be differentiated once.
    """
    kept = weights.nonzero().squeeze(1)
    hidden, taught, weights = (x.index_select(0, kept) for x in (hidden, teacher_hidden, weights))
    needs_gradients = training and torch.is_grad_enabled()
    constants = taught, head.soft_cap, teacher_head, weights, temperature, needs_gradients
    return DivergencePass.apply(hidden, head.kernel, head.bias, *constants)


class DivergencePass(torch.autograd.Function):
    """The pass; gradients are made going forward, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx, hidden, kernel, bias, taught, soft_cap, teacher_head, weights, temperature, grads
    ):
        """The sum over the tokens; see `divergence_pass`."""
        dtype = upcast_dtype(hidden)
        weights, total = weights.to(dtype), weights.new_zeros((), dtype=dtype)
        inputs = [hidden, kernel] if bias is None else [hidden, kernel, bias]
        gradients = [torch.zeros_like(x, dtype=dtype) for x in inputs] if grads else []
        size = chunk_rows(kernel.shape[1], hidden.device.type)
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            logits = logits_of(hidden[chunk], HeadMatrix(kernel, bias, soft_cap), dtype)
            target = logits_of(taught[chunk], teacher_head, dtype)
            student = torch.log_softmax(logits / temperature, dim=1)
            teacher = torch.log_softmax(target / temperature, dim=1)
            share = teacher.exp()
            losses = (share * (teacher - student)).sum(dim=1)
            total += temperature**2 * (losses * weights[chunk]).sum()
            if not grads:
                continue
            # T^2 KL has the gradient T (p - q) with respect to the logits.
            change = student.exp_().sub_(share).mul_(temperature * weights[chunk, None])
            if soft_cap is not None:
                change *= 1.0 - (logits / soft_cap) ** 2
            narrow = change.to(hidden.dtype)
            gradients[0][chunk] = narrow @ kernel.T.to(hidden.dtype)
            gradients[1] += hidden[chunk].T @ narrow
            if bias is not None:
                gradients[2] += change.sum(dim=0)
        ctx.gradients = [g.to(x.dtype) for g, x in zip(gradients, inputs, strict=bool(grads))]
        return total

    @staticmethod
    def backward(ctx, upstream):
        """The gradients of hidden vectors, kernel and bias."""
        scaled = [upstream.to(gradient.dtype) * gradient for gradient in ctx.gradients]
        return *scaled, *[None] * (9 - len(scaled))
