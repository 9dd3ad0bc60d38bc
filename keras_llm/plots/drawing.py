"""What the pictures share: axes and colours."""

import matplotlib.pyplot as plt

# After Okabe and Ito's colours for all kinds of colour vision, brought to one lightness: a contrast
# of about 4 to white and to black.
COLOURS = ("#1f83c7", "#d55e00", "#008f68", "#b8609a")
DASHES = ("-", "--", ":", "-.")


def new_axes(ax, figsize=(6.4, 4)):
    """`ax`, or the axes of a new figure, with a frame on the left and below."""
    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def line_style(index: int) -> dict:
    """Colour and dashes of a line: four colours, then the same ones dashed."""
    again, colour = divmod(index, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[again % len(DASHES)]}


def add_legend(ax):
    """The names of the lines, each in the colour of its line."""
    ax.legend(frameon=False, labelcolor="linecolor")
