"""`compile(metrics=...)`: what each number counts."""

import keras

from keras_llm.explanation import stock_keras
from keras_llm.explanation.compiled_model import CompiledModel
from keras_llm.explanation.docstring_text import first_sentence, name_of, own_equation
from keras_llm.explanation.facts import Fact, Section
from keras_llm.losses import MaskedLoss
from keras_llm.metrics import TokenMetric


def metric_section(compiled: CompiledModel) -> Section:
    """The metrics, the logged loss first."""
    # What Keras logs as `loss`.
    if compiled.step is not None:
        facts = [Fact("loss", "exact", "sum of the losses / tokens that count, over the epoch")]
    else:
        text = "mean of the batches' losses, weighted by their rows"
        note = "each batch is exact" if isinstance(compiled.loss, MaskedLoss) else ""
        facts = [Fact("loss", "mean of batches", text, note)]
    for argument in ("metrics", "weighted_metrics"):
        given = getattr(compiled, argument)
        metrics = [] if given is None else keras.tree.flatten(given)
        facts += [metric_fact(compiled, m, argument) for m in metrics if m is not None]
    return Section("Metrics", "", tuple(facts))


def metric_fact(compiled: CompiledModel, metric, argument: str) -> Fact:
    """What one metric counts."""
    if not isinstance(metric, TokenMetric):
        return stock_metric(compiled, metric)
    text, note = own_equation(metric) or (first_sentence(type(metric)), "")
    if argument == "weighted_metrics":
        note = "tokens are weighted by their sample_weight"
    flag = ""
    ignored = getattr(compiled.loss, "ignore_index", metric.ignore_index)
    if metric.ignore_index not in (None, ignored):
        flag = f"leaves out labels of {metric.ignore_index}, and the loss those of {ignored}"
    return Fact(metric.name, name_of(metric), text or "see its class", note, flag=flag)


def stock_metric(compiled: CompiledModel, metric) -> Fact:
    """What a metric of Keras, or a user's, counts."""
    name = getattr(metric, "name", None) or name_of(metric)
    text = stock_keras.METRICS.get(name, "")
    if not text:
        function = keras.metrics.get(metric) if isinstance(metric, str) else metric
        text = first_sentence(function if hasattr(function, "__name__") else type(function))
    flag = ""
    is_keras = isinstance(metric, str) or type(metric).__module__.split(".")[0] == "keras"
    if compiled.is_of_tokens and is_keras:
        flag = "padding counts, and rows are averaged, not tokens"
    return Fact(name, name_of(metric), text or "see its class", flag=flag)
