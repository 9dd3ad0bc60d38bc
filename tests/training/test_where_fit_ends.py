"""Where one `fit` ends the next one begins, and what it was told is what it does."""

import keras
import numpy as np
import pytest

from keras_llm import data, losses, models

TEXTS = ["a b c d e f g h"] * 9
TOKENIZER = data.train_tokenizer(TEXTS, unit="word")


def loader(**options):
    return data.causal_lm(TEXTS, TOKENIZER, 4, 3, **{"shuffle": True, **options})


def build():
    keras.utils.set_random_seed(0)
    model = models.LanguageModel(
        keras.layers.Embedding(TOKENIZER.vocab_size, 4), keras.layers.Dense(TOKENIZER.vocab_size)
    )
    model(np.zeros((1, 1), "int32"))
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(0))
    return model


@pytest.mark.parametrize("parts", [(3, 4), (3, 3), (9, 7), (2, 14), (1, 1, 1, 1)])
@pytest.mark.sampled(3)
def test_fits_of_some_steps_are_one_fit_of_all_of_them(parts):
    """Batches, weights and positions; before, each fit began the epoch again."""
    read = loader()
    assert len(read) == 7
    model, whole = build(), build()
    for done, steps in zip(np.cumsum(parts), parts, strict=True):
        model.fit(read, steps=steps, verbose=0)
        assert read.state_dict() == {"seed": 0, "epoch": done // 7, "step": done % 7}
    whole.fit(loader(), steps=sum(parts), verbose=0)
    for mine, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_epoch_that_was_begun_is_ended_first(recwarn):
    read, batches = loader(), []
    model, whole = build(), build()
    model.fit(read, steps=3, verbose=0)
    seen = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batches.append(batch)
    )
    model.fit(read, epochs=2, verbose=0, callbacks=[seen])
    assert batches == [3, 4, 5, 6, *range(7)]
    whole.fit(loader(), epochs=2, verbose=0)
    for mine, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not [w for w in recwarn if "ran out of data" in str(w.message)]


def test_an_evaluation_reads_all_and_moves_nothing():
    read = loader()
    model = build()
    model.fit(read, steps=3, verbose=0)
    want = model.evaluate(loader(), verbose=0)
    before = read.state_dict()
    assert model.evaluate(read, verbose=0) == pytest.approx(want, rel=1e-6)
    assert len(model.predict(read, verbose=0)) == sum(len(ids) for ids, _ in loader())
    assert read.state_dict() == before == {"seed": 0, "epoch": 0, "step": 3}
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(model.evaluate(read, verbose=0))
    )
    model.fit(read, steps=6, verbose=0, callbacks=[look])
    whole = build()
    whole.fit(loader(), steps=9, verbose=0)
    for mine, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert seen[-1] == pytest.approx(model.evaluate(loader(), verbose=0), rel=1e-6)


def test_steps_of_another_day_are_counted_from_its_first_epoch():
    """Before, steps=5 from epoch 3 on trained nothing."""
    model = build()
    history = model.fit(loader(), steps=9, initial_epoch=3, verbose=0)
    assert int(model.optimizer.iterations) == 9
    assert history.epoch == [3, 4]
