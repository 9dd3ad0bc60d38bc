"""`compile(optimizer=...)`: its settings, what it decays, what it keeps in memory."""

import collections
import math
import re

import keras

from keras_llm.backend.keras_private import keras_decays, optimizer_settings
from keras_llm.explanation import stock_keras
from keras_llm.explanation.compiled_model import CompiledModel, size
from keras_llm.explanation.facts import Fact, Section, setting
from keras_llm.optimizers.gradients import is_low_precision
from keras_llm.value_text import value_text

# Told by another section, or of no interest.
TOLD = {"name", "learning_rate", "gradient_accumulation_steps"}
TOLD |= {"clipnorm", "clipvalue", "global_clipnorm"}
OF_EMA = {"ema_momentum", "ema_overwrite_frequency"}
# As many names of variables fit on a line.
MOST_NAMES = 4


def optimizer_section(compiled: CompiledModel) -> Section:
    """What the optimizer is."""
    optimizer = compiled.optimizer
    if optimizer is None:
        facts = (Fact("updates", None, "none", "without an optimizer, fit cannot train"),)
        return Section("Optimizer", "none given", facts)
    name = type(optimizer).__name__
    parts = getattr(optimizer, "optimizers", None)
    if parts is not None:
        names = [type(part).__name__ for part in parts]
        note = "each with its own settings, for its own variables"
        return Section("Optimizer", name, (Fact("made of", names, note=note), state(compiled)))
    facts = [*settings(optimizer), *decayed(compiled), state(compiled)]
    return Section("Optimizer", name, tuple(facts))


def settings(optimizer) -> list[Fact]:
    """Every argument of the optimizer that has no section of its own."""
    ranges = getattr(optimizer, "usual_ranges", None)
    ranges = stock_keras.optimizer_ranges(optimizer) if ranges is None else ranges
    notes = stock_keras.OPTIMIZER_NOTES | getattr(optimizer, "notes", {})
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
            note = notes.get(name, "")
            averaged = {"beta_1": "gradients", "beta_2": "squared ones"}
            if name in averaged and isinstance(value, float) and value < 1:
                note = f"mean of ~{round(1 / (1 - value)):,} {averaged[name]}"
            facts.append(setting(name, value, note, ranges.get(name)))
    return [*facts, Fact("off", off)] if off else facts


def decayed(compiled: CompiledModel) -> list[Fact]:
    """Which variables the weight decay shrinks, and which not."""
    optimizer = compiled.optimizer
    if not optimizer.weight_decay:
        return [Fact("decayed", [], "nothing", "there is no weight decay")]
    if not compiled.model.built:
        return [Fact("decayed", None, "known once the model is built")]
    decays = getattr(optimizer, "decays", lambda variable: keras_decays(optimizer, variable))
    groups = {"decayed": [], "not decayed": []}
    for variable in compiled.model.trainable_variables:
        groups["decayed" if decays(variable) else "not decayed"].append(variable)
    facts = []
    for name, variables in groups.items():
        kinds = collections.Counter(variable.name for variable in variables)
        names = [f"{kind} x {n}" if n > 1 else kind for kind, n in kinds.most_common(MOST_NAMES)]
        names += ["..."] if len(kinds) > MOST_NAMES else []
        text = f"{size(variables):,} numbers: {', '.join(names)}" if variables else "nothing"
        flag = ""
        if name == "decayed" and any(len(variable.shape) < 2 for variable in variables):
            flag = "biases or norm scales among them, which GPT-3, LLaMA and others do not decay"
        paths = [variable.path for variable in variables]
        details = tuple(f"{variable.path} {tuple(variable.shape)}" for variable in variables)
        facts.append(Fact(name, paths, text, flag=flag, details=details))
    return facts


def state(compiled: CompiledModel) -> Fact:
    """What the optimizer remembers between updates."""
    parameters = compiled.parameters
    kept = state_tensors(compiled) if parameters else None
    if kept is None:
        when = "once the model is built" if parameters is None else "after the first fit"
        return Fact("memory", None, f"known {when}")
    total = nbytes(kept)
    each = total / parameters
    kinds = sorted({tensor.dtype for tensor in kept})
    flag = "moving averages with so few digits stand still: a small change is rounded away"
    flag = flag if any(map(is_low_precision, kinds)) else ""
    text = f"{each:.4g} bytes a parameter: {bytes_text(total)}"
    return Fact("memory", each, f"{text} in {' and '.join(kinds)}" if kinds else text, flag=flag)


def state_tensors(compiled: CompiledModel) -> list | None:
    """What the optimizer keeps but its counters, without values; None if not known yet.

    One that is not built yet is not built here: a twin is, for one variable at a time, so that
    memory never holds a second copy of it all.
    """
    optimizer = compiled.optimizer
    if optimizer.built:
        return [v for v in optimizer.variables if len(v.shape)]
    config, kept = optimizer_settings(optimizer), []
    for variable in compiled.model.trainable_variables:
        try:
            twin = type(optimizer).from_config(config)
            twin.build([variable])
        except Exception:
            # A user's own optimizer may have to be built in another way.
            return None
        kept += [keras.KerasTensor(v.shape, v.dtype) for v in twin.variables if len(v.shape)]
    return kept


def nbytes(tensors) -> int:
    """Bytes of the numbers of all tensors or variables."""
    total = 0
    for tensor in tensors:
        digits = re.search(r"\d+", keras.backend.standardize_dtype(tensor.dtype))
        total += math.prod(tensor.shape) * (int(digits[0]) // 8 if digits else 1)
    return total


def bytes_text(count: int) -> str:
    """Bytes in the unit that suits them.

    >>> bytes_text(27_300_000)
    '27.3 MB'
    """
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{value_text(count)} bytes"
