"""A value as people write it."""

import math


def value_text(value) -> str:
    """The text of a setting or a result, with as many digits as float32 keeps.

    >>> value_text(30522), value_text(0.0010000000474974513), value_text(5e-5), value_text(0.999)
    ('30,522', '1e-3', '5e-5', '0.999')
    >>> value_text(None), value_text([2, True]), value_text(())
    ('none', '2, True', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item) for item in value) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1e6 or not math.isfinite(value):
        return f"{value:,.6g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
