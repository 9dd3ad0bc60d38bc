"""A model of KerasHub, trained in place by the compile and fit of this library."""

from typing import Any

from keras_llm.models.keras_hub_model import KerasHubModel


def from_keras_hub(task_or_backbone: Any, **kwargs: Any) -> KerasHubModel:
    """A KerasHub language model as a `LanguageModel`: exact per token, without whole logits.

    The weights are shared, not copied: after `fit`, the task's own `generate` and `save_to_preset`
    have the trained ones. On PyTorch and JAX it needs no TensorFlow.

    Args:
        task_or_backbone: A `keras_hub.models.CausalLM` or `Seq2SeqLM`; or a backbone for which
            KerasHub has one of these, which is then made and is the model's `task`.
        **kwargs: Keras's own: `name`, `trainable`.

    Returns:
        A `KerasHubModel`.

    Raises:
        ImportError: keras-hub is not installed.
        TypeError: what is given is not of KerasHub, or is no language model: a classifier, or a
            backbone that reads tokens in both directions.

    Example:
    >>> import keras_hub, numpy as np
    >>> from keras_llm import losses, models
    >>> backbone = keras_hub.models.GPT2Backbone(
    ...     vocabulary_size=11, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16
    ... )
    >>> task = keras_hub.models.GPT2CausalLM(backbone)
    >>> model = models.from_keras_hub(task)
    >>> model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(ignore_index=0))
    >>> ids = np.array([[1, 2, 3, 4, 5]])
    >>> history = model.fit(ids[:, :-1], ids[:, 1:], verbose=0)
    >>> prompt = {"token_ids": np.array([[1, 2, 0]]), "padding_mask": np.array([[1, 1, 0]])}
    >>> task.generate(prompt, stop_token_ids=None)["token_ids"].shape
    (1, 3)
    """
    return KerasHubModel(as_task(task_or_backbone), **kwargs)


def as_task(model: Any) -> Any:
    """The task of a backbone; a task that is a language model itself."""
    try:
        from keras_hub.models import Backbone, CausalLM, Task
    except ImportError as error:
        raise ImportError(
            "from_keras_hub needs keras-hub: pip install keras-hub. On PyTorch and JAX it runs "
            "without TensorFlow: pip install --no-deps keras-hub kagglehub kagglesdk"
        ) from error
    if isinstance(model, CausalLM):
        return model
    needs = (
        "from_keras_hub needs a CausalLM or Seq2SeqLM of keras_hub, or a backbone for which there "
        f"is one. Received: {type(model).__name__}"
    )
    if isinstance(model, Task):
        raise TypeError(
            f"{needs}, a task of another kind: use its own compile and fit, or give "
            "from_keras_hub(task.backbone) if that is the backbone of a language model"
        )
    if not isinstance(model, Backbone):
        raise TypeError(needs)
    made = [cls for cls in subclasses(CausalLM) if cls.backbone_cls is type(model)]
    if not made:
        raise TypeError(
            f"{needs}, which has none. Use a KerasHub task that there is, or "
            "models.LanguageModel(backbone, head) with a head of your own"
        )
    if len(made) > 1:
        names = " or ".join(sorted(cls.__name__ for cls in made))
        raise TypeError(f"{needs}, which has several: give {names}")
    return made[0](backbone=model, preprocessor=None)


def subclasses(cls: type) -> list[type]:
    """All classes below one."""
    return [c for child in cls.__subclasses__() for c in (child, *subclasses(child))]
