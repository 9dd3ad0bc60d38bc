"""The pass over the vocabulary on a GPU: matrix products, and one kernel between them.

With p = softmax(z), the gradient of the logits (see `vocabulary_pass.py`) is

    dz = a * (p - onehot(t)) + f_lse * onehot(t) + f_mean / V        a = f_nll + f_lse

The kernel writes p - onehot(t), in which no formula has a part, over a few rows of logits at once;
the products take many rows of it. The factor a of a row goes to its hidden vector.
"""

import torch

from keras_llm.backend.chunks import chunk_rows
from keras_llm.backend.torch.derivatives import differentiate
from keras_llm.backend.torch.products import add_product, product
from keras_llm.backend.torch.row_kernels import RowNumbers, new_numbers, reduce_rows

# Of the logits, which a few rows have at once. None is the dtype of the hidden vectors: half of
# the traffic, and logits that are rounded as a layer's output is.
LOGITS_DTYPE = torch.float32
# How many rows have logits at once: enough for a product to run at full speed.
LOGITS_ROWS = 512
# Below it a chunk fits anywhere, and asking how much is free would take longer.
SMALL_BYTES = 64 * 2**20


class FusedRows:
    """All rows; those of weight 0 count for nothing, whatever they hold."""

    def __init__(self, hidden, kernel, bias, labels, weights):
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.hidden, self.kernel = hidden, kernel.to(hidden.dtype)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.labels, self.weights = labels.long(), weights.to(self.dtype)
        self.skipped = self.weights == 0

    def reduce(self, formula, top_k, needs_gradients):
        """The sums `(loss, nll, correct, tokens)`, and the gradients of hidden, kernel and bias.

        The gradients are those of the sum of the losses, which nothing has scaled.
        """
        count, vocab_size = len(self.hidden), self.kernel.shape[1]
        self.out = new_numbers(count, self.hidden, self.dtype)
        self.numbers, self.top_k = RowNumbers(*self.out.unbind()), top_k
        self.allocate(needs_gradients)
        losses = torch.empty_like(self.nll)
        for chunk in slices(0, count, self.rows):
            self.reduce_logits(chunk)
            tokens = *(x[chunk] for x in self.numbers[:3]), self.labels[chunk], vocab_size
            if needs_gradients:
                losses[chunk], partials = differentiate(formula, *tokens)
                self.accumulate(chunk, *partials)
            else:
                losses[chunk] = formula(*tokens)
        # The formula has a value for rows of weight 0 too, which may be NaN.
        losses.masked_fill_(self.skipped, 0.0)
        sums = (torch.stack([losses, self.nll, self.numbers.hit]) * self.weights).sum(1)
        gradients = self.d_hidden, self.d_kernel, self.d_bias
        return (*sums.unbind(), self.weights.abs().sum()), gradients

    @property
    def nll(self):
        """Of each row."""
        return self.numbers.nll

    def allocate(self, needs_gradients):
        """Makes the accumulators and the room for a chunk."""
        hidden, (count, vocab_size) = self.hidden, (len(self.hidden), self.kernel.shape[1])
        self.d_hidden = self.d_kernel = self.d_bias = self.softmax = None
        if needs_gradients:
            self.d_hidden = torch.empty_like(hidden, dtype=self.dtype)
            self.d_kernel = torch.zeros_like(self.kernel, dtype=self.dtype)
            self.d_bias = None if self.bias is None else torch.zeros_like(self.bias)
            self.kernel_mean = None
        wanted = chunk_rows(vocab_size, hidden.device.type, hidden.dtype.itemsize)
        if min(wanted, count) * vocab_size * hidden.dtype.itemsize > SMALL_BYTES:
            free = free_bytes(hidden.device)
            wanted = chunk_rows(vocab_size, hidden.device.type, hidden.dtype.itemsize, free)
        self.rows = max(min(wanted, count), 1)
        self.logits = None
        if needs_gradients:
            self.softmax = hidden.new_empty(self.rows, vocab_size)
        if not needs_gradients or self.logits_dtype() != hidden.dtype:
            rows = min(LOGITS_ROWS, self.rows)
            self.logits = hidden.new_empty(rows, vocab_size, dtype=self.logits_dtype())

    def logits_dtype(self):
        """Never narrower than the hidden vectors."""
        wide = LOGITS_DTYPE is not None and LOGITS_DTYPE.itemsize > self.hidden.dtype.itemsize
        return LOGITS_DTYPE if wide else self.hidden.dtype

    def reduce_logits(self, chunk):
        """The numbers of a chunk and, where gradients are made, its `softmax - onehot`."""
        for part in slices(chunk.start, chunk.stop, LOGITS_ROWS):
            softmax = self.softmax
            if softmax is not None:
                softmax = softmax[part.start - chunk.start : part.stop - chunk.start]
            # Of one dtype, both have room in the same place.
            logits = softmax if self.logits is None else self.logits[: part.stop - part.start]
            product(self.hidden[part], self.kernel, out=logits)
            labels, weights = self.labels[part], self.weights[part]
            out = self.out[:, part]
            reduce_rows(logits, self.bias, labels, weights, self.top_k, out, softmax)

    def accumulate(self, chunk, f_nll, f_lse, f_mean):
        """Adds a chunk to the gradients."""
        labels, skipped = self.labels[chunk], self.skipped[chunk]
        softmax = self.softmax[: len(labels)]
        factors = [None if f is None else self.weighted(f, chunk) for f in (f_nll, f_lse, f_mean)]
        f_nll, f_lse, f_mean = factors
        given = [f for f in (f_nll, f_lse) if f is not None]
        factor = sum(given[1:], *given[:1]) if given else torch.zeros_like(self.nll[chunk])
        # What rows of weight 0 hold may be NaN, which no factor makes 0.
        hidden = self.hidden[chunk].masked_fill(skipped[:, None], 0.0)

        d_hidden = product(softmax, self.kernel.T, out=self.d_hidden[chunk])
        d_hidden *= factor[:, None]
        add_product(self.d_kernel, scaled(hidden, factor).T, softmax)
        if self.d_bias is not None:
            add_product(self.d_bias[None], factor[None].to(softmax.dtype), softmax)
        if f_lse is not None:
            d_hidden += f_lse[:, None] * self.kernel.T.index_select(0, labels)
            self.d_kernel.T.index_add_(0, labels, hidden * f_lse[:, None])
            if self.d_bias is not None:
                self.d_bias.index_add_(0, labels, f_lse)
        if f_mean is not None:
            if self.kernel_mean is None:
                self.kernel_mean = self.kernel.mean(1, dtype=self.dtype)
            share = f_mean / self.kernel.shape[1]
            d_hidden += f_mean[:, None] * self.kernel_mean
            self.d_kernel += (hidden * share[:, None]).sum(0)[:, None]
            if self.d_bias is not None:
                self.d_bias += share.sum()

    def weighted(self, partial, chunk):
        """A partial derivative times the weights, also where it is NaN for a row of weight 0."""
        return (partial * self.weights[chunk]).masked_fill_(self.skipped[chunk], 0.0)


def scaled(rows, factor):
    """Each row times its factor, rounded once."""
    return torch.mul(rows, factor[:, None], out=torch.empty_like(rows))


def slices(start, stop, size):
    """Parts of a range, the last of which may be short."""
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def free_bytes(device):
    """What the device has left and what the allocator holds of it unused."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
