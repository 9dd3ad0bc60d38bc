"""The loss of each token of a text."""

import numpy as np
from keras import ops
from matplotlib import collections, colors, rcParams

from keras_llm.backend.inference import inference_mode
from keras_llm.losses import MaskedSparseCategoricalCrossentropy
from keras_llm.plots.drawing import COLOURS, new_axes

# How wide a letter of a monospaced font is, and how high a line, in units of the font's size.
LETTER, LINE = 0.602, 1.7
FONT_SIZE = 10
LONGEST_CHARACTER = 4  # bytes of UTF-8
MARKS = {"\n": "↵", "\t": "→"}


def token_loss(model, text, tokenizer, columns: int = 80, from_logits: bool = True, ax=None):
    """A text as a strip of tokens, each coloured by its loss.

        loss of token t = -ln p(id_t | id_0 .. id_t-1)

    No colour is a token that the model was sure of; full colour is one for which it did no better
    than to guess among all V, ln V nats, or worse. The first token, which nothing predicts, and
    padding have no loss and no colour.

    Args:
        model: A model that reads ids `[1, length]` and predicts the next ones
            `[1, length, vocab]`: a `CausalTransformer`, a recurrent `keras.Sequential`.
        text: A string, or its ids `[length]`.
        tokenizer: What encodes and decodes: `encode(text)` to ids, `decode(ids)` to text.
        columns: Letters a line.
        from_logits: Whether the model predicts logits; probabilities otherwise.
        ax: Where to draw; None makes a figure that the lines fill.

    Returns:
        The axes. Their first collection has the losses, `ax.collections[0].get_array()`, one a
        token, masked where there is none.

    Raises:
        ValueError: less than two tokens, more than the model reads, or an id that it does not know.

    Example:
    >>> from keras_llm import data, models, plots
    >>> tokenizer = data.train_tokenizer(["a b c"], unit="word")
    >>> model = models.CausalTransformer(tokenizer.vocab_size, d_model=8, num_layers=1, num_heads=2)
    >>> ax = plots.token_loss(model, "a b c a", tokenizer)
    >>> ax.collections[0].get_array().shape
    (4,)
    """
    ids = np.asarray(tokenizer.encode(text) if isinstance(text, str) else text)
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(
            "text must be a string or one row of ids, at least two tokens long: the first is only "
            f"read. Received: ids of shape {ids.shape}"
        )
    ignore_index = getattr(tokenizer, "pad_id", -100)
    nats, vocab_size = losses_of(model, ids, ignore_index, from_logits)
    places, lines = wrapped(pieces(ids.tolist(), tokenizer), columns)

    width, height = columns * LETTER * FONT_SIZE / 72, lines * LINE * FONT_SIZE / 72
    ax = new_axes(ax, figsize=(width + 0.2, height + 1.1))
    cells = cells_of(places, nats, ceiling=float(np.log(vocab_size)))
    ax.add_collection(cells)
    bar = ax.figure.colorbar(cells, ax=ax, location="bottom", extend="max", aspect=50, pad=0.02)
    bar.set_label(f"nats; ln {vocab_size:,} = {np.log(vocab_size):.2f} is a guess among all tokens")
    bar.outline.set_visible(False)
    mean = nats.mean()
    ax.set_title(f"{mean:.2f} nats a token, perplexity {np.exp(mean):,.1f}", loc="left")
    write(ax, places, columns, lines)
    return ax


def losses_of(model, ids, ignore_index, from_logits):
    """The loss of each token in nats, masked where there is none; the size of the vocabulary."""
    loss = MaskedSparseCategoricalCrossentropy(ignore_index, from_logits=from_logits)
    with inference_mode():
        predictions = model(ids[None, :-1], training=False)
        losses, weights = loss.per_token(ids[None, 1:], predictions)
    losses, weights = (ops.convert_to_numpy(x)[0] for x in (losses, weights))
    losses, counts = np.r_[np.nan, losses], np.r_[0, weights] != 0
    return np.ma.masked_where(~counts, losses), predictions.shape[-1]


def pieces(ids, tokenizer):
    """The text of each token; a character of several tokens stands in the last of them."""
    begun = []
    for i in ids:
        begun.append(i)
        text = tokenizer.decode(begun)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(begun) < LONGEST_CHARACTER:
            yield "·"
            continue
        begun = []
        yield text or f"<{i}>"


def wrapped(pieces, columns):
    """Where each piece of text stands, as `(text, column, line)`, and the number of lines."""
    places, column, line = [], 0, 0
    for piece in pieces:
        text = "".join(c if c.isprintable() else MARKS.get(c, "·") for c in piece)
        if len(text) > columns:
            text = text[: columns - 1] + "…"
        if column + len(text) > columns:
            column, line = 0, line + 1
        places.append((text, column, line))
        column += len(text)
        if "\n" in piece:
            column, line = 0, line + 1
    return places, places[-1][2] + 1


def cells_of(places, nats, ceiling):
    """A cell for each token; its colour is laid over whatever the background is."""
    rectangles = [
        [(x, y), (x + len(text), y), (x + len(text), y + 0.9), (x, y + 0.9)]
        for text, x, y in places
    ]
    colour = colors.to_rgb(COLOURS[1])
    surprise = colors.LinearSegmentedColormap.from_list("surprise", [(*colour, 0), (*colour, 0.85)])
    return collections.PolyCollection(
        rectangles,
        array=nats,
        cmap=surprise,
        norm=colors.Normalize(0, ceiling),
        edgecolors=[colors.to_rgba(rcParams["text.color"], 0.2)],
        linewidths=0.5,
    )


def write(ax, places, columns, lines):
    """The tokens in their cells, in the size in which a line fills the width."""
    ax.axis("off")
    ax.set_xlim(0, columns)
    ax.figure.draw_without_rendering()  # only then is the width of the axes settled
    box, points = ax.get_window_extent(), 72 / ax.get_figure(root=True).dpi
    size = box.width * points / (columns * LETTER)
    ax.set_ylim(max(lines, box.height * points / (size * LINE)), 0)
    look = {"size": size, "family": "monospace", "va": "center_baseline"}
    for text, column, line in places:
        ax.text(column, line + 0.45, text, parse_math=False, clip_on=True, **look)
