"""Errors of PyTorch and Keras in one line."""

import re


def reason_of(error: Exception) -> str:
    """What an error says in one line; some of PyTorch's say it in attributes only.

    >>> reason_of(ValueError("no\\n  room")), reason_of(KeyError())
    ('ValueError: no room', 'KeyError: it says no more')
    """
    # Keras's errors are coloured.
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    # How to see more, which torch.compile adds.
    text = " ".join(text.partition("Set TORCHDYNAMO_VERBOSE=1")[0].split())
    if not text and error.__cause__ is not None:
        return reason_of(error.__cause__)
    text = text or ", ".join(f"{name} = {value}" for name, value in vars(error).items())
    return f"{type(error).__name__}: {text[:300] or 'it says no more'}"
