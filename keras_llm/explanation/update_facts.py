"""One update of the weights: how many tokens it is made from, and how long its gradient may be."""

from keras_llm.backend.keras_private import learning_rate_schedule
from keras_llm.explanation.compiled_model import CompiledModel
from keras_llm.explanation.counted_tokens import token_counts
from keras_llm.explanation.facts import Fact, Section, setting
from keras_llm.explanation.stock_keras import GLOBAL_CLIPNORM
from keras_llm.optimizers.optimizer import Optimizer

CLIPPING = {
    "global_clipnorm": "greatest norm of a gradient",
    "clipnorm": "greatest norm for a variable",
    "clipvalue": "greatest number in a gradient",
}


def update_section(compiled: CompiledModel, batch=None) -> Section | None:
    """What happens between two values of the weights; None without an optimizer."""
    if compiled.optimizer is None:
        return None
    facts = [
        *clipping(compiled.optimizer),
        accumulation(compiled),
        *micro_batches(compiled),
        effective_batch(compiled, batch),
    ]
    return Section("One update", "", tuple(facts))


def clipping(optimizer) -> list[Fact]:
    """What limits the length of a gradient."""
    usual = {"global_clipnorm": GLOBAL_CLIPNORM}
    facts = [
        setting(name, getattr(optimizer, name), note, usual.get(name))
        for name, note in CLIPPING.items()
        if getattr(optimizer, name, None) is not None
    ]
    if facts:
        return facts
    if hasattr(optimizer, "clip_threshold"):
        note = "clip_threshold bounds every update"
    else:
        note = "global_clipnorm=1.0 is usual"
    return [Fact("clipping", None, note=note)]


def accumulation(compiled: CompiledModel) -> Fact:
    """How batches of `fit` become updates."""
    name, steps = "accumulation", compiled.accumulation
    if steps == 1:
        return Fact(name, 1, "none", "every batch of fit makes an update")
    if compiled.step is not None:
        note = "batches make an update: their sum, divided once by all their tokens"
        return Fact(name, steps, note=note)
    flag = "Keras averages the batches' means: tokens of a short batch weigh more"
    schedule = learning_rate_schedule(compiled.optimizer)
    if schedule is not None and not isinstance(compiled.optimizer, Optimizer):
        flag += f"; and it counts batches, so the schedule runs {steps} times too fast"
    return Fact(name, steps, note="batches make an update", flag=flag)


def micro_batches(compiled: CompiledModel) -> list[Fact]:
    """How a batch of `fit` is split to fit in memory; nothing where it cannot be."""
    if compiled.step is None:
        return []
    size = compiled.step.micro_batch_size
    note = {
        None: "memory holds a whole batch",
        "auto": "a batch is cut in two where memory runs out",
    }.get(size, "rows of a batch are in memory at once")
    return [Fact("micro_batch_size", size, note=note)]


def effective_batch(compiled: CompiledModel, batch) -> Fact:
    """How many tokens an update is made from."""
    name, steps = "effective batch", compiled.accumulation
    if batch is not None:
        rows, positions, counted = token_counts(compiled, batch)
        text = f"{steps * counted:,} tokens"
        note = f"{counted:,} of {positions:,} in {rows:,} rows count"
        note += f", times {steps} batches" if steps > 1 else ""
        return Fact(name, steps * counted, text, note)
    known = compiled.step and compiled.step.tokens_per_update
    if known is not None:
        note = "mean over the last epoch of the tokens that count"
        return Fact(name, known, f"{known:,.6g} tokens", note)
    return Fact(name, None, "known after the first fit, or by explain(batch=(x, y))")
