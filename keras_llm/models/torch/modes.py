"""The modes, training or evaluation, of all parts of a PyTorch module."""

import contextlib


@contextlib.contextmanager
def modes_kept(module):
    """Context manager that gives each part of a module its mode back."""
    before = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
