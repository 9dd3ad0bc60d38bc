"""Few sizes, so that few functions are compiled."""


def rounded_up(length: int) -> int:
    """The length rounded up by at most a quarter, from 64 on, so that few different ones remain.

    >>> [rounded_up(length) for length in (1, 16, 17, 64, 65, 300)]
    [16, 16, 32, 64, 80, 320]
    """
    step = max(16, 2 ** ((length - 1).bit_length() - 3))
    return -(-length // step) * step
