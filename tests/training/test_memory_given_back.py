"""A model that nobody has any more gives its weights back, whatever was compiled for it."""

import gc
import weakref

import keras
import numpy as np
import pytest

from keras_llm import losses, metrics, models, optimizers

IDS = np.random.default_rng(0).integers(1, 23, (4, 7))
X, Y = IDS[:, :-1], IDS[:, 1:]


@pytest.mark.parametrize("optimizer", [optimizers.AdamW, optimizers.Adafactor])
def test_weights_go_with_their_model(optimizer):
    model = models.CausalTransformer(23, 16, 1, 2, pad_id=0)
    model.compile(
        optimizer(gradient_accumulation_steps=2),
        losses.MaskedSparseCategoricalCrossentropy(0),
        metrics=[metrics.Perplexity()],
        micro_batch_size=1,
    )
    model.fit(X, Y, batch_size=2, validation_data=(X, Y), verbose=0)
    model.predict(X, verbose=0)
    model.generate([1, 2, 3], max_new_tokens=20)
    values = [v.value for v in [*model.variables, *model.optimizer.variables]]
    # TensorFlow's variable may go, and its handle hold the memory.
    values = [weakref.ref(getattr(value, "handle", value)) for value in values]
    assert all(value() is not None for value in values)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert not any(value() is not None for value in values)
