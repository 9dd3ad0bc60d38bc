"""`trace`: one training step, slowly."""

import sys

from keras_llm.explanation.compiled_model import compiled_model
from keras_llm.explanation.explanation import Explanation
from keras_llm.tracing.sections import (
    backward_section,
    batch_section,
    forward_section,
    loss_section,
    optimizer_section,
)
from keras_llm.tracing.step import traced_step
from keras_llm.tracing.tokens import tokenizer_pair


def trace(model, batch, tokenizer=None, tokens: int = 12, show: bool = True) -> Explanation:
    """Takes one training step in the five stages of every training loop, and undoes it.

        for x, y in batches:            1 batch
            logits = model(x)           2 forward, with teacher forcing
            loss = loss_fn(logits, y)   3 loss
            loss.backward()             4 backward
            optimizer.step()            5 optimizer

    Each stage shows its shapes, types, devices and time. Some tokens are shown with what the model
    read, its label, its prediction and its loss; then how those losses add up, the norm of each
    block's gradient, and the size of the update. On PyTorch it also shows the memory that is kept
    for the backward pass.

    The numbers are those of the step that `fit` would take on this batch, up to rounding, on every
    backend. The times are not: `fit` need not hold the logits, and runs its layers as one graph. On
    JAX, forward, loss and backward are one program with one time. Afterwards weights, optimizer,
    metrics, gradients, random state and accumulated batches are as they were, for which there must
    be memory for a copy of all of them. What a layer of your own keeps in plain Python attributes,
    and the state of `tf.random`, are not restored.

    Args:
        model: A compiled Keras model; `model.trace(batch)` is the same. One without weights gets
            them from the batch, as by `fit`.
        batch: What `fit` gets at once, `(x, y)` or `(x, y, sample_weight)`, or what it reads: a
            data loader or data set, of which the first batch is taken, and left there.
        tokenizer: Shows ids as text: anything with `decode(ids)`. A pair `(source, target)` where
            an encoder's ids have a tokenizer of their own.
        tokens: Lines of the table of tokens.
        show: Whether to print it. A notebook prints nothing: it shows what is returned.

    Returns:
        An `Explanation`: `str()` of it is plain text, `to_dict()` is for programs, and a notebook
        shows it as HTML.

    Raises:
        TypeError: `model` is not a Keras model, `batch` is not a batch, or `tokenizer` no
            tokenizer.
        ValueError: the model is not compiled or has nothing to train, or `batch` is not of two or
            three.

    Example:
    >>> import numpy as np
    >>> from keras_llm import losses, models, optimizers
    >>> model = models.CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)
    >>> model.compile(optimizers.AdamW(1e-3, global_clipnorm=1.0), loss)
    >>> batch = np.array([[1, 2, 3, 4]]), np.array([[2, 3, 4, 0]])
    >>> traced = model.trace(batch, show=False)
    >>> traced["3 Loss"]["sum"].note
    'of the losses of 3 tokens'
    """
    decided = compiled_model(model, "trace")
    if getattr(model, "mixed", None) is not None:
        raise ValueError(
            "trace shows the loss of labels, and this model mixes it with another one. Compile and "
            f"trace the part that learns. Received: {type(model).__name__}"
        )
    source, target = tokenizer_pair(tokenizer)
    if decided.optimizer is None:
        raise ValueError("trace needs an optimizer: compile(optimizer=..., loss=...)")
    step = traced_step(model, decided.loss, batch)
    sections = (
        batch_section(step, decided.accumulation, source),
        forward_section(step),
        loss_section(step, target, tokens),
        backward_section(step, decided.optimizer),
        optimizer_section(step, decided.optimizer),
    )
    title = f"One step of {model.name!r}: update {step.update:,}, undone afterwards"
    traced = Explanation(title, sections)
    if show:
        traced.show(sys.stdout)
    return traced
