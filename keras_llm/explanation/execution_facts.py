"""How the step runs: software, device, precision, and how layers and logits are computed."""

import importlib.metadata
import platform
import sys

import keras

from keras_llm.explanation.compiled_model import CompiledModel
from keras_llm.explanation.docstring_text import name_of
from keras_llm.explanation.facts import Fact, Section
from keras_llm.explanation.optimizer_facts import bytes_text
from keras_llm.losses import MaskedLoss
from keras_llm.training import Processes, StepDescription

UNKNOWN = "known once the model is built"


def execution_section(compiled: CompiledModel) -> Section:
    """How the step runs."""
    model, variables = compiled.model, compiled.model.variables
    devices = sorted({device_of(variable.value) for variable in variables})
    facts = [software(), Fact("device", devices or None, "" if devices else UNKNOWN)]
    if compiled.step is not None and compiled.step.processes is not None:
        facts += processes(compiled.step.processes)
    facts += [*precision(compiled), layers(compiled)]
    # Where attention stops in a row of several documents.
    config = getattr(getattr(model, "backbone", None), "config", None)
    end = getattr(config, "document_end_id", None)
    if end is not None:
        note = "ends a document: the tokens after it do not see those before"
        facts.append(Fact("document_end_id", end, note=note))
    if compiled.step is not None:
        facts.append(guard(compiled.step))
    if compiled.is_of_tokens or isinstance(compiled.loss, MaskedLoss):
        facts.append(logits(compiled))
    return Section("How it runs", "", tuple(facts))


def software() -> Fact:
    """The versions that a bug report needs."""
    try:
        version = importlib.metadata.version("keras_llm")
    except importlib.metadata.PackageNotFoundError:
        version = "(a clone)"
    name = keras.backend.backend()
    backend = sys.modules[name].__version__
    versions = {"keras_llm": version, "Keras": keras.__version__, name: backend}
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Fact("software", {**versions, "Python": platform.python_version()}, text)


def device_of(tensor) -> str:
    """The device of one tensor, as its backend calls it.

    >>> import keras, keras_llm
    >>> device_of(keras.ops.zeros(1)).split(":")[0] in ("cpu", "cuda", "gpu")
    True
    """
    if hasattr(tensor, "devices"):
        # JAX, where one array may be spread over several.
        return ", ".join(sorted(f"{d.platform}:{d.id}" for d in tensor.devices()))
    return str(tensor.device).split("device:")[-1].lower()


def processes(found: Processes) -> list[Fact]:
    """What each of several processes does, and what it sends to the others."""
    count = found.count
    share = f"{count}, each takes 1 of {count} rows of a batch"
    sent = UNKNOWN if found.sent is None else f"{bytes_text(found.sent)} by each process"
    part = f"{count - 1}/{count} of their bytes"
    why = {
        None: f"sums of gradients, in float32 at least: 2 * {part}",
        "optimizer": f"sums of gradients, in float32 at least, and parameters: {part}",
        "parameters": f"sums of gradients, and in each pass parameters, layers twice: {part}",
    }[found.shard]
    facts = [
        Fact("processes", count, share, "batch_size is that of all processes together"),
        Fact("sent for an update", found.sent, sent, why),
        Fact("dropout", "differs", "differs by process", "the order of the data does not"),
    ]
    if found.shard is None:
        return facts
    text = "the optimizer's state and the sums of gradients, by variables"
    if found.shard == "parameters":
        text = f"parameters, {text}"
    note = f"distribute(shard={found.shard!r})"
    if found.owned is not None:
        low, high = bytes_text(min(found.owned)), bytes_text(max(found.owned))
        note += f": a process updates {low} to {high} of parameters"
    return [*facts, Fact("divided", found.shard, text, note)]


def precision(compiled: CompiledModel) -> list[Fact]:
    """The types that numbers are kept and computed in."""
    policy = compiled.model.dtype_policy
    kept, computed = policy.variable_dtype, policy.compute_dtype
    text = kept if kept == computed else f"{kept} weights, {computed} arithmetic"
    note = "loss and metrics in float32" if "16" in computed and compiled.step else ""
    facts = [Fact("precision", policy.name, text, note)]
    outer = compiled.model.optimizer
    if outer is not compiled.optimizer:
        scale = float(outer.dynamic_scale) if outer.built else outer.initial_scale
        note = "keeps small float16 gradients from rounding to 0"
        facts.append(Fact("loss scale", scale, note=note))
    return facts


def layers(compiled: CompiledModel) -> Fact:
    """Whether the layers run one by one, or as a graph."""
    model, step, backend = compiled.model, compiled.step, keras.backend.backend()
    texts = {
        "graph": "as one graph, made at the second batch of a shape",
        "eager": "one by one",
        "xla": "compiled by XLA",
        "tensorflow graph": "as a TensorFlow graph",
        "torch.compile": "compiled by torch.compile, as far as it can",
    }
    by_xla = "compiled by XLA" if backend == "tensorflow" and model.jit_compile else ""
    if step is not None:
        if not model.built and backend == "torch":
            return Fact("layers", None, UNKNOWN)
        text = ", ".join(filter(None, (texts[step.layers], by_xla)))
        return Fact("layers", step.layers, text, step.why_layers or step.compiling)
    # Keras's own step.
    if model.run_eagerly:
        how, note = "eager", "compile was given run_eagerly=True"
    elif backend == "tensorflow":
        how, note = "tensorflow graph", by_xla
    elif not model.jit_compile:
        how, note = "eager", "as Keras runs them"
    else:
        how, note = "xla" if backend == "jax" else "torch.compile", ""
    return Fact("layers", how, texts[how], note)


def guard(step: StepDescription) -> Fact:
    """What happens to a loss or a gradient that is not finite."""
    name, settings = "not finite", step.guard
    if not settings.skip:
        return Fact(name, "trained on", note="FiniteGuard(skip=False)")
    note = "a loss or gradient that is infinite or NaN changes nothing"
    if settings.deviations is not None:
        far = f"{settings.deviations:g} deviations of the last {settings.window} norms"
        note += f"; nor does a gradient beyond {far}"
    text = f"update skipped, {step.skipped:,} so far"
    return Fact(name, "skipped", text, note)


def logits(compiled: CompiledModel) -> Fact:
    """Whether the logits of a whole batch are held, or computed and used a few rows at a time."""
    model, step = compiled.model, compiled.step
    if not model.built:
        return Fact("logits", None, UNKNOWN)
    if step is not None:
        why = step.why_logits
    elif hasattr(model, "backbone") and hasattr(model, "head"):
        why = f"{name_of(compiled.loss)} is not a loss of keras_llm, so Keras's own step runs"
    else:
        why = "models.LanguageModel(backbone, head) around the layers needs none"
    if why:
        size = f"{compiled.vocab_size:,}" if compiled.vocab_size else "V"
        return Fact("logits", "whole", f"held for a whole batch, {size} a token", why)
    note = "with sample_weight only if metrics are weighted_metrics"
    note = note if step.sample_weight_needs_logits else ""
    return Fact("logits", "one pass", "never held: one pass gives loss, metrics, gradients", note)
