"""`compile(metrics=...)`: what each number counts."""

import keras

from keras_llm.losses import MaskedLoss
from keras_llm.metrics import BitsPerByte, MaskedTokenAccuracy, Perplexity, TokenMetric
from keras_llm.teaching.compiled import Compiled
from keras_llm.teaching.facts import Fact, Section
from keras_llm.teaching.words import first_sentence, name_of

ACCURACY = "share of the positions whose largest output is the label"
STOCK = {
    "acc": ACCURACY,
    "accuracy": ACCURACY,
    "sparse_categorical_accuracy": ACCURACY,
    "sparse_categorical_crossentropy": "-log of the label's probability",
}


def metric_section(compiled: Compiled) -> Section:
    """The metrics, the logged loss first."""
    facts = [logged_loss(compiled)]
    for argument in ("metrics", "weighted_metrics"):
        given = getattr(compiled, argument)
        metrics = [] if given is None else keras.tree.flatten(given)
        facts += [metric_fact(compiled, m, argument) for m in metrics if m is not None]
    return Section("Metrics", "", tuple(facts))


def logged_loss(compiled: Compiled) -> Fact:
    """The number that Keras logs as `loss`."""
    if compiled.accounts is not None:
        text = "sum of the losses / tokens that count, over the epoch"
        return Fact("loss", "exact", text)
    ours = isinstance(compiled.loss, MaskedLoss)
    text = "mean of the batches' losses, weighted by their rows"
    note = "each batch is exact" if ours else ""
    return Fact("loss", "mean of batches", text, note)


def metric_fact(compiled: Compiled, metric, argument: str) -> Fact:
    """What one metric counts."""
    if not isinstance(metric, TokenMetric):
        return stock_metric(compiled, metric)
    note, flag = "", ""
    ignored = getattr(compiled.loss, "ignore_index", metric.ignore_index)
    if ignored != metric.ignore_index:
        flag = f"leaves out labels of {metric.ignore_index}, and the loss those of {ignored}"
    if argument == "weighted_metrics":
        note = "tokens count by their sample_weight"
    return Fact(metric.name, name_of(metric), count_of(metric), note, flag=flag)


def count_of(metric: TokenMetric) -> str:
    """What a metric of ours, or a user's of that kind, counts."""
    if type(metric) is Perplexity:
        return "exp(sum of -log p(label) / tokens that count)"
    if type(metric) is MaskedTokenAccuracy:
        guess = "guessed best" if metric.top_k == 1 else f"among {metric.top_k} guesses"
        return f"share of the tokens whose label is {guess}"
    if type(metric) is BitsPerByte:
        return "sum of -log2 p(label) / bytes of the text"
    return first_sentence(type(metric)) or "see its class"


def stock_metric(compiled: Compiled, metric) -> Fact:
    """What a metric of Keras, or a user's, counts."""
    name = getattr(metric, "name", None) or name_of(metric)
    text = STOCK.get(name, "")
    if not text:
        function = keras.metrics.get(metric) if isinstance(metric, str) else metric
        text = first_sentence(function if hasattr(function, "__name__") else type(function))
    flag = ""
    if compiled.is_of_tokens and is_keras(metric):
        flag = "padding counts, and rows are averaged, not tokens"
    return Fact(name, name_of(metric), text or "see its class", flag=flag)


def is_keras(metric) -> bool:
    """Whether a metric is one of Keras's own."""
    return isinstance(metric, str) or type(metric).__module__.split(".")[0] == "keras"
