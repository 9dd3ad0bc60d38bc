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
@pytest.mark.sampled(3)
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
@pytest.mark.backend_free
def test_config_round_trip(schedule):
    serialize = keras.optimizers.schedules.serialize
    again = keras.optimizers.schedules.deserialize(serialize(schedule))
    assert type(again) is type(schedule)
    assert vars(again) == vars(schedule)
    assert serialize(again) == serialize(schedule)


@each_schedule
@pytest.mark.sampled(2)
def test_whole_steps_are_exact_after_millions_of_updates(schedule):
    def config_with(scale):
        config = schedule.get_config()
        return {k: v * scale if k.endswith(("steps", "scale")) else v for k, v in config.items()}

    near, far = (type(schedule)(**config_with(scale)) for scale in (1, 1_000))
    for step in (60, 700, 970):
        np.testing.assert_allclose(float(far(1_000 * step)), float(near(step)), rtol=1e-6)


ENDS = [
    (schedules.WarmupLinearDecay(1e-3, 10, 100), 100, 0.0),
    (schedules.WarmupLinearDecay(1e-3, 100, 100), 100, 0.0),
    (schedules.WarmupCosineDecay(1e-3, 10, 100), 100, 0.0),
    (schedules.WarmupCosineDecay(1e-3, 0, 100, min_ratio=0.1), 100, 1e-4),
    (schedules.WarmupCosineDecay(1e-3, 100, 100, min_ratio=0.1), 100, 1e-4),
    *(
        (schedules.WarmupStableDecay(1e-3, 10, 50, 40, decay_type, ratio), 100, 1e-3 * ratio)
        for decay_type in ("cosine", "linear", "1-sqrt")
        for ratio in (0.0, 0.1)
    ),
]


@pytest.mark.parametrize(("schedule", "end", "value"), ENDS)
@pytest.mark.sampled(4)
def test_after_its_end_a_schedule_stays_at_its_last_value(schedule, end, value):
    assert schedule.total_steps == end
    assert float(schedule(end - 1)) > value
    last = float(schedule(end))
    assert last == pytest.approx(value, rel=1e-6, abs=0.0)
    for step in [*range(end, 3 * end + 1), 10_000, 2**24]:
        assert float(schedule(step)) == last, step


@pytest.mark.backend_free
def test_phases():
    """A phase ends where the sign of the slope changes, and only there."""
    for schedule, names in [
        (schedules.WarmupConstant(1.0, 20), ["warm-up", "constant"]),
        (schedules.WarmupLinearDecay(1.0, 20, 60), ["warm-up", "linear decay"]),
        (schedules.WarmupCosineDecay(1.0, 20, 60), ["warm-up", "cosine decay"]),
        (
            schedules.WarmupInverseSquareRoot(1.0, 20, timescale=7),
            ["warm-up", "inverse square root decay"],
        ),
        (
            schedules.WarmupStableDecay(1.0, 20, 30, 10, "1-sqrt"),
            ["warm-up", "plateau", "1-sqrt decay"],
        ),
    ]:
        phases = schedule.phases()
        assert [name for name, _ in phases] == names
        assert phases[-1][1] == schedule.total_steps
        slopes = np.sign(np.diff([float(schedule(step)) for step in range(100)]))
        turns = (np.flatnonzero(np.diff(slopes)) + 1).tolist()
        assert turns == [end for _, end in phases if end is not None]


@pytest.mark.backend_free
def test_shown_steps():
    inverse = schedules.WarmupInverseSquareRoot(1.0, 30, timescale=7)
    assert float(inverse(inverse.shown_steps())) == pytest.approx(0.5)
    assert schedules.WarmupStableDecay(1.0, 10, 50, 40).shown_steps() == 100
    assert schedules.WarmupConstant(1.0, 10).shown_steps() > 10


@pytest.mark.backend_free
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
@pytest.mark.backend_free
def test_errors_name_the_argument(make, says):
    with pytest.raises(ValueError, match=f"Received: {says}"):
        make()
