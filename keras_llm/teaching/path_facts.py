"""How the step runs: software, device, precision, and which way layers and logits take."""

import importlib.metadata
import platform
import re
import sys

import keras

from keras_llm.losses import MaskedLoss, TokenLoss
from keras_llm.teaching.compiled import Compiled
from keras_llm.teaching.facts import Fact, Section
from keras_llm.teaching.words import name_of
from keras_llm.training import TokenModel

UNKNOWN = "known once the model is built"


def path_section(compiled: Compiled) -> Section:
    """How the step runs."""
    facts = (
        software(),
        device(compiled.model),
        *precision(compiled),
        layers(compiled),
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
    """The version of this library; a clone that nobody installed has none."""
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


def precision(compiled: Compiled) -> list[Fact]:
    """The types that numbers are kept and computed in."""
    policy = compiled.model.dtype_policy
    kept, computed = policy.variable_dtype, policy.compute_dtype
    text = kept if kept == computed else f"{kept} weights, {computed} arithmetic"
    note = "loss and metrics in float32" if "16" in computed and compiled.accounts else ""
    facts = [Fact("precision", policy.name, text, note)]
    outer = compiled.model.optimizer
    if outer is not compiled.optimizer:
        scale = float(outer.dynamic_scale) if outer.built else outer.initial_scale
        note = "keeps small float16 gradients from rounding to 0"
        facts.append(Fact("loss scale", scale, note=note))
    return facts


def layers(compiled: Compiled) -> Fact:
    """Whether the layers run one by one, or as a graph."""
    model, name = compiled.model, keras.backend.backend()
    if model.run_eagerly:
        return Fact("layers", "eager", "one by one", "compile was given run_eagerly=True")
    if name == "jax":
        compiler = "compiled by XLA" if model.jit_compile else "one by one"
        return Fact("layers", "xla" if model.jit_compile else "eager", compiler)
    if name == "tensorflow":
        note = "compiled by XLA" if model.jit_compile else ""
        return Fact("layers", "graph", "as a TensorFlow graph", note)
    if not model.built:
        return Fact("layers", None, UNKNOWN)
    if obstacle(compiled):
        if model.jit_compile:
            return Fact("layers", "torch.compile", "compiled by torch.compile, as far as it goes")
        return Fact("layers", "eager", "one by one", "as Keras does on PyTorch")
    return captured(model)


def captured(model) -> Fact:
    """What has become of the graph of a `LanguageModel` on PyTorch."""
    capture = model.capture
    if capture is not None and capture.reason:
        # Keras's errors are long, and coloured.
        reason = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capture.reason).split())
        return Fact("layers", "eager", "one by one", f"no graph: {reason[:200]}")
    text = "as one graph, made at the second batch of a shape"
    note = {
        True: "compiled by torch.compile",
        "auto": "compiled by torch.compile where that is faster",
    }.get(getattr(model, "graphs_are_compiled", model.jit_compile), "")
    return Fact("layers", "graph", text, note)


def logits(compiled: Compiled) -> list[Fact]:
    """Whether logits are held, or made and used a few rows at a time."""
    model = compiled.model
    if not compiled.is_of_tokens and not isinstance(compiled.loss, MaskedLoss):
        return []
    if not model.built:
        return [Fact("logits", None, UNKNOWN)]
    why = obstacle(compiled)
    if why:
        size = f"{compiled.vocab_size:,}" if compiled.vocab_size else "V"
        return [Fact("logits", "whole", f"held for a whole batch, {size} a token", why)]
    note = ""
    if not compiled.accounts.can_do_without_logits(sample_weight=True):
        note = "with sample_weight only if metrics are weighted_metrics"
    text = "never held: one pass over the vocabulary does it all"
    return [Fact("logits", "one pass", text, note)]


def obstacle(compiled: Compiled) -> str:
    """Why the one pass over the vocabulary cannot run; empty where it does."""
    model, loss = compiled.model, compiled.loss
    if not isinstance(model, TokenModel):
        return "models.LanguageModel(backbone, head) around the layers would spare them"
    if compiled.accounts is None:
        return f"{name_of(loss)} is not a loss of keras_llm, so Keras's own step runs"
    if not isinstance(loss, TokenLoss):
        return f"{name_of(loss)} reads whole rows of them"
    if not loss.from_logits:
        return "the model's outputs are probabilities (from_logits=False)"
    left = [compiled.accounts.left, compiled.accounts.left_weighted]
    names = [getattr(m, "name", name_of(m)) for m in keras.tree.flatten(left) if m is not None]
    if names:
        return f"metrics need them: {', '.join(names)}"
    if not model.head_is_matrix():
        return "the head is more than a matrix, or the model's own call or compute_loss is used"
    if keras.backend.backend() != "torch" and keras.distribution.distribution() is not None:
        return "the batch is spread over devices"
    return ""
