"""The callbacks that `fit` was given: what they do, and what they cannot do."""

import keras

from keras_llm.backend.keras_private import does_nothing


def callback_list(callbacks) -> list:
    """The callbacks that `fit` was given, one or several, as a list.

    Raises:
        TypeError: one of them is no callback.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    callbacks = keras.tree.flatten(callbacks or [])
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            hint = "; write its constructor's call" if isinstance(callback, type) else ""
            raise TypeError(f"callbacks must be Keras callbacks{hint}. Received: {callback!r}")
    return callbacks


def acts(callbacks, *hooks) -> bool:
    """Whether one of the callbacks does something in one of the hooks."""
    return any(
        not does_nothing(getattr(callback, hook)) for callback in callbacks for hook in hooks
    )


def writes_files(callback) -> bool:
    """Whether a callback only writes files, which one of several processes does."""
    of_keras = [
        keras.callbacks.BackupAndRestore,
        keras.callbacks.CSVLogger,
        keras.callbacks.ModelCheckpoint,
        keras.callbacks.RemoteMonitor,
        keras.callbacks.TensorBoard,
    ]
    return getattr(callback, "only_writes", False) or isinstance(callback, tuple(of_keras))


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
