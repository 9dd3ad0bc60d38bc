"""`compile(loss=...)`: what is minimised, what it leaves out, what it is divided by."""

import dataclasses
import math
import re

import keras

from keras_llm.backend.keras_private import loss_setting
from keras_llm.explanation import stock_keras
from keras_llm.explanation.compiled_model import CompiledModel
from keras_llm.explanation.docstring_text import first_sentence, formula, name_of, own_equation
from keras_llm.explanation.facts import Fact, Section, setting
from keras_llm.losses import MaskedKLDivergence, MaskedLoss, TokenLoss
from keras_llm.losses.uniform_loss import uniform_loss
from keras_llm.value_text import value_text

# Told elsewhere in the section, or of no interest.
TOLD = {"name", "reduction", "dtype", "fn", "axis", "from_logits", "ignore_index", "ignore_class"}


def loss_sections(compiled: CompiledModel) -> list[Section]:
    """One section for each loss that `compile` was given."""
    losses, weights = compiled.loss, compiled.loss_weights
    if not isinstance(losses, dict | list | tuple):
        return [loss_section(compiled, losses, "Loss", weights)]
    shapes = getattr(compiled.model, "output_shape", None)
    if isinstance(shapes, list):
        names = getattr(compiled.model, "output_names", ())
        shapes = dict(enumerate(shapes)) | dict(zip(names, shapes, strict=False))
    sections = []
    for name in losses if isinstance(losses, dict) else range(len(losses)):
        shape = shapes.get(name) if isinstance(shapes, dict) else None
        one = dataclasses.replace(compiled, output_shape=shape)
        weight = None if weights is None else weights[name]
        sections.append(loss_section(one, losses[name], f"Loss of output {name}", weight))
    return sections


def loss_section(compiled: CompiledModel, loss, title: str, weight) -> Section:
    """What one loss is, and what it is multiplied by."""
    if loss is None:
        text = "what the model's own compute_loss or add_loss says"
        return Section(title, "none given", (Fact("each batch", None, text),))
    name = name_of(loss)
    loss = as_object(loss)
    equation, meaning = equation_and_meaning(loss)
    text = equation or f"what {name} returns"
    from_logits = loss_setting(loss, "from_logits")
    if "p" in re.findall("[a-z]+", equation) and from_logits is not None:
        text += ", p = softmax of the logits" if from_logits else ", p = the model's outputs"
    facts = [
        Fact("each token", equation or None, text, meaning),
        left_out(compiled, loss),
        divided_by(compiled, loss),
        *at_the_start(compiled, loss),
    ]
    if weight is not None:
        note = "factor of this loss in the sum over all outputs"
        facts.append(Fact("loss_weights", weight, note=note))
    mixing = getattr(compiled.model, "mixing", None)
    if mixing is not None:
        facts.append(Fact("mixed", None, *mixing()))
    added = len(compiled.model.losses)
    if added:
        facts.append(Fact("added", added, note="terms of the layers: regularisation, add_loss"))
    notes = getattr(loss, "notes", stock_keras.LOSS_NOTES)
    ranges = getattr(loss, "usual_ranges", {})
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    for key, value in config.items():
        if key in TOLD or not (value or key in ranges):
            continue
        note = notes.get(key, "")
        if isinstance(value, list):
            facts.append(Fact(key, value, f"{len(value):,} weights", note))
        else:
            facts.append(setting(key, value, note, ranges.get(key)))
    return Section(title, name, tuple(facts))


def equation_and_meaning(loss) -> tuple[str, str]:
    """The equation of one token's loss and what it means, either empty where it is not known.

    >>> import keras_llm
    >>> equation_and_meaning(keras_llm.losses.MaskedSparseCategoricalCrossentropy())[0]
    '-log p(label)'
    """
    known = own_equation(loss) or stock_keras.LOSSES.get(type(loss))
    if known:
        return known
    if not isinstance(loss, keras.losses.Loss):
        return formula(loss), first_sentence(loss)
    kind = type(loss)
    equation = formula(kind.token_loss if isinstance(loss, TokenLoss) else kind.call)
    meaning = [first_sentence(kind)]
    if isinstance(loss, TokenLoss) and "nll" in equation:
        meaning.append("nll = -log p(label)")
    return equation, "; ".join(filter(None, meaning))


def as_object(loss):
    """The loss of Keras that a name or a function stands for; any other loss as it is.

    >>> type(as_object("mse")).__name__
    'MeanSquaredError'
    """
    function = loss
    if isinstance(loss, str) and loss not in ("crossentropy", "ce"):
        function = keras.losses.get(loss)
    name = getattr(function, "__name__", "")
    if getattr(keras.losses, name, None) is not function:
        return function
    classes = {name.lower(): cls for name, cls in vars(keras.losses).items() if name[0].isupper()}
    cls = classes.get(name.replace("_", ""))
    return cls() if cls else function


def left_out(compiled, loss) -> Fact:
    """Which tokens do not count."""
    index, note, flag = loss_setting(loss, "ignore_class"), "", ""
    text = f"labels of {index}, masked positions"
    if isinstance(loss, MaskedLoss):
        index = loss.ignore_index
        text = f"labels of {index}, sample_weight 0, masked positions"
        if isinstance(loss, MaskedKLDivergence):
            note = "labels are known where y is a pair (teacher, labels)"
        elif index < 0:
            note = "padding under any other id would count"
    elif index is not None:
        note = "Keras's metrics do not know ignore_class: they count them"
    else:
        text = "only masked positions"
        if compiled.is_of_tokens:
            flag = "padding counts like text; ignore_class, or a loss of keras_llm, leaves it out"
    return Fact("left out", index, text, note, flag=flag)


def divided_by(compiled, loss) -> Fact:
    """What the sum of the losses is divided by, in a batch and in the log of an epoch."""
    reduction = getattr(loss, "reduction", "sum_over_batch_size")
    if reduction in ("sum", None, "none"):
        note = "one loss a token; fit needs one number"
        note = "a larger batch makes larger gradients" if reduction == "sum" else note
        return Fact("divided by", reduction or "none", "nothing", note)
    flag = "an epoch's loss weights batches by their rows, not by their tokens"
    if isinstance(loss, MaskedLoss):
        if compiled.step is not None:
            text = "the tokens that count, in a batch and over the epoch"
            return Fact("divided by", "tokens", text)
        flag += "; models.LanguageModel(backbone, head) makes it exact"
        return Fact("divided by", "tokens", "the tokens that count, in a batch", flag=flag)
    what = {
        "mean_with_sample_weight": "the sum of the weights",
        "sum_over_batch_size": "all positions that no mask hides",
        "mean": "all positions that no mask hides",
    }.get(reduction, "see its class")
    return Fact("divided by", reduction, what, flag=flag if compiled.is_of_tokens else "")


def at_the_start(compiled, loss) -> list[Fact]:
    """The loss of a model that has learnt nothing, and its perplexity."""
    if isinstance(loss, MaskedKLDivergence):
        return [Fact("first loss", None, "unknown", "it depends on how sure the teacher is")]
    stock = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)
    if not isinstance(loss, (TokenLoss, *stock)):
        return []
    size = compiled.vocab_size
    if size is None:
        return [Fact("first loss", None, "ln V", "V, the vocabulary's size, is not known yet")]
    value = uniform_loss(loss, size)
    note = f"where all {size:,} tokens are equally likely"
    if math.isclose(value, math.log(size), rel_tol=1e-6):
        note = f"ln {size:,}: all tokens are equally likely"
    return [
        Fact("first loss", value, value_text(round(value, 4)), note),
        Fact("first perplexity", size, note="as many tokens to choose from"),
    ]
