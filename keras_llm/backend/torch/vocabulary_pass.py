"""Loss, statistics and gradients in one pass over the vocabulary, without the logits of a batch.

For a token with logits z = h @ K + b and label t, every token loss is f(nll, lse, mean_logit), so

    dz = a * softmax(z) - f_nll * onehot(t) + f_mean / V        a = f_nll + f_lse

with the partial derivatives of f as numbers of one token. With E = exp(z - max z) and s its sum,

    dh = (a / s) * E @ K' - f_nll * K[:, t] + f_mean * mean(K)

and likewise for K and b: one buffer of a few hundred rows holds z, then E, and is used again.
"""

import math

import torch

from keras_llm.backend.chunks import chunk_rows, tiles
from keras_llm.backend.torch import row_kernels
from keras_llm.backend.torch import tensors as facts
from keras_llm.backend.torch.derivatives import differentiate
from keras_llm.backend.torch.fused_rows import FusedRows
from keras_llm.backend.torch.logits_pass import in_top_k
from keras_llm.backend.torch.products import add_product, product

# On a GPU, to take the rows that count out of more than this costs what it saves.
ALMOST_ALL = 0.95


def vocabulary_pass(
    hidden, kernel, bias, labels, weights, formula, scale, top_k, training, at_most=None
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

    Returns:
        The number to minimise, which can be differentiated once; the four sums of
        `TokenStatistics`; and the `nll` of each token, `[tokens]`, 0 where the weight is 0.
    """
    # In a Function `needs_input_grad` is true under no_grad too: it is asked out here.
    needs_gradients = training and torch.is_grad_enabled()
    objective, nll, *sums = VocabularyPass.apply(
        hidden, kernel, bias, labels, weights, formula, scale, top_k, needs_gradients, at_most
    )
    return objective, tuple(sums), nll


class VocabularyPass(torch.autograd.Function):
    """The pass; gradients are made going forward, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx, hidden, kernel, bias, labels, weights, formula, scale, top_k, needs_gradients, at_most
    ):
        """The objective, each token's nll and the four sums; see `vocabulary_pass`."""
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, kernel, bias)]
        count, kept = len(hidden), rows_that_count(weights, at_most)
        if kept is not None:
            hidden, labels, weights = (x.index_select(0, kept) for x in (hidden, labels, weights))
        if row_kernels.can_launch(hidden):
            rows = FusedRows(hidden, kernel, bias, labels, weights)
            # float16 would round gradients of a mean to 0 in the middle of the pass.
            ctx.scale = scale
        else:
            rows, ctx.scale = Rows(hidden, kernel, bias, labels, weights, scale), None
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
                "This loss can be differentiated once: its gradients, as large as the head, were "
                "made with it and are given away. For a second backward() or autograd.grad call "
                "the model again, or compute the loss from the logits: loss(labels, model(x))."
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
            *[None] * 7,
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


class Rows:
    """The rows that count, and what is accumulated over their chunks."""

    def __init__(self, hidden, kernel, bias, labels, weights, scale):
        # CPUs multiply bfloat16 slower than float32; everywhere, sums are made in float32.
        cpu = hidden.device.type == "cpu"
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.product_dtype = self.dtype if cpu else hidden.dtype
        self.hidden = hidden.to(self.product_dtype)
        self.labels, self.weights = labels.long(), weights.to(self.dtype)
        self.kernel = kernel.to(self.product_dtype)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.scale = scale

    def reduce(self, formula, top_k, needs_gradients):
        """The sums `(loss, nll, correct, tokens)`, and the gradients of hidden, kernel and bias."""
        count, vocab_size = len(self.hidden), self.kernel.shape[1]
        device_type = self.hidden.device.type
        rows = max(min(chunk_rows(vocab_size, device_type), count), 1)
        self.tiles = tiles(vocab_size, device_type)
        buffer = self.hidden.new_empty(rows, vocab_size, dtype=self.dtype)
        sums = self.hidden.new_zeros(4, dtype=self.dtype)
        self.allocate(needs_gradients)
        for start in range(0, count, rows):
            chunk = slice(start, min(start + rows, count))
            logits = buffer[: chunk.stop - start]
            sums += self.reduce_chunk(logits, chunk, formula, top_k, needs_gradients)
        return sums.unbind(), self.gradients()

    def reduce_chunk(self, out, chunk, formula, top_k, needs_gradients):
        """The sums of one chunk; its gradients are added to the accumulators."""
        labels, weights = self.labels[chunk], self.weights[chunk]
        logits, max_logit = self.logits(chunk, out)
        label_logit = logits.gather(1, labels[:, None]).squeeze(1)
        correct = weights.new_zeros(())
        if top_k:
            hits = in_top_k(logits, labels, weights != 0, max_logit, top_k)
            correct = (weights * hits).sum()
        exponentials, total = self.exponentials(logits, max_logit)
        lse = total.log() + max_logit
        nll = lse - label_logit
        self.nll[chunk] = nll

        losses, partials = self.differentiate(formula, nll, lse, chunk)
        weighted_losses = (losses * weights).sum()
        sums = torch.stack([weighted_losses, (nll * weights).sum(), correct, weights.abs().sum()])
        if needs_gradients:
            factor, zero = weights * self.scale, torch.zeros_like(nll)
            f_nll, f_lse = (zero if p is None else p for p in partials[:2])
            f_mean = partials[2]
            softmax_factor = (f_nll + f_lse) * factor / total
            label_factor = f_nll * factor
            mean_factor = None if f_mean is None else f_mean * factor
            self.accumulate(exponentials, chunk, softmax_factor, label_factor, mean_factor)
        return sums

    def logits(self, chunk, out):
        """The logits of a chunk, and the largest logit of each row."""
        hidden, max_logit = self.hidden[chunk], []
        for columns in self.tiles:
            tile = product(hidden, self.kernel[:, columns], out=out[:, columns])
            if self.bias is not None:
                tile += self.bias[columns]
            max_logit.append(tile.amax(dim=1))
        return out, torch.stack(max_logit).amax(dim=0)

    def exponentials(self, logits, max_logit):
        """`exp(logits - max_logit)`, in place of the logits, and their sums."""
        totals = []
        for columns in self.tiles:
            tile = facts.exp_in_place(logits[:, columns].sub_(max_logit[:, None]))
            totals.append(tile.sum(dim=1))
        return logits, torch.stack(totals).sum(dim=0)

    def differentiate(self, formula, nll, lse, chunk):
        """The loss of each token, and its partial derivatives by the three numbers."""
        labels, vocab_size = self.labels[chunk], self.kernel.shape[1]
        mean_logit = torch.zeros_like(nll)
        losses, partials = differentiate(formula, nll, lse, mean_logit, labels, vocab_size)
        if partials[2] is None:
            return losses, partials
        # Only now is it known that the formula asks for the mean, which the buffer need not yield:
        # the mean of h @ K is h @ mean(K).
        if self.kernel_mean is None:
            self.kernel_mean = self.kernel.mean(dim=1)
        mean_logit = (self.hidden[chunk] @ self.kernel_mean).to(self.dtype)
        if self.bias is not None:
            mean_logit += self.bias.mean()
        return differentiate(formula, nll, lse, mean_logit, labels, vocab_size)

    def allocate(self, needs_gradients):
        """Makes the accumulators."""
        self.nll = torch.empty_like(self.weights)
        self.kernel_mean = None
        if not needs_gradients:
            self.d_hidden = self.d_kernel = self.d_bias = None
            return
        self.d_hidden = torch.empty_like(self.hidden, dtype=self.dtype)
        self.d_kernel = torch.zeros_like(self.kernel, dtype=self.dtype)
        self.d_bias = None if self.bias is None else torch.zeros_like(self.bias)
        self.d_mean = 0.0

    def accumulate(self, exponentials, chunk, softmax_factor, label_factor, mean_factor):
        """Adds a chunk to the gradients; the exponentials are not needed afterwards."""
        hidden, labels = self.hidden[chunk], self.labels[chunk]
        d_hidden = self.d_hidden[chunk]
        exponentials = exponentials.to(self.product_dtype)
        product(exponentials, self.kernel.T, out=d_hidden)
        d_hidden *= softmax_factor[:, None]
        d_hidden -= label_factor[:, None] * self.kernel.T.index_select(0, labels)

        scaled = hidden * softmax_factor[:, None].to(hidden.dtype)
        add_product(self.d_kernel, scaled.T, exponentials)
        self.d_kernel.T.index_add_(0, labels, -(hidden * label_factor[:, None]).to(self.dtype))
        if self.d_bias is not None:
            self.d_bias.addmv_(exponentials.T.to(self.dtype), softmax_factor)
            self.d_bias.index_add_(0, labels, -label_factor)
        if mean_factor is not None:
            d_hidden += mean_factor[:, None] * self.kernel_mean
            share = mean_factor / self.kernel.shape[1]
            self.d_kernel += (hidden * share[:, None]).sum(0)[:, None]
            if self.d_bias is not None:
                self.d_bias += share.sum()

    def gradients(self):
        """Of hidden, kernel and bias."""
        return self.d_hidden, self.d_kernel, self.d_bias
