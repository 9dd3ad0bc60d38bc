"""The five stages that every training loop has, each as a section of facts."""

import math

import keras
import numpy as np
from keras import ops

from keras_llm.explanation.execution_facts import device_of
from keras_llm.explanation.facts import Fact, Section
from keras_llm.explanation.optimizer_facts import bytes_text
from keras_llm.explanation.update_facts import CLIPPING
from keras_llm.tracing.tables import block_table, blocks_of, ratio, token_table, total_norm
from keras_llm.tracing.tokens import token_text, visible
from keras_llm.value_text import value_text

# How much of a text fits on a line.
TEXT_LENGTH = 60


def batch_section(step, accumulation: int, tokenizer) -> Section:
    """The batch that the model gets; `tokenizer` is that of what an encoder reads, or None."""
    facts, weights, x = shape_facts(step.batch), step.tokens.weights, step.batch["x"]
    if weights is not None:
        counted, positions = int((weights != 0).sum()), weights.size
        note = f"of {positions:,} positions; the rest is left out"
        note = note if counted < positions else "all of them"
        facts.append(Fact("tokens that count", counted, note=note))
    if tokenizer is not None and isinstance(x, dict) and "encoder_ids" in x:
        row = ops.convert_to_numpy(x["encoder_ids"])[0].tolist()
        text = visible(tokenizer.decode(row))
        text = text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"
        facts.append(Fact("encoder reads", text))
    if accumulation > 1:
        text = f"this batch alone; fit makes an update from {accumulation}"
        facts.append(Fact("accumulation", accumulation, text))
    return section(step, "1 Batch", "for x, y in batches:", facts)


def forward_section(step) -> Section:
    """What the model predicts."""
    facts = forcing(step.tokens) + shape_facts({"logits": step.logits}, " scores a position")
    if step.kept_bytes is not None:
        note = "activations that the backward pass needs"
        kept = bytes_text(step.kept_bytes)
        facts.append(Fact("kept for backward", step.kept_bytes, kept, note))
    return section(step, "2 Forward", "logits = model(x)", facts)


def forcing(tokens) -> list[Fact]:
    """Whether the model reads the right answer so far; nothing where that is not known."""
    read, labels, weights = tokens.read, tokens.labels, tokens.weights
    if read is None:
        return []
    counts = np.ones(labels.shape, bool) if weights is None else weights != 0
    both = counts[:, 1:] & counts[:, :-1]
    if not both.any():
        return []
    share = float((read[:, 1:] == labels[:, :-1])[both].mean())
    text = "at each position the label before it"
    text += "" if share == 1 else f", in {share:.0%} of them"
    same = (read == labels)[counts].all()
    flag = "the labels are the inputs themselves: the model sees the answer" if same else ""
    note = "teacher forcing" if share > 0.5 else ""
    return [Fact("model reads", share, text, note, flag=flag)]


def loss_section(step, tokenizer, shown_tokens: int) -> Section:
    """The loss, token by token, and from those losses to their mean."""
    tokens, table = step.tokens, None
    if tokens.unknown:
        facts = [Fact("each token", None, "not known", tokens.unknown)]
    else:
        facts = adding_up(tokens, step.loss)
    facts.append(Fact("loss", step.loss, note="what fit minimises and logs"))
    if tokens.said is not None:
        table = token_table(tokens, lambda token: token_text(tokenizer, token), shown_tokens)
    return section(step, "3 Loss", "loss = loss_fn(logits, y)", facts, table)


def adding_up(tokens, loss: float) -> list[Fact]:
    """From the losses of tokens to their mean."""
    counts = tokens.weights != 0
    weights, counted = tokens.weights[counts], int(counts.sum())
    if not counted:
        return [Fact("sum", 0.0, flag="no token counts: loss and gradients are 0")]
    mean = total = float((tokens.losses[counts] * weights).sum())
    weighted = "" if (weights == 1).all() else ", times their weights"
    facts = [Fact("sum", total, note=f"of the losses of {counted:,} tokens{weighted}")]
    if tokens.divisor is not None:
        mean = total / (tokens.divisor or 1.0)
        note = f"= {value_text(total)} / {tokens.divisor:,.6g}"
        facts.append(Fact("mean", mean, note=note))
    if abs(loss - mean) > 1e-5 * max(1.0, abs(loss)):
        note = "regularisation, add_loss, loss_weights or the model's own compute_loss"
        facts.append(Fact("added", loss - mean, note=note))
    if tokens.nll is not None:
        right = int((tokens.said == tokens.labels)[counts].sum())
        perplexity = float(np.exp(np.average(tokens.nll[counts], weights=weights)))
        facts += [
            Fact("right", right, note=f"of {counted:,} predictions are the label"),
            Fact("perplexity", perplexity, note="exp of the mean of -log p(label)"),
        ]
    return facts


def backward_section(step, optimizer) -> Section:
    """The gradients of the loss, and what clipping does to them."""
    norm, clipped = (total_norm(step.columns[name]) for name in ("gradient", "clipped"))
    flag = "not finite: the weights become NaN, unless a loss scale skips it"
    flag = "" if math.isfinite(norm) else flag
    clips = [name for name in CLIPPING if getattr(optimizer, name, None)]
    if not clips:
        clipping = Fact("clipping", None, note="gradients are not changed")
    else:
        limit = float(getattr(optimizer, clips[0]))
        if clips[0] == "global_clipnorm" and norm > limit:
            note = f"all gradients are multiplied by {value_text(round(limit / norm, 4))}"
        elif clipped == norm:
            note = "no gradient was changed"
        else:
            note = f"{value_text(norm)} becomes {clipped:.4g}"
        clipping = Fact(clips[0], limit, note=note)
    size = bytes_text(step.gradient_bytes)
    facts = [
        Fact("gradient norm", norm, note="of all blocks together", flag=flag),
        clipping,
        Fact("gradients", step.gradient_bytes, size, "a number for each parameter"),
    ]
    names = ["parameters", "gradient", *(["clipped"] if clips else [])]
    table = block_table(blocks_of(step.paths), {name: step.columns[name] for name in names})
    return section(step, "4 Backward", "loss.backward()", facts, table)


def optimizer_section(step, optimizer) -> Section:
    """How much the weights change."""
    columns = {name: step.columns[name] for name in ("weights", "update")}
    moved = ratio(total_norm(columns["update"]), total_norm(columns["weights"]))
    text = "none" if moved is None else f"{moved:.2g}"
    note = f"of update {step.update:,}"
    if not step.learning_rate:
        why = "a warm-up begins at 0" if step.update == 1 else "the schedule has ended"
        note += f"; no weight changes: {why}"
    kept_by = f"kept by {type(optimizer).__name__}"
    facts = [
        Fact("learning rate", step.learning_rate, note=note),
        Fact("update / weights", moved, text, "of all blocks; a rough rule is 1e-3 (CS231n)"),
        Fact("state", step.state_bytes, bytes_text(step.state_bytes), kept_by),
    ]
    table = block_table(blocks_of(step.paths), columns)
    return section(step, "5 Optimizer", "optimizer.step()", facts, table)


def section(step, title: str, code: str, facts: list[Fact], table=None) -> Section:
    """A stage with its line of the loop; its time, and the GPU's memory after it, are last."""
    stage = title.split()[1].lower()
    if stage in step.seconds:
        seconds = step.seconds[stage]
        share = seconds / sum(step.seconds.values())
        note = f"{share:.0%} of the step" if share >= 0.005 else "under 1% of the step"
        if stage == "backward" and "forward" not in step.seconds:
            note += ", with forward and loss: they are one program"
        if stage in step.gpu_bytes:
            note += f"; tensors on the GPU then: {bytes_text(step.gpu_bytes[stage])}"
        facts.append(Fact("took", seconds, f"{seconds * 1e3:,.3g} ms", note))
    return Section(title, code, tuple(facts), table=table)


def shape_facts(parts, last_axis: str = "", name="{}") -> list[Fact]:
    """The shape, type and device of each tensor in nested parts, by its name in a program.

    `last_axis` says what the last of three axes counts, `name` makes a part's name from its key.
    """
    facts = []
    for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
        own = name.format(key)
        if isinstance(part, dict | list | tuple):
            facts += shape_facts(part, last_axis, own + "[{!r}]")
        elif part is not None:
            shape, dtype = list(part.shape), keras.backend.standardize_dtype(part.dtype)
            value = {"shape": shape, "dtype": dtype, "device": device_of(part)}
            text = f"{shape} {dtype} on {value['device']}"
            note = f"{shape[-1]:,}{last_axis}" if last_axis and len(shape) == 3 else ""
            facts.append(Fact(own, value, text, note))
    return facts
