"""One update of the weights: how many tokens it is made from, and how far it may go."""

import keras
import numpy as np

from keras_llm.backend.keras_private import learning_rate_schedule
from keras_llm.losses import MaskedLoss
from keras_llm.optimizers.optimizer import Optimizer
from keras_llm.teaching import typical
from keras_llm.teaching.compiled import Compiled
from keras_llm.teaching.facts import Fact, Section, setting

CLIPPING = {
    "global_clipnorm": "longer gradients are cut",
    "clipnorm": "for each variable by itself",
    "clipvalue": "numbers beyond it are cut to it",
}


def update_section(compiled: Compiled, batch=None) -> Section | None:
    """What happens between two values of the weights; None without an optimizer."""
    if compiled.optimizer is None:
        return None
    steps = accumulated(compiled)
    facts = [
        *clipping(compiled.optimizer),
        accumulation(compiled, steps),
        *micro_batches(compiled.model),
        *tokens(compiled, steps, batch),
    ]
    return Section("One update", "", tuple(facts))


def clipping(optimizer) -> list[Fact]:
    """What keeps a single gradient from going too far."""
    usual = {"global_clipnorm": typical.GLOBAL_CLIPNORM}
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


def accumulated(compiled: Compiled) -> int:
    """Batches of `fit` that make one update."""
    window = getattr(compiled.model, "window", None)
    if window is not None:
        return window.size
    return compiled.optimizer.gradient_accumulation_steps or 1


def accumulation(compiled: Compiled, steps: int) -> Fact:
    """How batches of `fit` become updates."""
    name = "accumulation"
    if steps == 1:
        return Fact(name, 1, "none", "every batch of fit makes an update")
    if getattr(compiled.model, "window", None) is not None:
        note = "batches make an update, divided once by all their tokens"
        return Fact(name, steps, note=note)
    flag = "Keras averages the batches' means: tokens of a short batch weigh more"
    schedule = learning_rate_schedule(compiled.optimizer)
    if schedule is not None and not isinstance(compiled.optimizer, Optimizer):
        flag += f"; and it counts batches, so the schedule runs {steps} times too fast"
    return Fact(name, steps, note="batches make an update", flag=flag)


def micro_batches(model) -> list[Fact]:
    """How a batch of `fit` is cut to fit in memory; nothing where models cannot."""
    if not hasattr(model, "micro_batch_size"):
        return []
    size = model.micro_batch_size
    note = {
        None: "memory holds a whole batch",
        "auto": "a batch is cut in two where memory runs out",
    }.get(size, "rows of a batch are in memory at once")
    return [Fact("micro_batch_size", size, note=note)]


def tokens(compiled: Compiled, steps: int, batch) -> list[Fact]:
    """How many tokens an update is made from."""
    if batch is not None:
        rows, positions, counted = counts(compiled, batch)
        text = f"{steps * counted:,} tokens"
        note = f"{counted:,} of {positions:,} in {rows:,} rows count"
        note += f", times {steps} batches" if steps > 1 else ""
        return [Fact("effective batch", steps * counted, text, note)]
    known = getattr(compiled.model, "tokens_per_update", None)
    if known is not None:
        note = "the last epoch's mean of the tokens that count"
        return [Fact("effective batch", known, f"{known:,.6g} tokens", note)]
    text = "known after the first fit, or by explain(batch=(x, y))"
    return [Fact("effective batch", None, text)]


def counts(compiled: Compiled, batch) -> tuple[int, int, int]:
    """Rows, positions, and tokens that count, of a batch `(x, y)` or `(x, y, sample_weight)`.

    What a Keras mask hides is not looked for: that would take the model.
    """
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
        raise ValueError(
            "batch must be what fit gets at once, (x, y) or (x, y, sample_weight). "
            f"Received: {type(batch).__name__}"
        )
    _, labels, weights = keras.utils.unpack_x_y_sample_weight(tuple(batch))
    loss = compiled.loss
    if isinstance(loss, MaskedLoss):
        labels = loss.labels(labels)
    labels = keras.ops.convert_to_numpy(keras.tree.flatten(labels)[0])
    ignored = getattr(loss, "ignore_index", getattr(loss, "ignore_class", None))
    counted = np.ones(labels.shape, bool) if ignored is None else labels != ignored
    if weights is not None:
        weights = keras.ops.convert_to_numpy(weights)
        weights = weights.reshape(weights.shape + (1,) * (labels.ndim - weights.ndim))
        counted = counted & (weights != 0)
    return len(labels), labels.size, int(counted.sum())
