"""The five stages that every training loop has, each as a section of facts."""

import dataclasses
import math

import numpy as np

from keras_llm.explanation.facts import Fact, Section
from keras_llm.explanation.optimizer_facts import bytes_text
from keras_llm.explanation.update_facts import CLIPPING
from keras_llm.tracing.tables import block_table, blocks_of, token_table, total_norm
from keras_llm.tracing.tokens import Texts, decoder_input
from keras_llm.value_text import value_text


def batch_section(compiled, step, texts: Texts) -> Section:
    """The batch that the model gets."""
    facts = [shape_fact(name, shape) for name, shape in step.batch.items()]
    tokens = step.tokens
    if tokens.weights is not None:
        counted, positions = int((tokens.weights != 0).sum()), tokens.weights.size
        note = f"of {positions:,} positions; the rest is left out"
        note = note if counted < positions else "all of them"
        facts.append(Fact("tokens that count", counted, note=note))
    source = texts.source(step.x)
    if source:
        facts.append(Fact("encoder reads", source))
    steps = compiled.accumulation
    if steps > 1:
        text = f"this batch alone; fit makes an update from {steps}"
        facts.append(Fact("accumulation", steps, text))
    return section("1 Batch", "for x, y in batches:", [*facts, *took(step, "batch")])


def forward_section(step) -> Section:
    """What the model predicts."""
    facts = [
        *forcing(step),
        *(shape_fact(name, shape, scores(shape)) for name, shape in step.logits.items()),
    ]
    if step.kept_bytes is not None:
        note = "activations that the backward pass needs"
        kept = bytes_text(step.kept_bytes)
        facts.append(Fact("kept for backward", step.kept_bytes, kept, note))
    return section("2 Forward", "logits = model(x)", [*facts, *took(step, "forward")])


def scores(logits) -> str:
    """What the logits of a position are."""
    return f"{logits.shape[-1]:,} scores a position" if len(logits.shape) == 3 else ""


def forcing(step) -> list[Fact]:
    """Whether the model reads the right answer so far; nothing where that is not known."""
    labels, read = step.tokens.labels, decoder_input(step.x, step.tokens.labels)
    if labels is None or read is None:
        return []
    weights = step.tokens.weights
    counts = np.ones(labels.shape, bool) if weights is None else weights != 0
    both = counts[:, 1:] & counts[:, :-1]
    if not both.any():
        return []
    share = float((read[:, 1:] == labels[:, :-1])[both].mean())
    text = "at each position the label before it"
    text += "" if share == 1 else f", in {share:.0%} of them"
    same = float((read == labels)[counts].mean()) == 1.0
    flag = "the labels are the inputs themselves: the model sees the answer" if same else ""
    note = "teacher forcing" if share > 0.5 else ""
    return [Fact("model reads", share, text, note, flag=flag)]


def loss_section(step, texts: Texts, shown_tokens: int) -> Section:
    """The loss, token by token."""
    tokens, facts = step.tokens, []
    if tokens.unknown:
        facts.append(Fact("each token", None, "not known", tokens.unknown))
    else:
        facts += adding_up(step)
    facts.append(Fact("loss", step.loss, note="what fit minimises and logs"))
    table = None
    if tokens.said is not None:
        read = decoder_input(step.x, tokens.labels)
        table = token_table(tokens, read, texts.target, shown_tokens)
    return section("3 Loss", "loss = loss_fn(logits, y)", [*facts, *took(step, "loss")], table)


def adding_up(step) -> list[Fact]:
    """From the losses of tokens to their mean."""
    tokens = step.tokens
    counted = int((tokens.weights != 0).sum())
    if not counted:
        return [Fact("sum", 0.0, flag="no token counts: loss and gradients are 0")]
    weighted = "" if set(np.unique(tokens.weights)) <= {0.0, 1.0} else ", times their weights"
    facts = [Fact("sum", tokens.total, note=f"of the losses of {counted:,} tokens{weighted}")]
    if tokens.divisor is not None:
        note = f"= {value_text(tokens.total)} / {tokens.divisor:,.6g}"
        facts.append(Fact("mean", tokens.mean, note=note))
    added = step.loss - tokens.mean
    if abs(added) > 1e-5 * max(1.0, abs(step.loss)):
        note = "regularisation, add_loss, loss_weights or the model's own compute_loss"
        facts.append(Fact("added", added, note=note))
    if tokens.nll is not None:
        counts = tokens.weights != 0
        right = int((tokens.said == tokens.labels)[counts].sum())
        facts.append(Fact("right", right, note=f"of {counted:,} predictions are the label"))
        note = "exp of the mean of -log p(label)"
        facts.append(Fact("perplexity", tokens.perplexity, note=note))
    return facts


def backward_section(compiled, step) -> Section:
    """The gradients of the loss."""
    norm, clipped = total_norm(step.gradient_norms), total_norm(step.clipped_norms)
    flag = (
        ""
        if math.isfinite(norm)
        else "not finite: the weights become NaN, unless a loss scale skips it"
    )
    facts = [Fact("gradient norm", norm, note="of all blocks together", flag=flag)]
    facts += clipping(compiled, step, norm, clipped)
    size = bytes_text(step.gradient_bytes)
    facts.append(Fact("gradients", step.gradient_bytes, size, "a number for each parameter"))
    columns = {"parameters": step.sizes, "gradient": step.gradient_norms}
    if clips(compiled.optimizer):
        columns["clipped"] = step.clipped_norms
    table = block_table(blocks_of(step.paths), columns)
    return section("4 Backward", "loss.backward()", [*facts, *took(step, "backward")], table)


def clips(optimizer) -> list[str]:
    """The settings by which an optimizer clips."""
    return [name for name in CLIPPING if getattr(optimizer, name, None)]


def clipping(compiled, step, norm, clipped) -> list[Fact]:
    """What clipping does to the gradients."""
    names = clips(compiled.optimizer)
    if not names:
        return [Fact("clipping", None, note="gradients are not changed")]
    limit = getattr(compiled.optimizer, names[0])
    if names[0] == "global_clipnorm" and norm > limit:
        note = f"all gradients are multiplied by {value_text(round(limit / norm, 4))}"
    else:
        note = (
            "no gradient was changed"
            if clipped == norm
            else f"{value_text(norm)} becomes {clipped:.4g}"
        )
    return [Fact(names[0], float(limit), note=note)]


def optimizer_section(compiled, step) -> Section:
    """How much the weights change."""
    moved, weights = total_norm(step.update_norms), total_norm(step.weight_norms)
    ratio = moved / weights if weights else None
    name = type(compiled.optimizer).__name__
    facts = [
        Fact("learning rate", step.learning_rate, note=of_update(step)),
        Fact(
            "update / weights",
            ratio,
            f"{ratio:.2g}" if ratio is not None else "none",
            "of all blocks; a rough rule is 1e-3 (CS231n)",
        ),
        Fact("state", step.state_bytes, bytes_text(step.state_bytes), f"kept by {name}"),
        *took(step, "optimizer"),
    ]
    table = block_table(
        blocks_of(step.paths), {"weights": step.weight_norms, "update": step.update_norms}
    )
    return section("5 Optimizer", "optimizer.step()", facts, table)


def of_update(step) -> str:
    """The number of the update, and why a learning rate is 0."""
    note = f"of update {step.update:,}"
    if step.learning_rate:
        return note
    why = "a warm-up begins at 0" if step.update == 1 else "the schedule has ended"
    return f"{note}; no weight changes: {why}"


def section(title, code, facts, table=None) -> Section:
    """A stage, with its line of the loop."""
    return Section(title, code, tuple(facts), table=table)


def took(step, stage) -> list[Fact]:
    """The time of a stage, and the GPU's memory after it; nothing where they are not known."""
    if stage not in step.seconds:
        return []
    seconds = step.seconds[stage]
    share = seconds / sum(step.seconds.values())
    note = f"{share:.0%} of the step" if share >= 0.005 else "under 1% of the step"
    if stage == "backward" and "forward" not in step.seconds:
        note += ", with forward and loss: they are one program"
    if stage in step.gpu_bytes:
        note += f"; tensors on the GPU then: {bytes_text(step.gpu_bytes[stage])}"
    return [Fact("took", seconds, f"{seconds * 1e3:,.3g} ms", note)]


def shape_fact(name, shape, note="") -> Fact:
    """The shape, type and device of a tensor."""
    text = f"{list(shape.shape)} {shape.dtype} on {shape.device}"
    return Fact(name, dataclasses.asdict(shape) | {"shape": list(shape.shape)}, text, note)
