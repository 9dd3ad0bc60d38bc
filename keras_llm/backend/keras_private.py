"""What Keras has no public name for; `tests/backend/test_keras_private.py` guards it."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

_backend = importlib.import_module("keras.src.backend")
_get_mask = getattr(_backend, "get_keras_mask", None)
_set_mask = getattr(_backend, "set_keras_mask", lambda x, mask: setattr(x, "_keras_mask", mask))


def keras_mask(tensor):
    """The mask that `Embedding(mask_zero=True)` and its like hang on a tensor, or None.

    While JAX traces a step its arrays take no attributes, and Keras keeps their masks in a table.
    """
    return getattr(tensor, "_keras_mask", None) if _get_mask is None else _get_mask(tensor)


def with_keras_mask(tensor, mask):
    """The tensor, with a mask that another one had; None hangs nothing on it."""
    if mask is not None:
        _set_mask(tensor, mask)
    return tensor


def all_layers(layer) -> list:
    """A layer and all layers inside it. Where Keras cannot tell, the list holds an unknown one."""
    flatten = getattr(layer, "_flatten_layers", None)
    return [layer, object()] if flatten is None else list(flatten())


def recomputes(layer) -> bool:
    """Whether a layer was made in a `RematScope`, to compute again in the backward pass."""
    return getattr(getattr(layer, "_remat_mode", None), "mode", None) is not None


def is_cast_for(variable, layer) -> bool:
    """Whether a layer casts a variable of its own to its `compute_dtype` whenever it reads it."""
    casts = layer.autocast and keras.backend.is_float_dtype(layer.compute_dtype)
    return casts and getattr(variable, "_autocast", False)


class Made(NamedTuple):
    """How a tensor of the functional API was made.

    Attributes:
        operation: The layer or other operation.
        inputs: The tensors that it read.
        again: The same call as a function of values for `inputs`.
    """

    operation: Any
    inputs: list
    again: Callable


def made_from(tensor: keras.KerasTensor) -> Made:
    """How a tensor of the functional API was made, which its class tells by private names only."""
    operation, node_index, _ = tensor._keras_history
    node = operation._inbound_nodes[node_index]

    def again(*values):
        given = {id(x): value for x, value in zip(node.input_tensors, values, strict=True)}
        args, kwargs = node.arguments.fill_in(given)
        return operation(*args, **kwargs)

    return Made(operation, node.input_tensors, again)


def loss_setting(loss, name: str):
    """An argument of a loss; None where it has none of that name.

    From Keras 3.16 on its own losses keep theirs in `get_config()` only.
    """
    if hasattr(loss, name) or not isinstance(loss, keras.losses.Loss):
        return getattr(loss, name, None)
    try:
        return loss.get_config().get(name)
    except NotImplementedError:
        return None


def known_names(kind: str) -> dict:
    """The table in which `keras.losses.get` or `keras.metrics.get` looks a string up.

    Neither looks at `keras.saving.get_custom_objects()`. Without the table (Keras moved it) our
    classes still work, only not by their strings.

    Args:
        kind: `"losses"` or `"metrics"`.
    """
    module = importlib.import_module(f"keras.src.{kind}")
    return getattr(module, "ALL_OBJECTS_DICT", {})


def does_nothing(hook) -> bool:
    """Whether a callback's method is the empty one of `keras.callbacks.Callback`.

    Where Keras stops marking those, every callback counts as one that does something.
    """
    return getattr(hook, "_is_default", False)


def inner_optimizer(optimizer):
    """The optimizer that a `LossScaleOptimizer` wraps; any other optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def built_with(optimizer) -> list:
    """The variables that an optimizer has state of; none where it is not built.

    Where Keras keeps them elsewhere, state that is whole in each process is not taken apart.
    """
    return list(getattr(optimizer, "_trainable_variables", None) or [])


def learning_rate_schedule(optimizer):
    """The schedule of an optimizer, or None for a learning rate that is not one.

    The public `learning_rate` is only its value at the next update.
    """
    schedule = getattr(optimizer, "_learning_rate", None)
    is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    return schedule if is_schedule else None


def compile_arguments(model) -> dict:
    """What `compile` was called with, as it was given; of that only the loss is public.

    Where Keras stops keeping them, the metrics are unknown.
    """
    kept = getattr(model, "_compile_config", None)
    return {"loss": model.loss, **getattr(kept, "config", {})}


def keras_decays(optimizer, variable) -> bool:
    """Whether one of Keras's own optimizers, which has a `weight_decay`, shrinks `variable`.

    Keras leaves out only what `exclude_from_weight_decay` named; without a way to ask, nothing.
    """
    return getattr(optimizer, "_use_weight_decay", lambda variable: True)(variable)


def optimizer_settings(optimizer) -> dict:
    """An optimizer's `get_config()`, but for its learning rate, which may be a schedule.

    To serialise one, Keras imports every other backend that is installed; TensorFlow alone takes
    seconds.
    """
    twin = object.__new__(type(optimizer))
    vars(twin).update({**vars(optimizer), "_learning_rate": 0.5})
    return twin.get_config()


def optimizer_twin(optimizer):
    """An optimizer that makes the next update of `optimizer`, in one batch.

    Of one that is built it shares the variables, so it changes those, but nothing else of it. Of
    one that is not, and must not become so, it shares the learning rate.
    """
    if optimizer.built:
        twin = object.__new__(type(optimizer))
        vars(twin).update(vars(optimizer))
    elif hasattr(optimizer, "inner_optimizer"):
        kept = {
            name: getattr(optimizer, name) for name in ("initial_scale", "dynamic_growth_steps")
        }
        twin = type(optimizer)(optimizer.inner_optimizer, **kept)
    else:
        twin = type(optimizer).from_config(optimizer_settings(optimizer))
        kept = ("_learning_rate", "_exclude_from_weight_decay")
        vars(twin).update({k: v for k, v in vars(optimizer).items() if k.startswith(kept)})
    if hasattr(optimizer, "inner_optimizer"):
        vars(twin)["inner_optimizer"] = optimizer_twin(optimizer.inner_optimizer)
    else:
        updates = int(optimizer.iterations)
        vars(twin)["gradient_accumulation_steps"] = None
        # Where an optimizer accumulates, its own count is of batches.
        twin.iterations.assign(updates)
    return twin


def global_seed_state():
    """The variable of Keras's global seed generator; None before anybody has drawn from it."""
    state = importlib.import_module("keras.src.backend.common.global_state")
    generator = state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


def set_global_seed_state(value) -> None:
    """Sets the state of Keras's global seed generator; None for one that is not made yet."""
    state = importlib.import_module("keras.src.backend.common.global_state")
    if value is None:
        state.set_global_attribute("global_seed_generator", None)
    else:
        seeds = importlib.import_module("keras.src.random.seed_generator")
        seeds.global_seed_generator().state.assign(value)


def choose_direction(callback) -> None:
    """Has a callback with a `monitor` decide whether more or less is better.

    It would do so when its first epoch ends, and change its `min_delta` with it.
    """
    if getattr(callback, "monitor_op", False) is None and hasattr(callback, "_set_monitor_op"):
        callback._set_monitor_op()


def batches_through(change, data, **options):
    """What Keras reads batches from, on JAX and TensorFlow, with a function between.

    Args:
        change: From an iterator of batches, arrays on the host, to another one; on TensorFlow from
            a `tf.data.Dataset` of batches to another one.
        data: `(x, y, sample_weight)`; the last ones may be left out.
        **options: `batch_size`, `steps_per_epoch` and `shuffle`, as of `fit`.

    Returns:
        What `fit` takes as `x`; None where Keras takes it no more.
    """
    module = importlib.import_module("keras.src.trainers.data_adapters")
    adapter = getattr(module, "get_data_adapter", lambda *_, **__: None)(*data, **options)
    is_jax = keras.backend.backend() == "jax"
    name = "get_jax_iterator" if is_jax else "get_tf_dataset"
    read = getattr(adapter, name, None)
    if read is None:
        return None
    setattr(adapter, name, lambda: change(read()))
    return adapter


def jax_state(model) -> dict:
    """What Keras's JAX trainer has in place of a model's variables while it trains, by kind.

    Empty where the variables have their values. Where Keras keeps it elsewhere, a layer that is
    frozen between the last step of an epoch and its end may get another variable's values.
    """
    is_synced = getattr(model, "_jax_state_synced", True)
    return {} if is_synced else getattr(model, "_jax_state", None) or {}
