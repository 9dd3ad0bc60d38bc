"""Logits from products inside of Triton kernels: a bias is added, and a soft cap put on."""

try:
    import triton
    import triton.language as tl
except ImportError:  # as on Apple's GPUs
    triton = tl = finished = None

if triton is not None:

    @triton.jit
    def tanh(x):
        """To the last digits of float32 and float64, also near 0; no tanh of Triton is everywhere.

        Far from 0 it is (1 - e) / (1 + e) with e = exp(-2 |x|). Near 0 that would lose the digits
        that 1 has and |x| has not: there it is the seventh convergent of Lambert's continued
        fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))), whose error is below 1e-14.
        """
        size, square = tl.abs(x), x * x
        above = 135135.0 + square * (17325.0 + square * (378.0 + square))
        below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
        e, near = tl.exp(-2.0 * size), size < 0.5
        # One division, whichever it is.
        result = tl.where(near, size * above, 1.0 - e) / tl.where(near, below, 1.0 + e)
        return tl.where(x < 0.0, -result, result)

    @triton.jit
    def finished(products, bias, columns, inside, HAS_BIAS: tl.constexpr, CAP: tl.constexpr):
        """The logits of some columns from their products: with the bias, then capped."""
        logits = products
        if HAS_BIAS:
            logits += tl.load(bias + columns, mask=inside, other=0.0).to(products.dtype)
        if CAP is not None:
            logits = CAP * tanh(logits / CAP)
        return logits
