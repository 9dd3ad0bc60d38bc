"""A random order of any number of rows, of which nothing is kept in memory."""

import math

import numpy as np

ROUNDS = 6


class KeyedPermutation:
    """A permutation of 0, 1, ..., size - 1 that is computed place by place.

    A Feistel network: a place is a pair (left, right) of numbers below a = ceil(sqrt(size)), and
    each round maps it to (right, (left + f(right)) mod a), which can be undone, whatever f is. The
    few pairs from `size` to a * a are sent through the network again until they are below `size`.

    Source: M. Luby and C. Rackoff, "How to construct pseudorandom permutations from pseudorandom
    functions", 1988; for sizes that are no power of 2, J. Black and P. Rogaway, "Ciphers with
    arbitrary finite domains", 2002. f is the mixing function of SplitMix64.

    Args:
        size: How many numbers there are: at least 1.
        key: Non-negative integers; another key gives another order.

    Example:

    >>> order = KeyedPermutation(10, key=(7, 0))
    >>> sorted(order(np.arange(10)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> bool(order(np.array([3]))[0] == order(np.arange(10))[3])
    True
    """

    def __init__(self, size: int, key: tuple[int, ...]):
        self.size = size
        self.side = np.uint64(math.isqrt(size - 1) + 1)
        self.keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The numbers at these places: integers of the same shape."""
        numbers = self._network(places.astype(np.uint64))
        while (outside := numbers >= self.size).any():
            numbers[outside] = self._network(numbers[outside])
        return numbers.astype(np.int64)

    def _network(self, numbers):
        left, right = np.divmod(numbers, self.side)
        for key in self.keys:
            left, right = right, (left + mixed(right + key) % self.side) % self.side
        return left * self.side + right


def mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: every bit depends on all bits of `x`, uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
