"""What explain says of loss, optimizer and learning rate, against closed forms and what happens."""

import math
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm import explain, losses, metrics, optimizers, schedules
from keras_llm.explanation import stock_keras
from keras_llm.optimizers.optimizer import Optimizer
from keras_llm.optimizers.usual_learning_rate import usual_learning_rate
from keras_llm.schedules.warmup_schedule import WarmupSchedule
from keras_llm.usual_range import ADAM, Source, UsualRange
from tests.explanation.small_models import PAD, V, X, Y, causal, compiled, plain

pytestmark = [
    pytest.mark.backend_free,
    # explain is asked about mistakes, too.
    pytest.mark.filterwarnings("ignore::keras_llm.checks.sanity_warning.SanityWarning"),
]
LN_V = math.log(V)


def told(model, section, fact, **kwargs):
    return explain(model, show=False, **kwargs)[section][fact]


@keras.saving.register_keras_serializable(package="tests")
class SquaredSurprise(losses.TokenLoss):
    """Surprise, squared. Rare tokens weigh more."""

    def token_loss(self, nll, lse, mean_logit):
        """A comment that is no formula."""
        return nll**2


MINE = Source("Mine 2026", "https://example.com/mine")


class TellingSurprise(SquaredSurprise):
    """A power of the surprise."""

    notes: ClassVar = {"power": "2 is a square"}
    usual_ranges: ClassVar = {"power": UsualRange(1.0, 2.0, (MINE,), above="it may overflow")}

    def __init__(self, power=2.0, ignore_index=-100):
        super().__init__(ignore_index)
        self.power = power

    def equation(self):
        return f"(-log p(label))^{self.power:g}", "how surprised the model is, to a power"

    def token_loss(self, nll, lse, mean_logit):
        return nll**self.power

    def get_config(self):
        return {**super().get_config(), "power": self.power}


class WarmupThenSteps(WarmupSchedule):
    """A sixth schedule: after the warm-up, half of the peak from `drop` on."""

    total_steps = 80
    decay_name = "steps"
    notes: ClassVar = {**WarmupSchedule.notes, "drop": "update of the drop"}

    def __init__(self, learning_rate, warmup_steps, drop):
        super().__init__(learning_rate, warmup_steps)
        self.drop = drop

    def decay(self, step):
        return 1 - 0.5 * ops.cast(step >= self.drop, "float32")

    def phases(self):
        return [("warm-up", self.warmup_steps), ("peak", self.drop), ("half of it", 80)]


class PlainSGD(Optimizer):
    """An optimizer of one's own."""

    notes: ClassVar = {**Optimizer.notes, "damping": "what is left of a gradient"}
    usual_ranges: ClassVar = {"damping": UsualRange(0.5, 1.0, (MINE,), below="hardly a step")}

    def __init__(self, learning_rate, damping, **kwargs):
        super().__init__(learning_rate, None, False, (), **kwargs)
        self.damping = damping

    def usual_learning_rate(self, parameters):
        return UsualRange(0.1, 1.0, (MINE,), below="slow")

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, self.damping * learning_rate * gradient)

    def get_config(self):
        return {**super().get_config(), "damping": self.damping}


class Surprise(metrics.TokenMetric):
    """A metric of one's own."""

    def numerator_and_denominator(self, statistics):
        return statistics.nll, statistics.tokens

    def equation(self):
        return "sum of -log p(label) / tokens that count", "in nats"


@pytest.mark.every_backend
def test_what_is_told_by_ones_own_loss_optimizer_and_schedule():
    rate = WarmupThenSteps(0.01, 10, 60)
    model = compiled(
        optimizer=PlainSGD(rate, damping=0.1),
        loss=TellingSurprise(3.0, PAD),
        metrics=[Surprise(PAD, name="surprise")],
    )
    explanation = explain(model, show=False)
    loss = explanation["Loss"]
    assert loss["each token"].value == "(-log p(label))^3"
    assert loss["power"].note == "2 is a square"
    assert loss["power"].flag == "it may overflow"
    assert loss["first loss"].value == pytest.approx(LN_V**3, rel=1e-6)
    damping = explanation["Optimizer"]["damping"]
    assert (damping.note, damping.flag) == ("what is left of a gradient", "hardly a step")
    section = explanation["Learning rate"]
    assert section["peak"].flag == "slow"
    assert section["drop"].note == "update of the drop"
    assert section["warmup_steps"].note == "updates until the peak: 12.5 %"
    assert section.curve.steps[-1] == 80
    assert {10, 60, 80} <= set(section.curve.steps)
    values = dict(zip(section.curve.steps, section.curve.values, strict=True))
    assert values[60] == pytest.approx(0.005) and values[59] == pytest.approx(0.01)
    assert explanation["Metrics"]["surprise"].text == "sum of -log p(label) / tokens that count"
    # Its source is among the others, though no table has it.
    assert MINE in explanation.sources and "Mine 2026" in explanation.to_text(80)


FOCAL = losses.MaskedSparseCategoricalFocalCrossentropy
CROSS = losses.MaskedSparseCategoricalCrossentropy


@pytest.mark.every_backend
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "loss, expected",
    [
        (CROSS(PAD), LN_V),
        (CROSS(PAD, label_smoothing=0.1), LN_V),
        (CROSS(PAD, z_loss=1e-2), LN_V + 1e-2 * LN_V**2),
        (FOCAL(2.0, 0.25, PAD), 0.25 * (1 - 1 / V) ** 2 * LN_V),
        (FOCAL(1.0, list(range(V)), PAD), (V - 1) / 2 * (1 - 1 / V) * LN_V),
        (SquaredSurprise(PAD), LN_V**2),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), LN_V),
    ],
    ids=["cross", "smoothed", "z", "focal", "weights", "own", "stock"],
)
def test_the_first_loss_is_that_of_equal_probabilities(loss, expected):
    model = compiled(loss=loss)
    assert told(model, "Loss", "first loss").value == pytest.approx(expected, rel=1e-6)
    assert told(model, "Loss", "first perplexity").value == V
    # And so says the loss itself, of every label in turn.
    labels, logits = np.arange(1, V)[None], np.zeros((1, V - 1, V), "float32")
    if loss.get_config().get("alpha") != list(map(float, range(V))):
        assert float(loss(labels, logits)) == pytest.approx(expected, rel=1e-5)


def test_the_first_loss_of_probabilities():
    model = compiled(plain(), loss=CROSS(PAD, label_smoothing=0.1, from_logits=False))
    assert told(model, "Loss", "first loss").value == pytest.approx(LN_V, rel=1e-6)
    assert "p = the model's outputs" in told(model, "Loss", "each token").text


@pytest.mark.parametrize(
    "loss, equation",
    [
        (CROSS(PAD), "-log p(label)"),
        (
            CROSS(PAD, label_smoothing=0.1),
            "0.9 * -log p(label) + 0.1 * mean of -log p over all tokens",
        ),
        (FOCAL(2.0, 0.25, PAD), "0.25 * (1 - p(label))^2 * -log p(label)"),
        (
            CROSS(PAD, z_loss=1e-4),
            "-log p(label) + 1e-4 * log(sum of exp(logits))^2",
        ),
        (
            losses.MaskedKLDivergence(2.0),
            "2^2 * sum over all tokens of q * (log q - log p)",
        ),
        (SquaredSurprise(PAD), "nll ** 2"),
        ("sparse_categorical_crossentropy", "-log p(label)"),
        ("mse", "mean of (target - output)^2"),
    ],
)
def test_the_equation_has_the_settings_in_it(loss, equation):
    fact = told(compiled(loss=loss), "Loss", "each token")
    assert fact.value == equation
    assert fact.note


def test_a_subclass_with_a_formula_of_its_own_is_not_taken_for_its_parent():
    class Doubled(CROSS):
        """Twice the surprise."""

        def token_loss(self, nll, lse, mean_logit):
            return 2 * nll

    fact = told(compiled(loss=Doubled(PAD)), "Loss", "each token")
    assert fact.value == "2 * nll"
    assert fact.note.startswith("Twice the surprise")


def test_a_loss_that_is_a_function():
    def halved(y_true, y_pred):
        """Half the distance."""
        return ops.abs(y_true - y_pred) / 2

    fact = told(compiled(plain(), loss=halved), "Loss", "each token")
    assert fact.value == "ops.abs(y_true - y_pred) / 2"
    assert fact.note == "Half the distance"
    fact = told(compiled(plain(), loss=lambda y_true, y_pred: y_pred), "Loss", "each token")
    assert fact.text == "what <lambda> returns"


def test_what_is_left_out_and_what_the_rest_is_divided_by():
    ours = explain(compiled(), show=False)["Loss"]
    assert (ours["left out"].value, ours["divided by"].value) == (PAD, "tokens")
    assert not ours["left out"].flag + ours["divided by"].flag
    assert "would count" in told(compiled(loss=CROSS()), "Loss", "left out").note
    summed = told(compiled(loss=CROSS(PAD, reduction="sum")), "Loss", "divided by")
    assert (summed.value, summed.text) == ("sum", "nothing")
    # In a plain model a batch is exact, and the log of an epoch is Keras's.
    assert "by their rows" in told(compiled(plain()), "Loss", "divided by").flag


def test_stock_losses_of_tokens_are_flagged_and_others_are_not():
    stock = keras.losses.SparseCategoricalCrossentropy
    section = explain(compiled(plain(), loss=stock(from_logits=True)), show=False)["Loss"]
    assert "padding counts" in section["left out"].flag
    assert "by their rows" in section["divided by"].flag
    fact = told(compiled(plain(), loss=stock(ignore_class=PAD)), "Loss", "left out")
    assert (fact.value, fact.flag) == (PAD, "")
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    assert explain(compiled(classifier, loss=stock()), show=False).flags.keys() == {
        "Optimizer: momentum"
    }


def test_what_layers_add_is_told():
    head = keras.layers.Dense(V, kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Embedding(V, 8), head])
    assert told(compiled(model), "Loss", "added").value == 1


OPTIMIZERS = {
    "adamw": lambda: optimizers.AdamW(1e-3, weight_decay=0.1),
    "ema": lambda: optimizers.AdamW(1e-3, use_ema=True),
    "vectors": lambda: optimizers.AdamW(1e-3, weight_decay=0.1, decay_vectors=True),
    "excluded": lambda: optimizers.AdamW(1e-3, exclude_from_weight_decay="embed"),
    "adafactor": lambda: optimizers.Adafactor(weight_decay=0.1),
    "adafactor beta": lambda: optimizers.Adafactor(beta_1=0.9),
    "scheduled": lambda: optimizers.AdamW(schedules.WarmupConstant(1e-3, 0)),
    "stock adamw": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.1),
    "stock adafactor": lambda: keras.optimizers.Adafactor(1e-3),
    "stock accumulating": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    "stock sgd": lambda: keras.optimizers.SGD(momentum=0.9),
    "function": lambda: keras.optimizers.Adam(learning_rate_of_one_in_a_thousand),
}


def learning_rate_of_one_in_a_thousand():
    return 1e-3


@pytest.mark.every_backend
@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_memory_is_counted_before_the_optimizer_is_built_as_after(name):
    model = compiled(plain(), optimizer=OPTIMIZERS[name]())
    before = told(model, "Optimizer", "memory")
    assert not model.optimizer.built
    model.optimizer.build(model.trainable_variables)
    numbers = sum(ops.size(v) for v in model.optimizer.variables if len(v.shape))
    assert before.value == pytest.approx(4 * int(numbers) / model.count_params(), rel=1e-12)
    assert told(model, "Optimizer", "memory") == before


def test_memory_in_closed_form():
    assert told(compiled(optimizer=optimizers.AdamW()), "Optimizer", "memory").value == 8.0
    assert told(compiled(optimizer=OPTIMIZERS["ema"]()), "Optimizer", "memory").value == 12.0
    assert told(compiled(optimizer="sgd"), "Optimizer", "memory").value == 0.0
    # A row and a column of each of two matrices, one number for each of the others.
    model = compiled(plain(), optimizer=optimizers.Adafactor())
    state = (V + 8) + 8 + 8 + (8 + V) + V
    expected = 4 * state / (8 * V + 8 + 8 + 8 * V + V)
    assert told(model, "Optimizer", "memory").value == pytest.approx(expected)


def test_an_optimizer_that_cannot_be_rebuilt_is_told_after_it_is_built():
    class Inner(keras.optimizers.SGD):
        def __init__(self, momentum, secret):
            super().__init__(1e-3, momentum=momentum)

    model = compiled(plain(), optimizer=Inner(0.9, secret=1))
    assert told(model, "Optimizer", "memory").text == "known after the first fit"
    model.optimizer.build(model.trainable_variables)
    assert told(model, "Optimizer", "memory").value == 4.0


@pytest.mark.every_backend
def test_moving_averages_of_few_digits_are_flagged():
    kwargs = {"dtype": "bfloat16"}
    ours = compiled(causal(**kwargs), optimizer=optimizers.AdamW())
    assert (told(ours, "Optimizer", "memory").value, told(ours, "Optimizer", "memory").flag) == (
        8.0,
        "",
    )
    stock = compiled(causal(**kwargs), optimizer=keras.optimizers.Adam())
    assert told(stock, "Optimizer", "memory").value == 4.0
    assert "stand still" in told(stock, "Optimizer", "memory").flag


@pytest.mark.every_backend
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name", ["adamw", "vectors", "excluded", "adafactor", "stock adamw", "adafactor beta"]
)
def test_what_is_decayed_is_what_shrinks_without_a_gradient(name):
    model = compiled(plain(), optimizer=OPTIMIZERS[name]())
    section = explain(model, show=False)["Optimizer"]
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    model.optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
    shrunk = [v.path for v in variables if ops.convert_to_numpy(v).max() < 1]
    assert section["decayed"].value == shrunk
    if shrunk:
        kept = [v.path for v in variables if ops.convert_to_numpy(v).max() == 1]
        assert section["not decayed"].value == kept
    vectors = [v.path for v in variables if len(v.shape) < 2 and v.path in shrunk]
    assert bool(section["decayed"].flag) == bool(vectors)


@pytest.mark.every_backend
@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_explain_leaves_the_model_as_it_is(name):
    model = compiled(plain(), optimizer=OPTIMIZERS[name]())
    variables = model.trainable_variables
    model.optimizer.apply([ops.ones(v.shape) for v in variables], variables)
    state = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    before = [ops.convert_to_numpy(v).copy() for v in state]
    keras.utils.set_random_seed(3)
    expected = keras.random.normal((4,))
    keras.utils.set_random_seed(3)
    explain(model, batch=(X, Y), show=False)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(keras.random.normal((4,))), ops.convert_to_numpy(expected)
    )
    after = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    assert len(after) == len(state)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, ops.convert_to_numpy(other))


SCHEDULES = [
    schedules.WarmupCosineDecay(1e-3, 10, 100, min_ratio=0.1),
    schedules.WarmupLinearDecay(1e-3, 7, 1_000),
    schedules.WarmupInverseSquareRoot(1e-3, 50),
    schedules.WarmupConstant(1e-3, 0),
    schedules.WarmupStableDecay(1e-3, 5, 50, 20),
    keras.optimizers.schedules.CosineDecay(1e-4, 1_000, warmup_target=1e-3, warmup_steps=100),
    keras.optimizers.schedules.ExponentialDecay(1e-3, 100, 0.9),
    keras.optimizers.schedules.PiecewiseConstantDecay([10, 20], [1e-3, 1e-4, 1e-5]),
]


@pytest.mark.every_backend
@pytest.mark.sampled(5)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("step", [0, 13])
def test_the_curve_is_the_schedule(schedule, step):
    model = compiled(plain(), optimizer=keras.optimizers.Adam(schedule))
    model.optimizer.iterations.assign(step)
    section = explain(model, show=False)["Learning rate"]
    curve = section.curve
    # Some of it: JAX takes long to ask a schedule with a branch.
    expected = [float(schedule(n)) for n in curve.steps[::9]]
    np.testing.assert_allclose(curve.values[::9], expected, rtol=1e-6)
    assert step in curve.steps and curve.step == step
    assert section["today"].value == curve.value == pytest.approx(float(schedule(step)))
    # All of them peak at 1e-3, and no later than the curve's end.
    assert section["peak"].value == pytest.approx(1e-3, rel=1e-6)
    assert section.subject == type(schedule).__name__


def test_the_curve_of_adafactors_own_learning_rate():
    model = compiled(optimizer=optimizers.Adafactor(warmup_init=True))
    section = explain(model, show=False)["Learning rate"]
    assert section["today"].value == pytest.approx(1e-6)
    assert section["peak"].value == pytest.approx(1e-2)


def test_a_learning_rate_without_a_schedule():
    for rate in (1e-3, learning_rate_of_one_in_a_thousand):
        model = compiled(plain(), optimizer=keras.optimizers.Adam(rate))
        section = explain(model, show=False)["Learning rate"]
        assert (section.subject, section.curve) == ("no schedule", None)
        assert section["today"].value == pytest.approx(1e-3)


def test_a_schedule_that_tells_nothing_is_drawn_all_the_same():
    class Mine(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 1e-3 / (1 + ops.cast(step, "float32"))

    section = explain(compiled(plain(), optimizer=keras.optimizers.Adam(Mine())), show=False)
    assert section["Learning rate"]["peak"].value == pytest.approx(1e-3)


def test_training_beyond_the_end_is_flagged_and_drawn():
    model = compiled(optimizer=optimizers.AdamW(schedules.WarmupCosineDecay(1e-3, 10, 100)))
    model.optimizer.iterations.assign(120)
    section = explain(model, show=False)["Learning rate"]
    assert section.curve.steps[-1] == 120
    assert "beyond" in section["end"].flag
    assert section["end"].value == 100


def test_a_warm_up_is_beside_what_is_usual_for_so_many_updates():
    def fact(warmup, total):
        schedule = schedules.WarmupLinearDecay(1e-3, warmup, total)
        model = compiled(optimizer=optimizers.AdamW(schedule))
        return told(model, "Learning rate", "warmup_steps")

    assert (fact(100, 2_000).usual.low, fact(100, 2_000).usual.high) == (2, 200)
    assert not fact(100, 2_000).flag
    assert "start lower" in fact(0, 2_000).flag
    assert "below the peak" in fact(500, 2_000).flag


def test_settings_beside_their_ranges():
    optimizer = optimizers.AdamW(1e-3, weight_decay=0.5, beta_2=0.9999, epsilon=1e-3)
    explanation = explain(compiled(optimizer=optimizer), show=False)
    section = explanation["Optimizer"]
    assert str(section["beta_2"].usual) == "0.95 – 0.999"
    assert set(explanation.flags) == {
        f"Optimizer: {name}" for name in ("weight_decay", "beta_2", "epsilon")
    }
    # Every argument has its place: here, in another section, or in the list of what is off.
    off = set(section["off"].value)
    named = {fact.name for s in explanation.sections for fact in s.facts} | off
    elsewhere = {"name", "learning_rate", "clipnorm", "clipvalue", "global_clipnorm"}
    of_ema = {"ema_momentum", "ema_overwrite_frequency", "gradient_accumulation_steps"}
    assert set(optimizer.get_config()) - named == elsewhere | of_ema


def test_the_learning_rate_that_is_usual_depends_on_the_size_and_the_optimizer():
    def usual(optimizer, parameters=None):
        found = usual_learning_rate(optimizer, parameters)
        return found and (found.low, found.high)

    assert usual(optimizers.AdamW(), 10**9) == (1e-5, 1e-3)
    assert usual(optimizers.AdamW(), 10**6) == usual(keras.optimizers.Adam()) == (1e-5, 4e-3)
    assert usual(keras.optimizers.Adafactor()) == (1e-3, 1e-2)
    plain_step = optimizers.Adafactor(1e-4, relative_step=False, scale_parameter=False)
    assert usual(plain_step, 10**9) == (1e-5, 1e-3)
    assert usual(keras.optimizers.Lion(), 10**9) == (1e-6, 3e-4)
    assert usual(keras.optimizers.SGD()) is None


def test_a_range_flags_what_lies_outside():
    usual = UsualRange(1e-3, 0.1, (ADAM,), below="low", above="high", none="missing")
    assert [usual.warning(x) for x in (None, 9e-4, 1e-3, 0.1, 0.11)] == [
        "missing", "low", "", "", "high",
    ]  # fmt: skip
    # What went through float32 is the number that was typed.
    assert usual.warning(float(np.float32(0.1))) == usual.warning(float(np.float32(1e-3))) == ""


TELLING = [CROSS(), FOCAL(), losses.MaskedKLDivergence()]
TELLING += [optimizers.AdamW(), optimizers.Adafactor(), schedules.WarmupCosineDecay(1e-3, 1, 9)]


def test_every_usual_range_cites_a_source_and_says_why():
    groups = [*stock_keras.OPTIMIZER_RANGES.values(), *(thing.usual_ranges for thing in TELLING)]
    ranges = [stock_keras.GLOBAL_CLIPNORM, *(usual for group in groups for usual in group.values())]
    for kind in (keras.optimizers.Adam, keras.optimizers.Adafactor, keras.optimizers.Lion):
        ranges += [usual_learning_rate(kind(), size) for size in (10**6, 10**9)]
    for usual in ranges:
        assert usual.low <= usual.high
        assert usual.sources and usual.below + usual.above
        assert all(source.url.startswith("https://") for source in usual.sources)


@pytest.mark.parametrize("thing", TELLING, ids=lambda thing: type(thing).__name__)
def test_notes_and_ranges_are_of_arguments(thing):
    arguments = set(thing.get_config())
    assert set(thing.notes) <= arguments
    # A schedule without an end value has no min_ratio.
    assert set(thing.usual_ranges) <= arguments | {"min_ratio"}
