"""Loss, statistics and gradients in one pass over the vocabulary, without the logits of a batch.

For a token with logits z = h @ K + b and label t, every token loss is f(nll, lse, mean_logit), so

    dz = a * softmax(z) - f_nll * onehot(t) + f_mean / V        a = f_nll + f_lse

with the partial derivatives of f as numbers of one token. A head with a soft cap c has the logits
c * tanh(z / c) instead, which multiplies dz by 1 - tanh(z / c)^2.
"""

import math

import torch

from keras_llm.backend.torch import row_kernels
from keras_llm.backend.torch import tensors as facts
from keras_llm.backend.torch.capped_rows import CappedFusedRows, CappedRows
from keras_llm.backend.torch.fused_rows import FusedRows
from keras_llm.backend.torch.rows import Rows

# On a GPU, to take the rows that count out of more than this costs what it saves.
ALMOST_ALL = 0.95


def vocabulary_pass(
    hidden,
    kernel,
    bias,
    labels,
    weights,
    formula,
    scale,
    top_k,
    training,
    at_most=None,
    soft_cap=None,
):
    """Reduces hidden vectors over the vocabulary.

    Args:
        hidden: `[tokens, d_model]`.
        kernel: `[d_model, vocab]`, of any layout.
        bias: `[vocab]` or None.
        labels: `[tokens]`, inside the vocabulary.
        weights: `[tokens]`, float32; rows of weight 0 are dropped before the product.
        formula: `(nll, lse, mean_logit, labels, vocab_size) -> loss of each token`.
        scale: What the sum of the losses is multiplied by to be minimised; a number or a scalar.
        top_k: Counts a label as correct among this many best guesses; 0 counts nothing.
        training: Whether gradients are made.
        at_most: A number on the host that no fewer than the rows with a weight are; None where it
            is not known.
        soft_cap: The head's, or None; see `HeadMatrix`.

    Returns:
        The number to minimise, which can be differentiated once; the four sums of
        `TokenStatistics`; and the `nll` of each token, `[tokens]`, 0 where the weight is 0.
    """
    # In a Function `needs_input_grad` is true under no_grad too: it is asked out here.
    needs_gradients = training and torch.is_grad_enabled()
    objective, nll, *sums = VocabularyPass.apply(
        hidden,
        kernel,
        bias,
        labels,
        weights,
        formula,
        scale,
        top_k,
        needs_gradients,
        at_most,
        soft_cap,
    )
    return objective, tuple(sums), nll


class VocabularyPass(torch.autograd.Function):
    """The pass; gradients are made going forward, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx,
        hidden,
        kernel,
        bias,
        labels,
        weights,
        formula,
        scale,
        top_k,
        needs_gradients,
        at_most,
        soft_cap,
    ):
        """The objective, each token's nll and the four sums; see `vocabulary_pass`."""
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, kernel, bias)]
        count, kept = len(hidden), rows_that_count(weights, at_most)
        if kept is not None:
            hidden, labels, weights = (x.index_select(0, kept) for x in (hidden, labels, weights))
        given = hidden, kernel, bias, labels, weights
        if row_kernels.can_launch(hidden):
            rows = FusedRows(*given) if soft_cap is None else CappedFusedRows(*given, soft_cap)
            # float16 would round gradients of a mean to 0 in the middle of the pass.
            ctx.scale = scale
        else:
            given = *given, scale
            rows = Rows(*given) if soft_cap is None else CappedRows(*given, soft_cap)
            ctx.scale = None
        sums, (d_hidden, *others) = rows.reduce(formula, top_k, needs_gradients)
        ctx.gradients = of_all_rows(d_hidden, kept, count), *others
        objective, nll = sums[0] * scale, of_all_rows(rows.nll, kept, count)
        ctx.mark_non_differentiable(nll, *sums)
        return objective, nll, *sums

    @staticmethod
    def backward(ctx, upstream, *_):
        """The gradients, scaled if anything but 1 comes down, each in the dtype of its input.

        Scaled first: a loss scale is there because float16 would round small gradients to 0.
        """
        if ctx.gradients is None:
            raise RuntimeError(
                "This loss can be differentiated only once: its gradients, which are as large as "
                "the head, were computed with it and are not kept. Before a second backward() or "
                "autograd.grad call the model again, or compute the loss from the logits: "
                "loss(labels, model(x))."
            )
        gradients, ctx.gradients = ctx.gradients, None
        # Reading the number would make a GPU wait; there the product costs next to nothing.
        if ctx.scale is not None:
            upstream = upstream * ctx.scale
        elif facts.is_on_host(upstream) and upstream.item() == 1.0:
            upstream = None
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return (
            *(None if g is None else scaled(g, upstream, dtype) for g, dtype in pairs),
            *[None] * 8,
        )


def rows_that_count(weights, at_most):
    """The indices of the rows with a weight, perhaps with some others; None for all rows."""
    if facts.is_on_host(weights):
        return None if bool((weights != 0).all()) else weights.nonzero().squeeze(1)
    # A GPU's products take rows 64 at a time or more.
    size = len(weights) if at_most is None else 64 * math.ceil(at_most / 64)
    if size > ALMOST_ALL * len(weights):
        return None
    return (weights == 0).to(torch.uint8).argsort(stable=True)[:size]


def of_all_rows(values, kept, count):
    """The values of the rows in `kept`, with zeros for the others."""
    if values is None or kept is None:
        return values
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, kept, values)


def scaled(gradient, factor, dtype):
    """The gradient times the factor, if there is one, in the dtype: in one pass over it."""
    if factor is None:
        return gradient.to(dtype)
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, factor, out=out)
