"""What JAX and TensorFlow each have their own words for: gradients, and a conditional update."""

import contextlib

import keras
from keras import ops

from keras_llm.backend import host_values
from keras_llm.backend.ops.device_rows import devices_of_rows


def value_and_gradients(objective, variables, others):
    """The value of an objective and its gradients.

    Args:
        objective: A function without arguments: a scalar, and anything else to hand back. It may
            assign to variables.
        variables: The variables to differentiate by.
        others: All other variables that the objective reads or assigns.

    Returns:
        What the objective returned, and one gradient a variable; None where it has none.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value, more = objective()
        # A table's gradient comes as rows, some more than once, which have no norm as they are.
        gradients = [
            None if gradient is None else tf.convert_to_tensor(gradient)
            for gradient in tape.gradient(value, variables)
        ]
        return (value, more), gradients

    import jax

    def pure(values, other_values):
        mapping = [
            *zip(variables, values, strict=True),
            *zip(others, other_values, strict=True),
        ]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            value, more = objective()
        return value, (more, [scope.get_current_value(variable) for variable in others])

    differentiate = jax.value_and_grad(pure, has_aux=True)
    (value, (more, updated)), gradients = differentiate(
        [variable.value for variable in variables], [variable.value for variable in others]
    )
    assign(others, updated)
    return (value, more), gradients


def when_taken(data):
    """Context manager for what is computed only if a batch has been taken.

    A function that TensorFlow has compiled takes the batch itself, and is called once more when a
    generator has ended. What reads no part of the batch would be computed nevertheless.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies([t for t in keras.tree.flatten(data) if tf.is_tensor(t)])


def variables_allowed():
    """Context manager for what may create variables inside of `when_taken`.

    XLA takes the initial value of a variable only if it depends on nothing in the graph.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies(None)


def apply_if(condition, update, variables):
    """Calls `update`, which assigns to `variables`, where a condition of the graph holds.

    Args:
        condition: A boolean scalar, of a graph or with a value; None for always.
        update: A function without arguments.
        variables: All variables that it reads or assigns.
    """
    is_met = True if condition is None else host_values(condition)
    if is_met is not None:
        if is_met:
            update()
        return
    if keras.backend.backend() == "tensorflow":
        # Both branches of a TensorFlow conditional must return the same.
        ops.cond(condition, lambda: (update(), 0)[1], lambda: 0)
        return

    import jax

    def updated(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            update()
        return [scope.get_current_value(variable) for variable in variables]

    values = [variable.value for variable in variables]
    assign(variables, jax.lax.cond(condition, updated, lambda values: values, values))


def apply_unless(skip, update, variables):
    """Calls `update`, which assigns to `variables`; where `skip` holds, nothing changes.

    Args:
        skip: A boolean scalar of the graph; None for never.
        update: A function without arguments.
        variables: All variables that it reads or assigns.
    """
    if skip is None or keras.backend.backend() == "tensorflow":
        apply_if(None if skip is None else ops.logical_not(skip), update, variables)
        return
    # XLA makes the choice while it computes the update; a conditional would keep two copies.
    values = [variable.value for variable in variables]
    with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
        update()
    for variable, old in zip(variables, values, strict=True):
        new = scope.get_current_value(variable)
        if new is not old:
            variable.assign(ops.where(skip, old, new))


def eagerly(function):
    """Calls a function that creates variables, outside of the graph that TensorFlow may trace."""
    if keras.backend.backend() != "tensorflow":
        return function()

    import tensorflow as tf

    with tf.init_scope():
        return function()


def zeros(shape, name, layout=None):
    """A variable of zeros that is not trained."""
    value = ops.zeros(shape, "float32")
    return keras.Variable(value, trainable=False, dtype="float32", name=name, layout=layout)


def zeros_like(variable, name):
    """A variable of zeros of the shape of another one, spread over devices as that is."""
    distribution = keras.distribution.distribution()
    layout = None if distribution is None else distribution.get_variable_layout(variable)
    return zeros(variable.shape, name, layout)


def clear(variables):
    """Sets variables to 0."""
    for variable in variables:
        variable.assign(ops.zeros(variable.shape, variable.dtype))


def assign(variables, values):
    """One value to each variable."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def for_each_piece(size, data, function):
    """Calls a function with a few rows of a batch after the other.

    Args:
        size: Rows of a piece, of which one may have fewer; None for the whole batch. Where the
            batch is spread over devices, each piece has as many rows of each.
        data: Tensors with the batch as their first dimension, however nested.
        function: What a piece is given to; it assigns to variables and returns nothing.
    """
    if size is None:
        function(data)
        return
    first = next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)
    count = first.shape[0]
    if count is not None:
        devices = devices_of_rows()
        size, count = max(1, size // devices), count // devices
        for start in range(0, count, size):
            function(rows(data, start, min(start + size, count), devices))
        return

    import tensorflow as tf

    # TensorFlow makes one graph of batches of several sizes. XLA compiles a loop only if all its
    # pieces have one size, so that the short one is the first.
    count = tf.shape(first)[0]
    short = (count - 1) % size + 1
    function(rows(data, 0, short))

    def one_more(start):
        places = start + tf.range(size)
        function(
            keras.tree.map_structure(lambda t: None if t is None else tf.gather(t, places), data)
        )
        return (start + size,)

    tf.while_loop(lambda start: start < count, one_more, (short,))


def rows(data, start, stop, devices=1):
    """Some rows of every tensor, of the rows that each device has."""

    def some(tensor):
        if tensor is None or devices == 1:
            return None if tensor is None else tensor[start:stop]
        by_device = tensor.reshape((devices, -1, *tensor.shape[1:]))
        return by_device[:, start:stop].reshape((-1, *tensor.shape[1:]))

    return keras.tree.map_structure(some, data)
