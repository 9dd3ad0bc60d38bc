"""A model's logits as an array."""

import keras


def logits_of(model, inputs):
    """On JAX by one program: operation by operation, each would be compiled for each shape."""
    if keras.backend.backend() == "jax":
        return model.predict_on_batch(inputs)
    return keras.ops.convert_to_numpy(model(inputs))
