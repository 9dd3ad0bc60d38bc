"""`explain`: what compile decided, on one screen."""

import sys

from keras_llm.explanation.compiled_model import compiled_model
from keras_llm.explanation.execution_facts import execution_section
from keras_llm.explanation.explanation import Explanation
from keras_llm.explanation.loss_facts import loss_sections
from keras_llm.explanation.metric_facts import metric_section
from keras_llm.explanation.optimizer_facts import optimizer_section
from keras_llm.explanation.schedule_facts import schedule_section
from keras_llm.explanation.update_facts import update_section


def explain(model, batch=None, show: bool = True) -> Explanation:
    """Says what `compile` decided for a model: loss, optimizer, learning rate, metrics, execution.

    Each setting stands beside its usual values, and is flagged where it is not one of them. Nothing
    changes: not the weights, the optimizer or the random state.

    Args:
        model: A compiled Keras model, ours or any other; `model.explain()` is the same.
        batch: What `fit` gets at once, `(x, y)` or `(x, y, sample_weight)`, to tell the effective
            batch in tokens.
        show: Whether to print it. A notebook prints nothing: it shows what is returned.

    Returns:
        An `Explanation`: `str()` of it is plain text, `to_dict()` is for programs, and a notebook
        shows it as HTML.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not compiled, or `batch` is not a batch.

    Example:
    >>> import keras_llm
    >>> from keras_llm import losses, models
    >>> model = models.CausalTransformer(vocab_size=1000, d_model=8, num_layers=1, num_heads=2)
    >>> model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(ignore_index=0))
    >>> explanation = keras_llm.explain(model, show=False)
    >>> explanation["Loss"]["each token"].value
    '-log p(label)'
    >>> round(explanation["Loss"]["first loss"].value, 3)             # ln 1,000
    6.908
    >>> explanation.flags
    {'Optimizer: momentum': 'without momentum, SGD hardly trains a transformer'}
    """
    compiled = compiled_model(model)
    sections = [
        *loss_sections(compiled),
        optimizer_section(compiled),
        schedule_section(compiled),
        update_section(compiled, batch),
        metric_section(compiled),
        execution_section(compiled),
    ]
    if compiled.parameters is None:
        size = "not built yet: some facts are known only after it is"
    else:
        frozen = model.count_params() - compiled.parameters
        size = f"{compiled.parameters:,} parameters"
        size += f", {frozen:,} more are not trained" if frozen else ""
    title = f"{type(model).__name__} {model.name!r}, {size}"
    explanation = Explanation(title, tuple(filter(None, sections)))
    if show:
        explanation.show(sys.stdout)
    return explanation
