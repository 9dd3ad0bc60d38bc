"""`compile(optimizer=...)`: its settings, what it decays, what it keeps in memory."""

import collections
import math
import re

import keras

from keras_llm.backend.keras_private import keras_decays, optimizer_settings
from keras_llm.optimizers.optimizer import Optimizer, is_low_precision
from keras_llm.teaching import typical
from keras_llm.teaching.compiled import Compiled, size
from keras_llm.teaching.facts import Fact, Section, setting, shown

NOTES = {
    "weight_decay": "pull of the weights to 0",
    "epsilon": "added to that size",
    "momentum": "share of the last update",
    "decay_vectors": "biases and norm scales decay too",
    "exclude_from_weight_decay": "variables whose path matches do not decay",
    "relative_step": "the learning rate is Adafactor's own",
    "scale_parameter": "steps are relative to the size of what they change",
    "warmup_init": "Adafactor's own learning rate starts small",
    "epsilon_1": "added to squared gradients",
    "epsilon_2": "least size that a step sees",
    "clip_threshold": "greatest size of an update",
    "use_ema": "a moving average of the weights is kept",
}
# Told by another section, or of no interest.
TOLD = {
    "name",
    "learning_rate",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "gradient_accumulation_steps",
}
# So many names of variables fit on a line.
KINDS = 4
OF_EMA = {"ema_momentum", "ema_overwrite_frequency"}


def optimizer_section(compiled: Compiled) -> Section:
    """What the optimizer is."""
    optimizer = compiled.optimizer
    if optimizer is None:
        facts = (Fact("updates", None, "none", "without an optimizer, fit cannot train"),)
        return Section("Optimizer", "none given", facts)
    name = type(optimizer).__name__
    parts = getattr(optimizer, "optimizers", None)
    if parts is not None:
        names = [type(part).__name__ for part in parts]
        note = "each with settings of its own, for variables of its own"
        return Section("Optimizer", name, (Fact("made of", names, note=note), state(compiled)))
    facts = [*settings(optimizer), *decayed(compiled), state(compiled)]
    return Section("Optimizer", name, tuple(facts))


def settings(optimizer) -> list[Fact]:
    """Every argument of the optimizer that has no section of its own."""
    ranges = typical.settings_of(optimizer)
    config = optimizer_settings(optimizer)
    told = TOLD if config.get("use_ema") else TOLD | OF_EMA
    facts, off = [], []
    for name, value in config.items():
        if name in told:
            continue
        if not value and name not in ranges:
            off.append(name)
        elif isinstance(value, dict):
            facts.append(Fact(name, str(value), "see its class"))
        else:
            facts.append(setting(name, value, meaning(name, value), ranges.get(name)))
    if off:
        facts.append(Fact("off", off))
    return facts


def meaning(name, value) -> str:
    """What a setting does."""
    if name == "beta_2_decay":
        return f"beta_2 = 1 - t^{shown(value)} at t"
    if name == "beta_1" and value is None:
        return "no mean, and no memory for it"
    if name in ("beta_1", "beta_2") and isinstance(value, float) and value < 1:
        what = "mean" if name == "beta_1" else "size"
        return f"{what} of ~{round(1 / (1 - value)):,} gradients"
    return NOTES.get(name, "")


def decayed(compiled: Compiled) -> list[Fact]:
    """Which variables the weight decay shrinks, and which it leaves alone."""
    optimizer = compiled.optimizer
    if not optimizer.weight_decay:
        return [Fact("decayed", [], "nothing", "there is no weight decay")]
    if not compiled.model.built:
        return [Fact("decayed", None, "known once the model is built")]
    decays = optimizer.decays if isinstance(optimizer, Optimizer) else None
    decays = decays or (lambda variable: keras_decays(optimizer, variable))
    groups = {True: [], False: []}
    for variable in compiled.model.trainable_variables:
        groups[bool(decays(variable))].append(variable)
    flag = ""
    if any(len(variable.shape) < 2 for variable in groups[True]):
        flag = "biases or norm scales among them, which GPT-3, LLaMA and others leave alone"
    return [
        group("decayed", groups[True], flag),
        group("not decayed", groups[False]),
    ]


def group(name: str, variables, flag="") -> Fact:
    """Some variables, in a few words and one by one."""
    kinds = collections.Counter(variable.name for variable in variables)
    names = [f"{kind} x {n}" if n > 1 else kind for kind, n in kinds.most_common(KINDS)]
    names += ["..."] if len(kinds) > KINDS else []
    text = f"{size(variables):,} numbers: {', '.join(names)}" if variables else "nothing"
    paths = [variable.path for variable in variables]
    details = tuple(f"{variable.path} {tuple(variable.shape)}" for variable in variables)
    return Fact(name, paths, text, flag=flag, details=details)


def state(compiled: Compiled) -> Fact:
    """What the optimizer remembers between updates."""
    parameters = compiled.parameters
    kept = state_variables(compiled) if parameters else None
    if kept is None:
        when = "once the model is built" if parameters is None else "after the first fit"
        return Fact("memory", None, f"known {when}")
    total = sum(nbytes(variable) for variable in kept)
    each = total / parameters
    kinds = sorted({variable.dtype for variable in kept})
    flag = ""
    if any(is_low_precision(kind) for kind in kinds):
        flag = "moving averages of so few digits stand still: a small change is rounded away"
    text = f"{each:.4g} bytes a parameter: {shown_bytes(total)}"
    return Fact("memory", each, f"{text} in {' and '.join(kinds)}" if kinds else text, flag=flag)


def state_variables(compiled: Compiled) -> list | None:
    """The optimizer's variables but its counters; None where that cannot be known yet.

    One that is not built yet is asked for the state of one variable at a time, by a twin, so that
    the model's own is left as it is and memory holds no second copy of it all.
    """
    optimizer, variables = compiled.optimizer, compiled.model.trainable_variables
    if optimizer.built:
        return [variable for variable in optimizer.variables if len(variable.shape)]
    config = optimizer_settings(optimizer)
    kept = []
    for variable in variables:
        try:
            twin = type(optimizer).from_config(config)
            twin.build([variable])
        except Exception:
            # Somebody's own optimizer may be built otherwise; then the first fit tells.
            return None
        kept += [Shape(v.shape, v.dtype) for v in twin.variables if len(v.shape)]
    return kept


Shape = collections.namedtuple("Shape", "shape dtype")


def nbytes(variable) -> int:
    """Bytes of a variable's numbers."""
    digits = re.search(r"\d+", keras.backend.standardize_dtype(variable.dtype))
    return math.prod(variable.shape) * (int(digits[0]) // 8 if digits else 1)


def shown_bytes(count: int) -> str:
    """Bytes in the unit that suits them.

    >>> shown_bytes(27_300_000)
    '27.3 MB'
    """
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{shown(count)} bytes"
