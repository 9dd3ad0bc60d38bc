"""The pass over the vocabulary for a head with a soft cap: its logits are z' = c * tanh(z / c).

Of the logits z the gradient is dz = dz' * (1 - (z' / c)^2). The second factor differs from logit to
logit, so that nothing of a row can be taken out of the products, as it is without a cap: the
gradient itself takes the place of a chunk's logits, and is multiplied.
"""

import torch

from keras_llm.backend.torch.fused_rows import FusedRows
from keras_llm.backend.torch.logits_pass import gradient_beside_label, gradient_numbers
from keras_llm.backend.torch.products import add_product, product
from keras_llm.backend.torch.row_kernels import reduce_rows, write_gradient
from keras_llm.backend.torch.rows import Rows
from keras_llm.backend.torch.tensors import exp_in_place


class CappedRows(Rows):
    """`Rows` whose buffer keeps the logits until their gradient takes its place."""

    def __init__(self, hidden, kernel, bias, labels, weights, scale, soft_cap):
        super().__init__(hidden, kernel, bias, labels, weights, scale)
        self.soft_cap = soft_cap

    def logits_of(self, hidden, columns, out):
        """The capped logits."""
        tile = super().logits_of(hidden, columns, out)
        return tile.div_(self.soft_cap).tanh_().mul_(self.soft_cap)

    def exponentials(self, logits, max_logit):
        """The logits as they are, and the sums of `exp(logits - max_logit)`."""
        tiles = (logits[:, columns] - max_logit[:, None] for columns in self.tiles)
        totals = [exp_in_place(tile).sum(dim=1) for tile in tiles]
        return logits, torch.stack(totals).sum(dim=0)

    def mean_logit(self, chunk, logits):
        """The mean logit of each row."""
        return logits.mean(dim=1)

    def accumulate(self, logits, chunk, partials, nll, max_logit, total):
        """Adds a chunk to the gradients; the logits are not needed afterwards."""
        weights, labels = self.weights[chunk] * self.scale, self.labels[chunk, None]
        partials = [None if p is None else p * weights for p in partials]
        factor, shift, at_label = gradient_numbers(partials, nll, total, logits.shape[1])
        at_label = at_label[:, None] * (1 - (logits.gather(1, labels) / self.soft_cap) ** 2)
        for columns in self.tiles:
            tile = logits[:, columns]
            gradient = gradient_beside_label(tile, max_logit, factor, shift)
            square = tile.div_(self.soft_cap).square_()
            torch.addcmul(gradient, gradient, square, value=-1, out=tile)
        d_logits = logits.scatter_(1, labels, at_label).to(self.product_dtype)
        product(d_logits, self.kernel.T, out=self.d_hidden[chunk])
        add_product(self.d_kernel, self.hidden[chunk].T, d_logits)
        if self.d_bias is not None:
            self.d_bias += logits.sum(dim=0)


class CappedFusedRows(FusedRows):
    """`FusedRows` that hold the gradient of the logits in place of `softmax - onehot`."""

    def __init__(self, hidden, kernel, bias, labels, weights, soft_cap):
        super().__init__(hidden, kernel, bias, labels, weights)
        self.soft_cap = soft_cap

    def reduce_part(self, logits, part, softmax):
        """The numbers of a few rows and, into `softmax` if it is not None, their gradient."""
        vocab_size = self.kernel.shape[1]
        token = self.bias, self.labels[part], self.weights[part], self.top_k
        reduce_rows(logits, vocab_size, *token, self.out[:, part], soft_cap=self.soft_cap)
        if softmax is None:
            return
        numbers = self.numbers.nll[part], self.numbers.total[part], vocab_size
        factor, shift, at_label = gradient_numbers(self.partials(part), *numbers)
        write_gradient(
            logits[:, :vocab_size],
            self.labels[part],
            self.weights[part],
            self.numbers.max_logit[part],
            factor,
            torch.zeros_like(factor) if shift is None else shift,
            at_label,
            out=softmax[:, :vocab_size],
            bias=self.bias,
            soft_cap=self.soft_cap,
        )

    def accumulate(self, chunk):
        """Adds a chunk to the gradients."""
        d_logits = self.softmax[: chunk.stop - chunk.start, : self.kernel.shape[1]]
        # What rows of weight 0 hold may be NaN, which no factor makes 0.
        hidden = self.hidden[chunk].masked_fill(self.skipped[chunk, None], 0.0)
        product(d_logits, self.kernel.T, out=self.d_hidden[chunk])
        add_product(self.d_kernel, hidden.T, d_logits)
        if self.d_bias is not None:
            ones = torch.ones_like(self.skipped[chunk], dtype=d_logits.dtype)
            add_product(self.d_bias[None], ones[None], d_logits)
