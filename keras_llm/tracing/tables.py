"""The two tables of a trace: some tokens, and the blocks of the model."""

import itertools
import math
import re

from keras_llm.explanation.facts import Column, Row, Table

# More blocks than this are shown as the first and the last of them.
MOST_BLOCKS = 12


def token_table(tokens, read, name, count: int) -> Table:
    """The first tokens of the first row, and its end; padding shares a line.

    Args:
        tokens: The `Tokens`.
        read: What the model read at each position, ids `[batch, length]`, or None.
        name: The text of an id.
        count: Lines at most.
    """
    known = {"should say": tokens.labels, "said": tokens.said}
    known = {"model reads": read, **known, "p(label)": tokens.probabilities, "loss": tokens.losses}
    known = {key: array[0] for key, array in known.items() if array is not None}
    texts = {key: Column(key, str, False) for key in ("model reads", "should say", "said")}
    numbers = {"p(label)": Column("p(label)", percent), "loss": Column("loss", "{:.3f}".format)}
    columns = (Column("row 1"), *((texts | numbers)[key] for key in known))
    positions = range(len(tokens.said[0]))

    def left_out(position):
        return tokens.weights is not None and tokens.weights[0, position] == 0

    def line(position):
        alike = [int(known[key][position]) for key in ("model reads", "should say") if key in known]
        return alike if left_out(position) else position

    rows = []
    for _, run in itertools.groupby(positions, line):
        run = list(run)
        rows.append(token_row(run, known, name, left_out(run[0]), columns))
    if len(rows) > count:
        rows[count - 1 :] = rows[-1:]
    return Table(columns, tuple(rows))


def token_row(positions, known, name, is_out, columns) -> Row:
    """A line for one token, or for some that are left out."""
    first, last = positions[0], positions[-1]
    values = [str(first + 1) if first == last else f"{first + 1}–{last + 1}"]
    for key, array in known.items():
        if key in ("model reads", "should say"):
            values.append(name(array[first]))
        elif is_out:
            values.append(None)
        else:
            values.append(name(array[first]) if key == "said" else float(array[first]))
    struck = [i for i, column in enumerate(columns) if column.name in ("model reads", "should say")]
    return Row(tuple(values), tuple(struck) if is_out else ())


def percent(probability: float) -> str:
    """A probability.

    >>> percent(0.5), percent(0.00012)
    ('50 %', '0.012 %')
    """
    return f"{100 * probability:.2g} %" if probability < 0.995 else f"{100 * probability:.3g} %"


def blocks_of(paths: list[str]) -> dict[str, list[int]]:
    """Which variables make a block: all below a numbered layer, such as `block_3`, or one layer.

    >>> blocks_of(["model/block_0/norm/scale", "model/block_0/up/kernel", "model/head/kernel"])
    {'block_0': [0, 1], 'head': [2]}
    """
    layers = [path.split("/")[:-1] or [path] for path in paths]
    shared = 0
    while len({tuple(layer[: shared + 1]) for layer in layers}) == 1 and shared + 1 < max(
        map(len, layers)
    ):
        shared += 1
    blocks = {}
    for index, layer in enumerate(layers):
        rest = layer[shared:] or layer[-1:]
        numbered = next((i for i, part in enumerate(rest) if re.search(r"_\d+$", part)), None)
        key = tuple(rest if numbered is None else rest[: numbered + 1])
        blocks.setdefault(key, []).append(index)
    last = [key[-1] if key else "" for key in blocks]
    return {
        (key[-1] if key and last.count(key[-1]) == 1 else "/".join(key)): indices
        for key, indices in blocks.items()
    }


def block_table(blocks: dict[str, list[int]], columns: dict[str, list]) -> Table:
    """The variables of each block together: sizes add up, norms as roots of squares."""
    names = list(blocks)
    groups = [([name], blocks[name]) for name in names]
    if len(names) > MOST_BLOCKS:
        half = MOST_BLOCKS // 2
        middle = names[half:-half]
        inside = [index for name in middle for index in blocks[name]]
        groups[half:-half] = [(middle, inside)]
    rows = [Row((label(some), *values(columns, indices))) for some, indices in groups]
    shown = [
        Column(name, "{:,}".format if name == "parameters" else significant) for name in columns
    ]
    if "update" in columns:
        shown.append(Column("update / weights", "{:.2g}".format))
    return Table((Column("block", str, False), *shown), tuple(rows))


def label(names: list[str]) -> str:
    """A block's name, or how many there are."""
    return names[0] if len(names) == 1 else f"… {len(names)} more"


def values(columns, indices) -> list:
    """A row's numbers; where there is an update, how large it is beside the weights."""
    found = []
    for name, column in columns.items():
        some = [column[index] for index in indices]
        found.append(sum(some) if name == "parameters" else total_norm(some))
    if "update" in columns:
        found.append(found[-1] / found[-2] if found[-1] is not None and found[-2] else None)
    return found


def total_norm(norms) -> float | None:
    """The norm of all from the norm of each; None where there is none.

    >>> total_norm([3.0, None, 4.0])
    5.0
    """
    known = [norm for norm in norms if norm is not None]
    return math.sqrt(sum(norm**2 for norm in known)) if known else None


def significant(number: float) -> str:
    """A norm to four digits.

    >>> significant(0.001234567), significant(1234.5678)
    ('0.001235', '1,235')
    """
    return f"{number:,.4g}" if not number or abs(number) >= 1e-4 else f"{number:.2e}"
