"""A schedule that ends before the training does."""

import keras
import numpy as np
import pytest
from keras.optimizers import schedules as stock

from keras_llm import optimizers, schedules
from keras_llm.checks.schedule_checks import update_of_zero
from tests.checks.setups import FULL, LENGTH, compiled, keras_dataset, of_fit, only, sanity, small

X, Y = FULL[:, :LENGTH], FULL[:, 1:-1]
GUIDE = "4_adamw_and_adafactor"


def linear(total_steps):
    return schedules.WarmupLinearDecay(1e-3, warmup_steps=1, total_steps=total_steps)


def with_schedule(schedule, loss=None, **kwargs):
    optimizer = optimizers.AdamW(schedule, **kwargs)
    return compiled(small(), loss, optimizer=optimizer)


@pytest.mark.parametrize("with_state", [True, False])
def test_a_schedule_that_has_ended(with_state, tmp_path):
    model = with_schedule(linear(4))
    # The last update of a schedule is no mistake.
    assert not of_fit(model, X, Y)
    if with_state:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    before = model.get_weights()
    for done in (4, 8):
        only(of_fit(model, X, Y), f"The learning rate is 0 after {done} updates", GUIDE)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not of_fit(compiled(model, optimizer=optimizers.AdamW(linear(4))), X, Y)
    assert any((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "schedule, name, value",
    [
        (linear(3), "total_steps", 4),
        (schedules.WarmupCosineDecay(1e-3, 0, 3), "total_steps", 4),
        (schedules.WarmupStableDecay(1e-3, 1, 1, 1), "decay_steps", 2),
        (stock.CosineDecay(1e-3, 3), "decay_steps", 4),
        (stock.CosineDecay(0.0, 2, warmup_target=1e-3, warmup_steps=1), "decay_steps", 3),
        (stock.PolynomialDecay(1e-3, 3, end_learning_rate=0.0), "decay_steps", 4),
    ],
)
def test_a_schedule_that_will_end_in_this_fit(schedule, name, value):
    model = with_schedule(schedule)
    found = of_fit(model, X, Y)
    only(found, "The schedule ends after 3 updates, but this fit ends with update 4", GUIDE)
    assert f"Write {name}={value} in the schedule" in found[0]
    longer = type(schedule).from_config(schedule.get_config() | {name: value})
    assert not of_fit(with_schedule(longer), X, Y)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "schedule",
    [
        linear(4),
        schedules.WarmupConstant(1e-3, 1),
        schedules.WarmupInverseSquareRoot(1e-3, 1),
        schedules.WarmupCosineDecay(1e-3, 1, 2, min_ratio=0.1),
        schedules.WarmupStableDecay(1e-3, 1, 1, 1, min_ratio=0.1),
        schedules.WarmupLinearDecay(0.0, 1, 2),
        stock.CosineDecay(1e-3, 2, alpha=0.1),
        stock.CosineDecayRestarts(1e-3, 1),
        stock.PolynomialDecay(1e-3, 2),
        stock.PolynomialDecay(1e-3, 2, end_learning_rate=0.0, cycle=True),
        stock.ExponentialDecay(1e-3, 2, 0.5),
        stock.PiecewiseConstantDecay([2], [1e-3, 1e-4]),
    ],
)
def test_a_schedule_that_is_long_enough_or_stays_above_0(schedule):
    assert not of_fit(with_schedule(schedule), X, Y)


def test_it_is_told_before_the_first_batch():
    class FirstBatchEnds(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            raise KeyboardInterrupt

    def interrupted():
        with pytest.raises(KeyboardInterrupt):
            with_schedule(linear(3)).fit(X, Y, batch_size=4, epochs=2, callbacks=FirstBatchEnds())

    assert len(sanity(interrupted)) == 1


def test_each_epoch_counts_its_short_last_window():
    # Three batches, two an update: two updates an epoch.
    def accumulating(total_steps):
        model = with_schedule(linear(total_steps), gradient_accumulation_steps=2)
        found = of_fit(model, X, Y, batch_size=3)
        assert int(model.optimizer.iterations) == 4
        return found

    assert not accumulating(4)
    only(
        accumulating(3), "The schedule ends after 3 updates, but this fit ends with update 4", GUIDE
    )


def test_a_later_fit_counts_the_updates_of_the_first():
    model = with_schedule(linear(6))
    assert not of_fit(model, X, Y)
    only(
        of_fit(model, X, Y),
        "The schedule ends after 6 updates, but this fit ends with update 8",
        GUIDE,
    )
    # Of four epochs two are done.
    model = with_schedule(linear(8))
    assert not of_fit(model, X, Y)
    assert not of_fit(model, X, Y, epochs=4, initial_epoch=2)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_what_is_not_known_is_not_told():
    model, batches = with_schedule(linear(3)), ((X, Y) for _ in range(4))
    assert not sanity(lambda: model.fit(batches, verbose=0, shuffle=False))
    assert int(model.optimizer.iterations) == 4
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Keras's schedules count batches where its optimizers accumulate.
    model = with_schedule(linear(3), loss, gradient_accumulation_steps=2)
    assert not of_fit(model, X, Y)


@pytest.mark.parametrize(
    "loss", [None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)]
)
def test_data_that_tell_their_length(loss):
    model = with_schedule(linear(3), loss)
    found = sanity(lambda: model.fit(keras_dataset(X, Y), epochs=2, verbose=0))
    only(found, "The schedule ends after 3 updates, but this fit ends with update 4", GUIDE)


class Own(schedules.WarmupLinearDecay):
    """A schedule of the user's own, with a config of its own."""

    def get_config(self):
        return {"learning_rate": 1e-3}


@pytest.mark.backend_free
def test_a_schedule_of_ones_own():
    found = of_fit(with_schedule(Own(1e-3, 1, 3)), X, Y)
    only(found, "The schedule ends after 3 updates, but this fit ends with update 4", GUIDE)
    assert "Lengthen the schedule, or train for fewer steps." in found[0]


@pytest.mark.backend_free
def test_the_update_of_zero_is_where_the_rate_becomes_0():
    for schedule in (linear(7), schedules.WarmupStableDecay(1e-3, 2, 3, 2, "1-sqrt")):
        assert update_of_zero(schedule) == 7
        assert float(schedule(6)) > 0 == float(schedule(7))
    warm = stock.CosineDecay(0.0, 5, warmup_target=1e-3, warmup_steps=2)
    assert update_of_zero(warm) == 7
    assert float(warm(6)) > 0 == float(warm(7))
