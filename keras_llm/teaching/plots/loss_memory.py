"""What the logits of a batch cost, and what is saved by never holding them."""

from collections.abc import Sequence

import numpy as np
from matplotlib import ticker

from keras_llm.backend.chunks import chunk_rows
from keras_llm.teaching.plots.drawing import line_style, new_axes
from keras_llm.teaching.plots.line_names import name_ends

FLOAT32 = 4


def loss_memory(
    vocab_sizes: Sequence[int] = (8_192, 32_000, 50_257, 128_256, 262_144),
    tokens: int = 4_096,
    d_model: int = 512,
    device_type: str = "cpu",
    ax=None,
):
    """Memory of the loss by the size of the vocabulary: whole logits, and one pass over it.

    Computed, not measured: the float32 numbers that have to be there at once, the gradient of the
    head's matrix in both,

        whole logits:  4 bytes * V * (3 * tokens + d_model)       logits, log-softmax, its gradient
        one pass:      4 bytes * V * (chunk rows + d_model)

    with as many rows a chunk as `LanguageModel` takes on PyTorch.

    Args:
        vocab_sizes: The values of V.
        tokens: Tokens a batch that count: batch size times length.
        d_model: Width of the model.
        device_type: `"cpu"`, or `"cuda"` for the larger chunks of a GPU.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes, two lines in bytes: whole logits, one pass.

    Raises:
        ValueError: a size that is not positive.

    Example:
    >>> from keras_llm import plots
    >>> ax = plots.loss_memory([50_257], tokens=2_048, d_model=256)
    >>> whole, one_pass = (float(line.get_ydata()[0]) for line in ax.lines)
    >>> round(whole / one_pass, 1)
    8.3
    """
    sizes = np.sort(np.asarray(vocab_sizes, "int64"))
    if not sizes.size or min(sizes[0], tokens, d_model) < 1:
        raise ValueError(
            "vocab_sizes, tokens and d_model must be positive. "
            f"Received: vocab_sizes={vocab_sizes}, tokens={tokens}, d_model={d_model}"
        )
    rows = np.array([min(chunk_rows(int(size), device_type), tokens) for size in sizes])
    held = {"whole logits": 3 * tokens + d_model, "one pass": rows + d_model}
    ax, lines = new_axes(ax), []
    for index, (name, columns) in enumerate(held.items()):
        look = {"marker": "o", "clip_on": False, **line_style(index)}
        lines += ax.plot(sizes, FLOAT32 * sizes * columns, label=name, **look)
    ax.set(
        xlabel="size of the vocabulary",
        ylabel="memory",
        title=f"{tokens:,} tokens, d_model {d_model:,}: computed, not measured",
    )
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_major_formatter(ticker.EngFormatter("B"))
    name_ends(ax, lines)
    return ax
