"""Graphs that fit inputs of any batch and any length.

A tracer writes down the sizes that it sees. So it is shown sizes by which they can be told from all
other numbers: multiples of prime numbers that divide no size of a weight. Where such a number
stands in the shape of a view, it is replaced by -1, which stands for what is left. Anywhere else
the graph would not fit other sizes, which is an error.
"""

import itertools

import torch
from torch.fx import Graph

VIEW, EXPAND = torch.ops.aten.view.default, torch.ops.aten.expand.default
# Some kernels of a GPU take lengths that this divides as they are, and pad others.
STEP = 16


class SizeError(NotImplementedError):
    """A graph fits only the sizes that it was traced with."""


def unusual_sizes(count: int, usual: set[int]) -> list[int]:
    """`count` sizes that have a prime divisor which none of the `usual` numbers has.

    >>> unusual_sizes(2, {256, 1009})
    [1013, 16304]
    """
    primes = (
        n
        for n in itertools.count(1009)
        if all(n % divisor for divisor in range(2, 1 + int(n**0.5)))
        and all(number % n for number in usual)
    )
    return [prime * (STEP if i else 1) for i, prime in enumerate(itertools.islice(primes, count))]


def fit_any_size(graph: Graph, sizes: list[int]) -> None:
    """Makes a graph that was traced with `unusual_sizes` one of all sizes. Changed in place.

    Raises:
        SizeError: the graph would not fit other sizes.
    """
    primes = [size // (STEP if i else 1) for i, size in enumerate(sizes)]

    def depends(number):
        return type(number) is int and number > 0 and any(number % prime == 0 for prime in primes)

    for node in graph.nodes:
        if node.target == VIEW:
            source, shape = node.args
            shape = [-1 if depends(number) else number for number in shape]
            if shape.count(-1) == 1:
                node.args = (source, shape)
        elif node.target == EXPAND and node.meta["val"].shape == node.args[0].meta["val"].shape:
            node.replace_all_uses_with(node.args[0])
            continue
        numbers = torch.utils._pytree.tree_leaves((list(node.args), dict(node.kwargs)))
        if any(map(depends, numbers)):
            raise SizeError(f"{node.target} is called with the size of an input")
