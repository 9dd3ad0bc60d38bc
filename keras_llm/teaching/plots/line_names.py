"""Names that stand beside their lines, so that nobody has to look them up in a legend."""

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

# Points between a line and its name, and the heights of a letter between two names.
GAP, LINE_HEIGHT = 6, 1.35


def name_ends(ax, lines):
    """Writes the name of each line beside its end, and makes room for it on the right.

    Names of lines that end close together move apart.
    """
    lines = [line for line in lines if len(line.get_xdata())]
    if not lines:
        return
    size, points = text_size(), 72 / ax.get_figure(root=True).dpi
    box = ax.get_window_extent()
    longest = max(text_width(line.get_label(), size) for line in lines)

    # The axis ends where the data do; beside it is the room.
    left, right = ax.get_xlim()
    ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= right])
    ax.spines["bottom"].set_bounds(left, right)
    share = min((longest + 2 * GAP) / (box.width * points), 0.6)
    ax.set_xlim(left, left + (right - left) / (1 - share))

    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
    heights = [ax.transData.transform(end)[1] * points for end in ends]
    for line, end, shift in zip(lines, ends, apart(heights, LINE_HEIGHT * size), strict=True):
        write_name(ax, line, end, (GAP, shift), ha="left")


def name_lines(ax, lines):
    """Writes the name of each line close to it, where it is farthest from everything else.

    Where lines are too close together for that, it is a legend.
    """
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()  # only then is it settled where a line is
    points = 72 / figure.dpi
    frame = ax.get_window_extent()
    frame = points * np.array([[frame.x0, frame.y0], [frame.x1, frame.y1]])
    paths = [along(ax.transData.transform(line.get_xydata()) * points) for line in lines]
    names, places = np.empty((0, 2)), []
    for line, path in zip(lines, paths, strict=True):
        others = np.concatenate([names, *(other for other in paths if other is not path)])
        size = np.array([text_width(line.get_label(), text_size()), text_size()])
        place = free_place(path, others, size, frame)
        if place is None:
            ax.legend(frameon=False, labelcolor="linecolor")
            return
        places.append(place)
        names = np.concatenate([names, along(place[0] + place[1] + size * [[-0.5, 0], [0.5, 0]])])
    for line, (anchor, shift) in zip(lines, places, strict=True):
        anchor = ax.transData.inverted().transform(anchor / points)
        write_name(ax, line, anchor, shift, ha="center")


def free_place(path, others, size, frame):
    """A point of a path, and a shift from it to the middle of a box that nothing runs through.

    Args:
        path: Points `[points, 2]` of what the box belongs to.
        others: Points `[points, 2]` to be far away from.
        size: Width and height of the box.
        frame: Two corners that the box must stay between.

    Returns:
        Two arrays `[2]`; None where there is no such place.
    """
    sides = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y])
    anchors, sides = np.repeat(path[::4], len(sides), 0), np.tile(sides, (len(path[::4]), 1))
    shifts = sides * (size + GAP) / 2
    middles = anchors + shifts
    free = (middles - size / 2 >= frame[0]) & (middles + size / 2 <= frame[1])
    free = free.all(axis=1) & (distance(middles, size, path) >= GAP / 3)
    anchors, shifts, middles = anchors[free], shifts[free], middles[free]
    if not len(middles):
        return None
    # A few letters away is far enough: of such places it is the first.
    room = distance(middles, size, others).clip(max=4 * size[1])
    best = room.argmax()
    return (anchors[best], shifts[best]) if room[best] >= GAP / 3 else None


def text_size() -> float:
    """The size of a name's letters in points."""
    return FontProperties(size="medium").get_size_in_points()


def text_width(text: str, size: float) -> float:
    """The width of a text in points."""
    return TextPath((0, 0), text, size).get_extents().width


def write_name(ax, line, place, shift, ha):
    """The name of a line in its colour, `shift` points from a place in the data."""
    name, colour = line.get_label(), line.get_color()
    ax.annotate(name, place, shift, textcoords="offset points", ha=ha, va="center", color=colour)


def along(path):
    """Points on a path `[points, 2]`, two units apart."""
    lengths = np.r_[0, np.hypot(*np.diff(path, axis=0).T).cumsum()]
    at = np.linspace(0, lengths[-1], max(int(lengths[-1] / 2), 2))
    return np.stack([np.interp(at, lengths, path[:, axis]) for axis in (0, 1)], axis=1)


def distance(middles, size, path):
    """How far boxes of one size are from the nearest point of a path: `[boxes]`, 0 inside."""
    beyond = np.maximum(abs(middles[:, None] - path[None]) - size / 2, 0)
    return np.hypot(beyond[..., 0], beyond[..., 1]).min(axis=1, initial=np.inf)


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
