"""The two tables of a trace: some tokens, and the blocks of the model."""

import itertools
import math
import re
from collections.abc import Callable

import numpy as np

from keras_llm.explanation.facts import Column, Row, Table

# More blocks than this are shown as the first and the last of them.
MOST_BLOCKS = 12


def token_table(tokens, text_of: Callable[[int], str], count: int) -> Table:
    """The first `count` tokens of the first row, and its end; padding shares a line."""
    p = None if tokens.nll is None else np.exp(-tokens.nll)
    given = {"model reads": tokens.read, "should say": tokens.labels}
    found = {"said": tokens.said, "p(label)": p, "loss": tokens.losses}
    given, found = (
        {key: array[0].tolist() for key, array in some.items() if array is not None}
        for some in (given, found)
    )

    def left_out(position):
        return tokens.weights is not None and tokens.weights[0, position] == 0

    def line(position):
        # Tokens that are left out share one with their like.
        return [ids[position] for ids in given.values()] if left_out(position) else position

    rows = []
    for _, run in itertools.groupby(range(len(tokens.said[0])), line):
        first, *others = run
        label = f"{first + 1}–{others[-1] + 1}" if others else str(first + 1)
        texts = [text_of(ids[first]) for ids in given.values()]
        if left_out(first):
            row = Row((label, *texts, *[None] * len(found)), tuple(range(1, 1 + len(texts))))
        else:
            values = {key: array[first] for key, array in found.items()}
            row = Row((label, *texts, *(values | {"said": text_of(values["said"])}).values()))
        rows.append(row)
    if len(rows) > count:
        rows[count - 1 :] = rows[-1:]
    numbers = {"p(label)": percent, "loss": "{:.3f}".format}
    columns = [Column(key, numbers.get(key, str), key in numbers) for key in given | found]
    return Table((Column("row 1"), *columns), tuple(rows))


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
    alike = (len(set(parts)) == 1 for parts in zip(*layers, strict=False))
    shared = min(sum(itertools.takewhile(bool, alike)), max(map(len, layers)) - 1)
    blocks = {}
    for index, layer in enumerate(layers):
        rest = layer[shared:] or layer[-1:]
        numbered = (i + 1 for i, part in enumerate(rest) if re.search(r"_\d+$", part))
        blocks.setdefault(tuple(rest[: next(numbered, None)]), []).append(index)
    last = [key[-1] for key in blocks]
    return {
        key[-1] if last.count(key[-1]) == 1 else "/".join(key): indices
        for key, indices in blocks.items()
    }


def block_table(blocks: dict[str, list[int]], columns: dict[str, list]) -> Table:
    """The variables of each block together: sizes add up, norms as roots of squares.

    Where there is an update, a last column has how large it is beside the weights.
    """
    groups = list(blocks.items())
    if len(groups) > MOST_BLOCKS:
        half = MOST_BLOCKS // 2
        inside = [index for _, indices in groups[half:-half] for index in indices]
        groups[half:-half] = [(f"… {len(groups) - 2 * half} more", inside)]
    shown = {
        name: Column(name, "{:,}".format if name == "parameters" else significant)
        for name in columns
    }
    if "update" in columns:
        shown["ratio"] = Column("update / weights", "{:.2g}".format)
    rows = []
    for name, indices in groups:
        values = {
            key: (sum if key == "parameters" else total_norm)([column[i] for i in indices])
            for key, column in columns.items()
        }
        if "update" in columns:
            values["ratio"] = ratio(values["update"], values["weights"])
        rows.append(Row((name, *values.values())))
    return Table((Column("block", is_number=False), *shown.values()), tuple(rows))


def ratio(update: float | None, weights: float | None) -> float | None:
    """How large an update is beside the weights; None where that is not known."""
    return update / weights if update is not None and weights else None


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
