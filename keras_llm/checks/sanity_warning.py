"""How a mistake that raises no error is told."""

import sys
import warnings
from pathlib import Path

import keras

# Whoever wrote the call is outside of these.
LIBRARIES = (str(Path(keras.__file__).parent), str(Path(__file__).parent.parent))


class SanityWarning(UserWarning):
    """A set-up that trains, but most probably not what was meant.

    `compile` and the first batch of a `fit` look for mistakes that raise no error. Each is one
    line with the guide that explains it. Every `compile` and every `fit` looks again. They are
    silenced as any warning is.

    Example:
    >>> import warnings
    >>> warnings.filterwarnings("ignore", category=SanityWarning)
    """


def warn(message: str) -> None:
    """Warns at the user's line, each time: Python shows a warning of one line once a process."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        frame = frame.f_back
    warnings.warn_explicit(
        message, SanityWarning, frame.f_code.co_filename, frame.f_lineno, registry={}
    )


def guided(message: str, guide: str) -> str:
    """A message that ends with the guide to read."""
    return f"{message} (examples/guides/{guide}.py)"
