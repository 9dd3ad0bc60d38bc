"""How the step runs: software, device, precision, and how layers and logits are computed."""

import importlib.metadata
import platform
import sys

import keras

from keras_llm.explanation.compiled_model import CompiledModel
from keras_llm.explanation.docstring_text import name_of
from keras_llm.explanation.facts import Fact, Section
from keras_llm.losses import MaskedLoss

UNKNOWN = "known once the model is built"


def execution_section(compiled: CompiledModel) -> Section:
    """How the step runs."""
    facts = (
        software(),
        device(compiled.model),
        *precision(compiled),
        layers(compiled),
        *documents(compiled.model),
        *logits(compiled),
    )
    return Section("How it runs", "", facts)


def software() -> Fact:
    """The versions that a bug report needs."""
    name = keras.backend.backend()
    versions = {
        "keras_llm": own_version(),
        "Keras": keras.__version__,
        name: sys.modules[name].__version__,
    }
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Fact("software", {**versions, "Python": platform.python_version()}, text)


def own_version() -> str:
    """The version of this library; a clone that is not installed has none."""
    try:
        return importlib.metadata.version("keras_llm")
    except importlib.metadata.PackageNotFoundError:
        return "(a clone)"


def device(model) -> Fact:
    """Where the variables are."""
    if not model.variables:
        return Fact("device", None, UNKNOWN)
    devices = sorted({device_of(variable.value) for variable in model.variables})
    return Fact("device", devices)


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
    model, step, name = compiled.model, compiled.step, keras.backend.backend()
    if step is None:
        return keras_layers(model, name)
    if not model.built and name == "torch":
        return Fact("layers", None, UNKNOWN)
    text = {
        "graph": "as one graph, made at the second batch of a shape",
        "eager": "one by one",
        "xla": "compiled by XLA",
        "tensorflow graph": "as a TensorFlow graph",
    }[step.layers]
    if name == "tensorflow" and model.jit_compile:
        text += ", compiled by XLA"
    return Fact("layers", step.layers, text, step.why_layers or step.compiling)


def keras_layers(model, backend: str) -> Fact:
    """How Keras's own step runs the layers."""
    if model.run_eagerly:
        return Fact("layers", "eager", "one by one", "compile was given run_eagerly=True")
    if backend == "tensorflow":
        note = "compiled by XLA" if model.jit_compile else ""
        return Fact("layers", "tensorflow graph", "as a TensorFlow graph", note)
    if not model.jit_compile:
        return Fact("layers", "eager", "one by one", "as Keras runs them")
    if backend == "jax":
        return Fact("layers", "xla", "compiled by XLA")
    return Fact("layers", "torch.compile", "compiled by torch.compile, as far as it can")


def documents(model) -> list[Fact]:
    """Where attention stops in a row of several documents."""
    config = getattr(getattr(model, "backbone", None), "config", None)
    end = getattr(config, "document_end_id", None)
    if end is None:
        return []
    note = "ends a document: the tokens after it do not see those before"
    return [Fact("document_end_id", end, note=note)]


def logits(compiled: CompiledModel) -> list[Fact]:
    """Whether the logits of a whole batch are held, or computed and used a few rows at a time."""
    model, step = compiled.model, compiled.step
    if not compiled.is_of_tokens and not isinstance(compiled.loss, MaskedLoss):
        return []
    if not model.built:
        return [Fact("logits", None, UNKNOWN)]
    if step is None:
        why = "models.LanguageModel(backbone, head) around the layers needs none"
        if hasattr(model, "backbone") and hasattr(model, "head"):
            why = f"{name_of(compiled.loss)} is not a loss of keras_llm, so Keras's own step runs"
    else:
        why = step.why_logits
    if why:
        size = f"{compiled.vocab_size:,}" if compiled.vocab_size else "V"
        return [Fact("logits", "whole", f"held for a whole batch, {size} a token", why)]
    note = ""
    if step.sample_weight_needs_logits:
        note = "with sample_weight only if metrics are weighted_metrics"
    text = "never held: one pass gives loss, metrics, gradients"
    return [Fact("logits", "one pass", text, note)]
