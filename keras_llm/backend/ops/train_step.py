"""The train step on JAX and TensorFlow: Keras's own."""

import contextlib


class TrainStep:
    """Keras's step, which cannot accumulate gradients exactly per token; so it says so."""

    def take_over_accumulation(self, optimizer, loss):
        """Raises, for a loss of tokens, where Keras would average micro-batches' means."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if loss is not None and inner.gradient_accumulation_steps:
            raise ValueError(
                "gradient_accumulation_steps is exact per token on the PyTorch backend only; "
                "on this one Keras would average the batches' means, whatever their tokens. "
                "Use a larger batch_size, or KERAS_BACKEND=torch. "
                f"Received: gradient_accumulation_steps={inner.gradient_accumulation_steps}"
            )

    @contextlib.contextmanager
    def accumulation_given_back(self):
        """Nothing was taken over."""
        yield

    def record_tokens(self, tokens):
        """Nothing is accumulated."""
