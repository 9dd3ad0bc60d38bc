"""What the pictures share: axes, colours, and names that stand beside their lines."""

import matplotlib.pyplot as plt
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

# After Okabe and Ito's colours for all kinds of colour vision, brought to one lightness: a contrast
# of about 4 to white and to black.
COLOURS = ("#1f83c7", "#d55e00", "#008f68", "#b8609a")
DASHES = ("-", "--", ":", "-.")
# Points between a line's end and its name, and the heights of a letter between two names.
GAP, LINE_HEIGHT = 6, 1.35


def new_axes(ax, figsize=(6.4, 4)):
    """`ax`, or the axes of a new figure, without the two sides of the frame that say nothing."""
    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def line_style(index: int) -> dict:
    """The look of the line of that number: four colours, then the same ones dashed."""
    again, colour = divmod(index, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[again % len(DASHES)]}


def name_ends(ax, lines, size="medium"):
    """Writes the name of each line beside its end, and makes room for it on the right.

    Names of lines that end close together move apart.
    """
    lines = [line for line in lines if len(line.get_xdata())]
    if not lines:
        return
    size = FontProperties(size=size).get_size_in_points()
    box = ax.get_window_extent()
    points = 72 / ax.get_figure(root=True).dpi
    width, height = box.width * points, box.height * points
    longest = max(TextPath((0, 0), line.get_label(), size).get_extents().width for line in lines)

    # The axis ends where the data do; beside it is the room.
    left, right = ax.get_xlim()
    ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= right])
    ax.spines["bottom"].set_bounds(left, right)
    share = min((longest + 2 * GAP) / width, 0.6)
    ax.set_xlim(left, left + (right - left) / (1 - share))

    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
    to_axes = ax.transData - ax.transAxes
    heights = [height * to_axes.transform(end)[1] for end in ends]
    for line, end, shift in zip(lines, ends, apart(heights, LINE_HEIGHT * size), strict=True):
        ax.annotate(
            line.get_label(),
            end,
            (GAP, shift),
            textcoords="offset points",
            va="center",
            size=size,
            color=line.get_color(),
        )


def apart(heights, distance):
    """How far each height has to move for all of them to be `distance` apart.

    >>> apart([0.0, 0.0, 50.0], 10.0)
    [-5.0, 5.0, 0.0]
    """
    groups = []
    for height, index in sorted(zip(heights, range(len(heights)), strict=True)):
        groups.append([(height, index)])
        while (
            len(groups) > 1
            and middle(groups[-1]) - middle(groups[-2])
            < distance * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            last = groups.pop()
            groups[-1] += last
    shifts = [0.0] * len(heights)
    for group in groups:
        for position, (height, index) in enumerate(group):
            place = middle(group) + (position - (len(group) - 1) / 2) * distance
            shifts[index] = place - height
    return shifts


def middle(group):
    """The mean height of a group."""
    return sum(height for height, _ in group) / len(group)
