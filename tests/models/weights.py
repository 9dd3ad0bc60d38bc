"""Weights for tests: large enough that every part of a model matters."""

import numpy as np


def randomize(model, seed=0, scale=0.3):
    """Fills all weights of a model or layer with random numbers; returns it."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        values = scale * rng.standard_normal(weight.shape)
        weight.assign(values + 1 if len(weight.shape) == 1 else values)
    return model


def arrays(layer):
    """A layer's weights in float64, by the end of their path: `{"query/kernel": ...}`."""
    return {
        "/".join(w.path.split("/")[-2:]): np.asarray(w.numpy(), "float64") for w in layer.weights
    }
