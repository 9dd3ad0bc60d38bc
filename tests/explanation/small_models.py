"""Small models that explain is asked about."""

import keras
import numpy as np

from keras_llm import losses, metrics, models

V, PAD = 31, 0
IDS = np.random.default_rng(0).integers(1, V, (8, 7))
# The next id is the label; rows end in padding, each in more of it.
X, Y = IDS[:, :-1], np.where(np.arange(6) < 6 - np.arange(8)[:, None] // 2, IDS[:, 1:], PAD)
CROSSENTROPY = losses.MaskedSparseCategoricalCrossentropy(PAD)


def causal(**kwargs):
    return models.CausalTransformer(V, 16, 1, 2, max_length=8, **kwargs)


def plain(**kwargs):
    layers = [keras.layers.Embedding(V, 8), keras.layers.LayerNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(V)], **kwargs)
    model.build((None, 6))
    return model


def compiled(model=None, optimizer="sgd", loss=CROSSENTROPY, **kwargs):
    model = model or causal()
    model.compile(optimizer, loss, **kwargs)
    return model


def token_metrics():
    return [metrics.Perplexity(PAD), metrics.MaskedTokenAccuracy(ignore_index=PAD)]
