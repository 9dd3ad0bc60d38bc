"""The pass over the vocabulary in PyTorch's operations, on a CPU and where there is no Triton.

With E = exp(z - max z) and s its sum, the gradients of `vocabulary_pass.py` are

    dh = (a / s) * E @ K' - f_nll * K[:, t] + f_mean * mean(K)

and likewise for K and b: one buffer of a few hundred rows holds z, then E, and is used again.
"""

import torch

from keras_llm.backend.chunks import chunk_rows, tiles
from keras_llm.backend.torch import tensors as facts
from keras_llm.backend.torch.derivatives import differentiate
from keras_llm.backend.torch.logits_pass import in_top_k
from keras_llm.backend.torch.products import add_product, product


class Rows:
    """The rows that count, and what is accumulated over their chunks."""

    def __init__(self, hidden, kernel, bias, labels, weights, scale):
        # CPUs multiply bfloat16 slower than float32; everywhere, sums are made in float32.
        cpu = hidden.device.type == "cpu"
        self.dtype = facts.upcast_dtype(hidden)
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

        losses, partials = self.differentiate(formula, nll, lse, chunk, exponentials)
        weighted_losses = (losses * weights).sum()
        sums = torch.stack([weighted_losses, (nll * weights).sum(), correct, weights.abs().sum()])
        if needs_gradients:
            self.accumulate(exponentials, chunk, partials, nll, max_logit, total)
        return sums

    def logits(self, chunk, out):
        """The logits of a chunk, and the largest logit of each row."""
        hidden, max_logit = self.hidden[chunk], []
        for columns in self.tiles:
            tile = self.logits_of(hidden, columns, out[:, columns])
            max_logit.append(tile.amax(dim=1))
        return out, torch.stack(max_logit).amax(dim=0)

    def logits_of(self, hidden, columns, out):
        """The logits of hidden vectors and some columns, in `out`."""
        tile = product(hidden, self.kernel[:, columns], out=out)
        if self.bias is not None:
            tile += self.bias[columns]
        return tile

    def exponentials(self, logits, max_logit):
        """`exp(logits - max_logit)`, in place of the logits, and their sums."""
        totals = []
        for columns in self.tiles:
            tile = facts.exp_in_place(logits[:, columns].sub_(max_logit[:, None]))
            totals.append(tile.sum(dim=1))
        return logits, torch.stack(totals).sum(dim=0)

    def differentiate(self, formula, nll, lse, chunk, buffer):
        """The loss of each token, and its partial derivatives by the three numbers."""
        labels, vocab_size = self.labels[chunk], self.kernel.shape[1]
        mean_logit = torch.zeros_like(nll)
        losses, partials = differentiate(formula, nll, lse, mean_logit, labels, vocab_size)
        if partials[2] is None:
            return losses, partials
        # Only now is it known that the formula asks for the mean.
        mean_logit = self.mean_logit(chunk, buffer)
        return differentiate(formula, nll, lse, mean_logit, labels, vocab_size)

    def mean_logit(self, chunk, buffer):
        """The mean logit of each row, which the buffer need not yield: of h @ K it is h @ mean(K).

        Args:
            buffer: What `exponentials` left in place of the logits.
        """
        if self.kernel_mean is None:
            self.kernel_mean = self.kernel.mean(dim=1)
        mean_logit = (self.hidden[chunk] @ self.kernel_mean).to(self.dtype)
        if self.bias is not None:
            mean_logit += self.bias.mean()
        return mean_logit

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

    def accumulate(self, exponentials, chunk, partials, nll, max_logit, total):
        """Adds a chunk to the gradients; the exponentials are not needed afterwards."""
        factor, zero = self.weights[chunk] * self.scale, torch.zeros_like(nll)
        f_nll, f_lse = (zero if p is None else p for p in partials[:2])
        f_mean = partials[2]
        softmax_factor = (f_nll + f_lse) * factor / total
        label_factor = f_nll * factor
        mean_factor = None if f_mean is None else f_mean * factor
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
