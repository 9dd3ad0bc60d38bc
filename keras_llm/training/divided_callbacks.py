"""Callbacks where each process has a part of what is saved: see `keras_llm.distribute`."""

import keras


def check_callbacks(model, callbacks) -> None:
    """Raises `ValueError` for a callback with which a process would wait for the others for ever.

    Args:
        model: The model that is trained.
        callbacks: Those that `fit` was given.
    """
    divided = model.step and model.step.divided
    if divided is None:
        return
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "BackupAndRestore keeps files of its own in each process. Use "
                "callbacks.TrainingCheckpoint, which also continues in the middle of an epoch, "
                f"with keras_llm.distribute(shard={divided!r}). Received: {callback!r}"
            )
        is_alone = getattr(callback, "only_writes", False) and getattr(callback, "prompts", None)
        if divided == "parameters" and is_alone:
            raise ValueError(
                "With keras_llm.distribute(shard='parameters') all processes have to generate, and "
                f"{type(callback).__name__} does so in the first one alone. Use "
                "callbacks.Evaluation(prompts=...). "
                f"Received: {type(callback).__name__}(prompts={callback.prompts!r})"
            )


def is_of_all(model, callback) -> bool:
    """Whether a callback that writes files runs in all processes, of which the first one writes."""
    is_divided = model.step is not None and model.step.divided is not None
    return is_divided and isinstance(callback, keras.callbacks.ModelCheckpoint)
