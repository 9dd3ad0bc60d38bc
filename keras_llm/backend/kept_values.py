"""Variables that get their values back."""

import contextlib

from keras import ops


@contextlib.contextmanager
def values_kept(variables):
    """Context manager that gives variables their values back on exit."""
    copies = [ops.copy(variable.value) for variable in variables]
    try:
        yield
    finally:
        for variable, copy in zip(variables, copies, strict=True):
            variable.assign(copy)
