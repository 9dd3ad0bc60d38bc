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
    facts = [*clipping(compiled.optimizer), accumulation(compiled)]
    if compiled.step is not None:
        size = compiled.step.micro_batch_size
        notes = {
            None: "memory holds a whole batch",
            "auto": "a batch is cut in two where memory runs out",
        }
        note = notes.get(size, "rows of a batch are in memory at once")
        facts.append(Fact("micro_batch_size", size, note=note))
    return Section("One update", "", (*facts, effective_batch(compiled, batch)))


def clipping(optimizer) -> list[Fact]:
    """What limits the length of a gradient."""
    usual = {"global_clipnorm": GLOBAL_CLIPNORM}
    facts = [
        setting(name, getattr(optimizer, name), note, usual.get(name))
        for name, note in CLIPPING.items()
        if getattr(optimizer, name, None) is not None
    ]
    bounded = hasattr(optimizer, "clip_threshold")
    note = "clip_threshold bounds every update" if bounded else "global_clipnorm=1.0 is usual"
    return facts or [Fact("clipping", None, note=note)]


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
