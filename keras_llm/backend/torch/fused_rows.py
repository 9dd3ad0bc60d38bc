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
from keras_llm.backend.torch.tensors import upcast_dtype

# Of the logits, which a few rows have at once. None is the dtype of the hidden vectors: half of
# the traffic, and logits that are rounded as a layer's output is.
LOGITS_DTYPE = torch.float32
# How many rows have logits at once: to launch products and kernels takes the host as long as the
# device a product of 512 rows.
LOGITS_ROWS = 2048
# The share of a GPU's memory below which nobody asks how much is free: the answer takes longer than
# a small pass.
SMALL_SHARE = 1 / 32


class FusedRows:
    """All rows; those of weight 0 count for nothing, whatever they hold."""

    def __init__(self, hidden, kernel, bias, labels, weights):
        self.dtype = upcast_dtype(hidden)
        self.hidden, self.kernel = hidden, kernel.to(hidden.dtype)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.labels, self.weights = labels.long(), weights.to(self.dtype)
        self.skipped = self.weights == 0

    def reduce(self, formula, top_k, needs_gradients):
        """The sums `(loss, nll, correct, tokens)`, and the gradients of hidden, kernel and bias.

        The gradients are those of the weighted sum of the losses.
        """
        count = len(self.hidden)
        self.out = new_numbers(count, self.hidden, self.dtype)
        self.numbers = RowNumbers(*self.out.unbind())
        self.formula, self.top_k = formula, top_k
        self.nll, self.losses = self.numbers.nll, torch.empty_like(self.numbers.nll)
        self.allocate(needs_gradients)
        for chunk in slices(0, count, self.rows):
            self.reduce_logits(chunk)
            if needs_gradients:
                self.accumulate(chunk)
            else:
                self.losses[chunk] = formula(*self.tokens(chunk))
        # Rows of weight 0 have a loss too, which may be NaN.
        self.losses.masked_fill_(self.skipped, 0.0)
        sums = (torch.stack([self.losses, self.nll, self.numbers.hit]) * self.weights).sum(1)
        return (*sums.unbind(), self.weights.abs().sum()), self.gradients()

    def allocate(self, needs_gradients):
        """Makes the accumulators and the room for a chunk."""
        hidden, count = self.hidden, len(self.hidden)
        self.d_hidden = self.d_kernel = self.d_bias = self.d_mean = None
        self.logits = self.softmax = self.kernel_mean = None
        self.rows = max(count, 1)
        if needs_gradients:
            self.d_hidden = torch.empty_like(hidden, dtype=self.dtype)
            self.d_kernel = torch.zeros_like(self.kernel, dtype=self.dtype)
            self.d_bias = None if self.bias is None else torch.zeros_like(self.bias)
            self.rows = self.chunk_rows()
            self.softmax = self.new_rows(self.rows, hidden.dtype)
        # Of one dtype, logits and softmax have the same place.
        if not needs_gradients or self.logits_dtype != hidden.dtype:
            self.logits = self.new_rows(min(LOGITS_ROWS, self.rows), self.logits_dtype)

    def chunk_rows(self):
        """How many rows of the softmax are held at once."""
        device, count = self.hidden.device, max(len(self.hidden), 1)
        size = self.kernel.shape[1], device.type, self.hidden.dtype.itemsize
        rows = min(chunk_rows(*size), count)
        if device.type == "cuda" and rows * size[0] * size[2] > SMALL_SHARE * total_bytes(device):
            rows = min(chunk_rows(*size, free_bytes(device)), count)
        return rows

    @property
    def logits_dtype(self):
        """Never narrower than the hidden vectors."""
        dtypes = (LOGITS_DTYPE, self.hidden.dtype)
        return max((d for d in dtypes if d is not None), key=lambda dtype: dtype.itemsize)

    def new_rows(self, rows, dtype):
        """Room for rows over the vocabulary, each of which starts at a multiple of 128 bytes.

        Products and kernels read a row that starts anywhere at a fraction of the speed.
        """
        width = -(-self.kernel.shape[1] // 64) * 64
        return self.hidden.new_empty(rows, width, dtype=dtype)

    def reduce_logits(self, chunk):
        """The numbers of a chunk and, where gradients are made, its `softmax - onehot`."""
        vocab_size = self.kernel.shape[1]
        for part in slices(chunk.start, chunk.stop, LOGITS_ROWS):
            softmax = self.softmax
            if softmax is not None:
                softmax = softmax[part.start - chunk.start : part.stop - chunk.start]
            logits = softmax if self.logits is None else self.logits[: part.stop - part.start]
            product(self.hidden[part], self.kernel, out=logits[:, :vocab_size])
            self.reduce_part(logits, part, softmax)

    def reduce_part(self, logits, part, softmax):
        """The same from logits, into `softmax` if it is not None."""
        token = self.bias, self.labels[part], self.weights[part], self.top_k
        reduce_rows(logits, self.kernel.shape[1], *token, self.out[:, part], softmax)

    def tokens(self, rows):
        """What the formula takes, of some rows."""
        return *(x[rows] for x in self.numbers[:3]), self.labels[rows], self.kernel.shape[1]

    def partials(self, rows):
        """The weighted partial derivatives of the losses of some rows, which are noted."""
        self.losses[rows], partials = differentiate(self.formula, *self.tokens(rows))
        return [self.weighted(partial, rows) for partial in partials]

    def accumulate(self, chunk):
        """Adds a chunk to the gradients."""
        f_nll, f_lse, f_mean = self.partials(chunk)
        labels, count = self.labels[chunk], chunk.stop - chunk.start
        softmax = self.softmax[:count, : self.kernel.shape[1]]
        given = [f for f in (f_nll, f_lse) if f is not None]
        factor = sum(given[1:], *given[:1]) if given else torch.zeros_like(self.nll[chunk])
        # What rows of weight 0 hold may be NaN, which no factor makes 0.
        hidden = self.hidden[chunk].masked_fill(self.skipped[chunk, None], 0.0)

        d_hidden = product(softmax, self.kernel.T, out=self.d_hidden[chunk])
        d_hidden *= factor[:, None]
        scaled = torch.mul(hidden, factor[:, None], out=torch.empty_like(hidden))
        add_product(self.d_kernel, scaled.T, softmax)
        if self.d_bias is not None:
            add_product(self.d_bias[None], factor[None].to(softmax.dtype), softmax)
        if f_lse is not None:
            d_hidden += f_lse[:, None] * self.kernel.T.index_select(0, labels)
            self.d_kernel.T.index_add_(0, labels, hidden * f_lse[:, None])
            if self.d_bias is not None:
                self.d_bias.index_add_(0, labels, f_lse)
        if f_mean is not None:
            self.accumulate_mean(d_hidden, hidden, f_mean)

    def accumulate_mean(self, d_hidden, hidden, f_mean):
        """Adds what comes by the mean of the logits; to the kernel's gradient, at the end."""
        if self.d_mean is None:
            self.kernel_mean, self.d_mean = self.kernel.mean(1, dtype=self.dtype), 0.0
        d_hidden += f_mean[:, None] * self.kernel_mean
        share = f_mean / self.kernel.shape[1]
        self.d_mean = self.d_mean + (hidden * share[:, None]).sum(0)
        if self.d_bias is not None:
            self.d_bias += share.sum()

    def gradients(self):
        """Of hidden, kernel and bias."""
        if self.d_mean is not None:
            self.d_kernel += self.d_mean[:, None]
        return self.d_hidden, self.d_kernel, self.d_bias

    def weighted(self, partial, rows):
        """A partial derivative times the weights, also where it is NaN for a row of weight 0."""
        if partial is None:
            return None
        return (partial * self.weights[rows]).masked_fill_(self.skipped[rows], 0.0)


def slices(start, stop, size):
    """Parts of a range, the last of which may be short."""
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def total_bytes(device):
    """All of the GPU's memory."""
    return torch.cuda.get_device_properties(device).total_memory


def free_bytes(device):
    """What the GPU has left, and what the allocator holds of it and has not given away."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
