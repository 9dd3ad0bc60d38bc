"""The train step on JAX and TensorFlow: Keras's own."""

import contextlib


class TrainStep:
    """Keras's step, which cannot accumulate gradients exactly per token; so it says so."""

    def prepare_step(self, optimizer, loss, micro_batch_size, jit_compile):
        """Raises where Keras would average micro-batches' means."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        given = {
            "gradient_accumulation_steps": inner.gradient_accumulation_steps if loss else None,
            "micro_batch_size": micro_batch_size,
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} is exact per token on the PyTorch backend only; on this one Keras "
                    "would average the batches' means, whatever their tokens. "
                    "Use another batch_size, or KERAS_BACKEND=torch. "
                    f"Received: {name}={value!r}"
                )

    @contextlib.contextmanager
    def accumulation_given_back(self):
        """Nothing was taken over."""
        yield

    def record_tokens(self, tokens):
        """Nothing is accumulated."""
