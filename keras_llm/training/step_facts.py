"""What a step tells about itself, in plain data."""

from typing import NamedTuple


class StepDescription(NamedTuple):
    """A step in plain data, for `explain`.

    Attributes:
        accumulation: Batches that make an update.
        micro_batch_size: Rows of a batch that are in memory at once, `"auto"`, or None for all.
        tokens_per_update: The mean of the last epoch; None before the first `fit`.
        why_logits: Why the logits of a batch are held; empty where they never are.
        sample_weight_needs_logits: Whether a batch with `sample_weight` needs them nevertheless.
        layers: How they run: `"graph"`, `"eager"`, `"xla"` or `"tensorflow graph"`.
        why_layers: Why they run one by one; empty where they do not.
        compiling: What was decided about `jit_compile`; empty where it is off.
        guard: The `GuardSettings`.
        skipped: How many updates have been skipped because they were not finite.
        processes: The `Processes` that train; None for one alone.
    """

    accumulation: int
    micro_batch_size: int | str | None
    tokens_per_update: float | None
    why_logits: str
    sample_weight_needs_logits: bool
    layers: str
    why_layers: str
    compiling: str
    guard: "GuardSettings"
    skipped: int
    processes: "Processes | None" = None


class Processes(NamedTuple):
    """Several processes that train one model.

    Attributes:
        count: How many.
        shard: What they divide among themselves besides rows; None for nothing.
        owned: The bytes of the variables that each one updates; None where the model is not built.
        sent: The bytes that each one sends on average for an update of one pass; None likewise.
    """

    count: int
    shard: str | None
    owned: list[int] | None
    sent: int | None


class GuardSettings(NamedTuple):
    """Which updates are skipped: see `FiniteGuard`.

    Attributes:
        skip: Whether those are whose loss or gradient is not finite.
        deviations, window: Those with a gradient norm beyond so many standard deviations of so many
            updates before; None for none.
    """

    skip: bool = True
    deviations: float | None = None
    window: int = 100


class SkippedUpdates(NamedTuple):
    """What a step has skipped.

    Attributes:
        ages: Of each update skipped since the last look: how many batches ago it was.
        total: The updates that were not finite, in all.
        in_a_row: How many of those were the last ones.
        outliers: The updates with an unusually large gradient, in all.
    """

    ages: list[int]
    total: int
    in_a_row: int
    outliers: int
