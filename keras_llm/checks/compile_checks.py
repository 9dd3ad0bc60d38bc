"""Mistakes that the arguments of `compile` show."""

import inspect
import math

import keras

from keras_llm.backend.host import to_float
from keras_llm.backend.keras_private import inner_optimizer, learning_rate_schedule, loss_setting
from keras_llm.checks.sanity_warning import guided
from keras_llm.metrics import TokenMetric
from keras_llm.optimizers.usual_learning_rate import usual_learning_rate

# A learning rate outside of its usual range by this factor is a mistake, not a choice.
FAR = 10.0
# What schedules call their highest value; a warm-up's target comes before its start.
PEAKS = ("learning_rate", "warmup_target", "initial_learning_rate")


def compile_messages(model, optimizer, loss, metrics) -> list[str]:
    """The mistakes in the arguments of `compile`, as it resolved them, one message each.

    The model still has what it was compiled with before.
    """
    found = [
        unusual_learning_rate(optimizer, model),
        unfitting_predictions(loss, predicts_logits(model)),
        *(counted_padding(loss, metric) for metric in metrics),
    ]
    # Two metrics of one name have the same message.
    return [message for message in dict.fromkeys(found) if message]


def unusual_learning_rate(optimizer, model) -> str | None:
    """A learning rate that is far from those of published training runs."""
    optimizer = inner_optimizer(optimizer)
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables) if model.built else None
    usual = usual_learning_rate(optimizer, parameters)
    peak = None if usual is None else peak_learning_rate(optimizer)
    # 0 is no slip: it trains nothing on purpose.
    if not peak or usual.low / FAR <= peak <= usual.high * FAR:
        return None
    return guided(
        f"The learning rate {peak:g} is far from usual: the model will "
        f"{'hardly learn' if peak < usual.low else 'probably diverge'}. For "
        f"{type(optimizer).__name__} write one between {usual.low:g} and {usual.high:g}.",
        "4_adamw_and_adafactor",
    )


def peak_learning_rate(optimizer) -> float | None:
    """The highest learning rate that an optimizer will have; None where that is not known."""
    schedule = learning_rate_schedule(optimizer)
    if schedule is None:
        return to_float(optimizer.learning_rate)
    try:
        config = schedule.get_config()
    except NotImplementedError:
        return None
    rates = [config[name] for name in PEAKS if isinstance(config.get(name), int | float)]
    return max(rates, default=None)


def predicts_logits(model) -> bool | None:
    """Whether a model's predictions are logits, or probabilities; None where its head does not show
    it."""
    if not model.why_logits():
        return True
    last = model.head if model.call_ends_with_head() else None
    while isinstance(last, keras.Sequential) and last.layers:
        last = last.layers[-1]
    is_softmax = isinstance(last, keras.layers.Softmax) or (
        getattr(last, "activation", None) is keras.activations.softmax
    )
    return False if is_softmax else None


def takes_logits(loss) -> bool | None:
    """Whether a loss takes predictions as logits, or as probabilities; None if it does not say."""
    if inspect.isfunction(loss):
        default = getattr(inspect.signature(loss).parameters.get("from_logits"), "default", None)
        return default if isinstance(default, bool) else None
    return loss_setting(loss, "from_logits")


def unfitting_predictions(loss, are_logits: bool | None) -> str | None:
    """Logits where the loss expects probabilities, or the reverse."""
    wants_logits = takes_logits(loss)
    if are_logits is None or wants_logits is None or are_logits == wants_logits:
        return None
    message = (
        "The model returns probabilities, but the loss expects logits and applies a second "
        "softmax: remove the softmax from the model, or write from_logits=False in the loss."
    )
    if are_logits:
        message = (
            "The model returns logits, but the loss expects probabilities: "
            "write from_logits=True in the loss."
        )
    return guided(message, "2_cross_entropy_and_masking")


def ignored_label(loss) -> int | None:
    """The label that a loss ignores, ours or one of Keras; None where it counts all."""
    ours = getattr(loss, "ignore_index", None)
    return loss_setting(loss, "ignore_class") if ours is None else ours


def counted_padding(loss, metric) -> str | None:
    """A metric that does not ignore what the loss ignores."""
    ignored = ignored_label(loss)
    # Keras makes a metric of a class.
    metric = metric() if inspect.isclass(metric) else metric
    is_ours = isinstance(metric, TokenMetric)
    if ignored is None or (metric.ignore_index == ignored if is_ours else ignored < 0):
        return None
    what = (
        f"counts it: use a metric of keras_llm.metrics with ignore_index={ignored}, such as "
        "MaskedTokenAccuracy."
    )
    if is_ours:
        what = (
            f"ignores {metric.ignore_index}, so they count different tokens: write "
            f"{type(metric).__name__}(ignore_index={ignored})."
        )
    name = getattr(metric, "name", metric)
    message = f"The loss ignores the label {ignored}, but the metric {name!r} {what}"
    return guided(message, "2_cross_entropy_and_masking")
