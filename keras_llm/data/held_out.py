"""Which rows are held out: decided by a row's name alone, so the same on every machine."""

import hashlib


def split_of(name: str) -> str:
    """`"train"`, `"validation"` or `"test"` for 90%, 5% and 5% of all names.

    Example:

    >>> [split_of(word) for word in ("keras", "torch", "jax")]
    ['train', 'train', 'train']
    """
    percent = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8]) % 100
    return "train" if percent < 90 else "validation" if percent < 95 else "test"
