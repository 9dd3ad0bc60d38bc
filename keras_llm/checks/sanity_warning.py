"""The warning, and the line that it points to."""

import os
import sys
import warnings
from pathlib import Path

import keras

from keras_llm.distribution import world

# The user's code is the first that is outside of these folders.
LIBRARIES = tuple(
    f"{Path(file).parent}{os.sep}" for file in (keras.__file__, Path(__file__).parent)
)


class SanityWarning(UserWarning):
    """Warns of a set-up that trains, but most probably not as intended.

    `compile` and each `fit` look for mistakes that raise no error:

        compile     a learning rate far from usual; logits where the loss expects probabilities, or
                    the reverse; a metric that counts labels which the loss ignores
        fit         a learning rate schedule that has ended, or will end before the last update
        first batch labels that are not shifted, or shifted twice; padding that counts; an
                    ignore_index that is a token of the text; no label that counts; an id outside
                    the vocabulary; a first loss above that of random guessing

    A message is one line: what was found, what to write instead, and the guide that explains it. It
    points to the line that called `compile` or `fit`. A mistake is told once in each `fit`; what
    `compile` has told, `fit` does not repeat. Python's own filters silence the warnings or turn
    them into errors.

    Example:
    >>> import warnings
    >>> from keras_llm.training import SanityWarning
    >>> warnings.filterwarnings("ignore", category=SanityWarning)
    """


def warn(message: str) -> None:
    """Warns at the user's line, every time it is called.

    Where several processes train, the first warns.

    By default Python shows the same warning of the same line once a process: a second `fit` with
    the same mistake would look like a mended one.
    """
    if not world().is_first:
        return
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        frame = frame.f_back
    # What was shown before is kept in the registry.
    warnings.warn_explicit(
        message,
        SanityWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry={},
    )


def guided(message: str, guide: str) -> str:
    """A message that ends with the guide to read."""
    return f"{message} (examples/guides/{guide}.py)"
