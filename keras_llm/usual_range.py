"""The usual values of a setting in published training runs.

A class says about itself what `explain` shows of it. Each of these is optional:

    notes: dict[str, str]                  of an argument, in a few words, what it does
    usual_ranges: dict[str, UsualRange]    of an argument, its usual values
    equation() -> tuple[str, str]          of a loss or a metric: its equation, with the settings as
                                           numbers in it, and what it means in words ("" for none)
    usual_learning_rate(parameters)        of an optimizer: a `UsualRange` of the peak, or None

`notes` and `usual_ranges` are class attributes, or properties where they depend on the settings. A
subclass that adds to its parent's writes `{**Parent.notes, "argument": "..."}`.
"""

import math
from typing import NamedTuple

from keras_llm.value_text import value_text


class Source(NamedTuple):
    """A publication.

    Attributes:
        name: Its short name and year.
        url: Where to read it.
    """

    name: str
    url: str


ADAM = Source("Adam 2015", "https://arxiv.org/abs/1412.6980")
BERT = Source("BERT 2019", "https://arxiv.org/abs/1810.04805")
GPT_3 = Source("GPT-3 2020", "https://arxiv.org/abs/2005.14165")
NANOCHAT = Source("nanochat 2025", "https://github.com/karpathy/nanochat")
PALM = Source("PaLM 2022", "https://arxiv.org/abs/2204.02311")

# What unusual moving averages lead to, of any optimizer.
NOISY = "little memory: updates follow the noise of single batches"
LATE = "a long memory: updates turn late when the gradient turns"
NOISY_SIZE = "the size of a gradient is estimated from few batches: updates get noisy"


class UsualRange(NamedTuple):
    """The usual values of a setting, both ends included.

    Attributes:
        low: The least usual value.
        high: The greatest usual value.
        sources: The publications that use these values.
        below: What a smaller value leads to; empty where that is harmless.
        above: What a greater value leads to; empty where that is harmless.
        none: What None leads to; empty where that is usual too.

    >>> usual = UsualRange(0.0, 0.1, (BERT,), above="the last updates are still large")
    >>> str(usual), usual.warning(0.05), usual.warning(0.5)
    ('0 – 0.1', '', 'the last updates are still large')
    """

    low: float
    high: float
    sources: tuple[Source, ...]
    below: str = ""
    above: str = ""
    none: str = ""

    def warning(self, value) -> str:
        """What an unusual `value` leads to; empty for a usual one."""
        if value is None:
            return self.none
        # A value that was rounded to float32 is still the one that was written.
        if value < self.low and not math.isclose(value, self.low, rel_tol=1e-6):
            return self.below
        if value > self.high and not math.isclose(value, self.high, rel_tol=1e-6):
            return self.above
        return ""

    def __str__(self):
        if self.low == self.high:
            return value_text(self.low)
        return f"{value_text(self.low)} – {value_text(self.high)}"
