"""What a schedule takes and gives, and how it is saved."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm import schedules

SCHEDULES = [
    schedules.WarmupConstant(1e-3, warmup_steps=100),
    schedules.WarmupLinearDecay(5e-5, warmup_steps=500, total_steps=10_000),
    schedules.WarmupCosineDecay(1e-3, warmup_steps=100, total_steps=2_000, min_ratio=0.1),
    schedules.WarmupInverseSquareRoot(1e-3, warmup_steps=100, timescale=50),
    schedules.WarmupStableDecay(1e-3, 100, 800, 100, decay_type="1-sqrt", min_ratio=0.1),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@each_schedule
@pytest.mark.parametrize(
    "as_step",
    [
        int,
        np.int64,
        np.float64,
        lambda step: ops.convert_to_tensor(step, "int32"),
        lambda step: keras.Variable(step, dtype="int32", trainable=False),
    ],
    ids=["int", "numpy int", "numpy float", "tensor", "variable"],
)
def test_any_kind_of_step_gives_a_float32_scalar(schedule, as_step):
    for step in (0, 50, 150, 950):
        rate = schedule(as_step(step))
        assert keras.backend.standardize_dtype(rate.dtype) == "float32"
        assert tuple(rate.shape) == ()
        assert float(rate) == float(schedule(step))


@each_schedule
def test_symbolic_steps(schedule):
    symbolic = schedule(keras.Input((), dtype="int32"))
    assert symbolic.dtype == "float32"


@each_schedule
def test_config_round_trip(schedule):
    serialize = keras.optimizers.schedules.serialize
    again = keras.optimizers.schedules.deserialize(serialize(schedule))
    assert type(again) is type(schedule)
    assert vars(again) == vars(schedule)
    assert serialize(again) == serialize(schedule)


@each_schedule
def test_whole_steps_are_exact_after_millions_of_updates(schedule):
    def config_with(scale):
        config = schedule.get_config()
        return {k: v * scale if k.endswith(("steps", "scale")) else v for k, v in config.items()}

    near, far = (type(schedule)(**config_with(scale)) for scale in (1, 1_000))
    for step in (60, 700, 970):
        np.testing.assert_allclose(float(far(1_000 * step)), float(near(step)), rtol=1e-6)


def test_integer_learning_rates_are_numbers_too():
    assert float(schedules.WarmupConstant(2, warmup_steps=4)(1)) == 0.5


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: schedules.WarmupConstant("fast", 1), "learning_rate='fast'"),
        (lambda: schedules.WarmupConstant(-1e-3, 1), "learning_rate=-0.001"),
        (lambda: schedules.WarmupConstant(float("nan"), 1), "learning_rate=nan"),
        (lambda: schedules.WarmupConstant(1e-3, -1), "warmup_steps=-1"),
        (lambda: schedules.WarmupConstant(1e-3, 0.1), "warmup_steps=0.1"),
        (lambda: schedules.WarmupLinearDecay(1e-3, 5, 4), "warmup_steps=5, total_steps=4"),
        (lambda: schedules.WarmupLinearDecay(1e-3, 0, 0), "total_steps=0"),
        (lambda: schedules.WarmupCosineDecay(1e-3, 5, 4), "warmup_steps=5, total_steps=4"),
        (lambda: schedules.WarmupCosineDecay(1e-3, 5, 9, min_ratio=2), "min_ratio=2"),
        (lambda: schedules.WarmupInverseSquareRoot(1e-3, 5, timescale=0), "timescale=0"),
        (lambda: schedules.WarmupStableDecay(1e-3, 5, -1, 5), "stable_steps=-1"),
        (lambda: schedules.WarmupStableDecay(1e-3, 5, 5, 0), "decay_steps=0"),
        (lambda: schedules.WarmupStableDecay(1e-3, 5, 5, 5, "step"), "decay_type='step'"),
    ],
)
def test_errors_name_the_argument(make, says):
    with pytest.raises(ValueError, match=f"Received: {says}"):
        make()
