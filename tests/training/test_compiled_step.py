"""`fit` without logits gives what `fit` with logits gives, on JAX and TensorFlow."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm import losses, metrics, models
from keras_llm.backend.ops import vocabulary_pass as module
from keras_llm.layers import TokenEmbedding, VocabularyHead
from keras_llm.training import Step

pytestmark = pytest.mark.not_torch

VOCAB, PAD = 31, 0
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (12, 7))
Y = np.where(RNG.random((12, 7)) < 0.3, PAD, RNG.integers(1, VOCAB, (12, 7)))
Y[3:6] = PAD  # a whole batch without a token
WEIGHTS = RNG.random(Y.shape)
CROSSENTROPY = losses.MaskedSparseCategoricalCrossentropy


@keras.saving.register_keras_serializable(package="tests")
class Own(losses.TokenLoss):
    """A temperature-squared focal variant that no paper knows."""

    def token_loss(self, nll, lse, mean_logit):
        return (1 - ops.exp(-nll)) ** 1.5 * nll**2 + 0.1 * (lse - mean_logit) ** 2


class WithLogits(models.LanguageModel):
    """The same model, whose `call` might do anything: it takes the path of whole logits."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=training)


def parts():
    """An embedding whose mask is padding too, and a head with a bias."""
    embedding = keras.layers.Embedding(VOCAB, 8, mask_zero=True)
    return embedding, keras.layers.Dense(VOCAB, bias_initializer="normal")


def usual():
    """The metrics of most models here."""
    return {"metrics": [metrics.Perplexity(PAD), metrics.MaskedTokenAccuracy(1, PAD)]}


def build(cls=models.LanguageModel, made=parts, loss=None, rate=0.3, wanted=usual, **arguments):
    """A model of these parts; the same numbers whatever its class."""
    keras.utils.set_random_seed(0)
    model = cls(*made())
    model(X)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    model.compile(optimizer, loss or CROSSENTROPY(PAD), **wanted(), **arguments)
    return model


@pytest.fixture(autouse=True)
def passes(monkeypatch):
    """The vocabulary's size in each pass; they are made in chunks of 8 rows."""
    counted, one_pass = [], Step.one_pass
    monkeypatch.setattr(module, "chunk_rows", lambda vocab_size, device_type: 8)
    monkeypatch.setattr(Step, "one_pass", lambda *a, **k: counted.append(1) or one_pass(*a, **k))
    return counted


def assert_same_fit(passes, made=parts, fit=None, tolerance=1e-5, **arguments):
    """Nine updates with whole logits and without: the same logs, the same weights."""
    histories, weights, passed = [], [], []
    x = X.copy()
    x[:, 5:][Y[:, 5:] == PAD] = PAD
    for cls in (WithLogits, models.LanguageModel):
        model = build(cls, made, **arguments)
        fit = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0, **(fit or {})}
        histories.append(model.fit(x, Y, **fit).history)
        weights.append(model.get_weights())
        passed.append(bool(passes))
    assert passed == [False, True]
    assert histories[0]["loss"][-1] < histories[0]["loss"][0]
    for name in set(histories[0]) - {"tokens_per_second"}:
        assert histories[1][name] == pytest.approx(histories[0][name], rel=tolerance), name
    for whole, one in zip(*weights, strict=True):
        np.testing.assert_allclose(one, whole, rtol=tolerance, atol=tolerance)


def test_masks_and_a_bias(passes):
    assert_same_fit(passes)


def test_a_sum_and_a_penalty_for_each_token(passes):
    def made():
        head = keras.layers.Dense(VOCAB, kernel_regularizer="l2")
        return keras.layers.Embedding(VOCAB, 8), head

    loss = CROSSENTROPY(PAD, 0.1, 1e-3, reduction="sum")
    assert_same_fit(passes, made, loss=loss, rate=0.003)


def test_a_tied_head_and_dropout_and_other_metrics(passes):
    def made():
        embedding = TokenEmbedding(VOCAB, 8)
        inputs, dropout = keras.Input((None,), dtype="int32"), keras.layers.Dropout(0.2, seed=0)
        backbone = keras.Sequential([inputs, embedding, dropout])
        return backbone, VocabularyHead(VOCAB, 8, tied_to=embedding)

    def wanted():
        top_3 = metrics.MaskedTokenAccuracy(3, PAD)
        return {"metrics": [top_3, metrics.BitsPerByte([1] * VOCAB, PAD)]}

    alpha = np.linspace(0.5, 1.5, VOCAB)
    loss = losses.MaskedSparseCategoricalFocalCrossentropy(2.0, alpha, PAD)
    assert_same_fit(passes, made, {"validation_data": (X, Y)}, loss=loss, wanted=wanted)


def test_weights_weigh_a_loss_of_ones_own(passes):
    def wanted():
        return {"weighted_metrics": [metrics.Perplexity(PAD)]}

    assert_same_fit(passes, fit={"sample_weight": WEIGHTS}, loss=Own(PAD), wanted=wanted)


@pytest.mark.parametrize(
    "how",
    [{"run_eagerly": True}, pytest.param({"jit_compile": False}, marks=pytest.mark.not_jax)],
    ids=str,
)
def test_without_a_compiler(how, passes):
    assert_same_fit(passes, fit={"epochs": 2, "batch_size": 12}, **how)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_close_to_float32(dtype, passes):
    def half():
        embedding = keras.layers.Embedding(VOCAB, 8, dtype=dtype)
        return embedding, VocabularyHead(VOCAB, 8, dtype=dtype)

    def single():
        return keras.layers.Embedding(VOCAB, 8), VocabularyHead(VOCAB, 8)

    histories = []
    for made in (single, half):
        model = build(made=made)
        fit = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0}
        histories.append(model.fit(X, Y, **fit).history)
        assert passes
        passes.clear()
    assert histories[1]["loss"] == pytest.approx(histories[0]["loss"], rel=1e-2)


def test_logits_are_there_for_those_who_ask(passes):
    model = build()
    model.fit(X, Y, verbose=0)
    assert passes
    passes.clear()
    assert model.predict(X, verbose=0).shape == (*X.shape, VOCAB)
    assert tuple(model(X).shape) == (*X.shape, VOCAB)
    model.compile(optimizer="sgd", loss=CROSSENTROPY(), metrics=[LogitsSeen()])
    assert model.evaluate(X, Y, verbose=0, return_dict=True)["seen"] == VOCAB
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=stock)
    assert model.evaluate(X, Y, verbose=0, return_dict=True)["loss"] > 0
    assert not passes


class LogitsSeen(keras.metrics.Mean):
    """A metric that is not of tokens: the width of what it is given."""

    def __init__(self):
        super().__init__(name="seen")

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(float(y_pred.shape[-1]))


@pytest.mark.parametrize("method", ["compute_loss", "compute_metrics"])
def test_what_a_subclass_overrides_is_given_logits(method, passes):
    seen = []

    def override(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        seen.append(y_pred.shape[-1])
        return getattr(models.LanguageModel, method)(self, x, y, y_pred, sample_weight, **kwargs)

    model = build(type("Overriding", (models.LanguageModel,), {method: override}))
    model.fit(X, Y, verbose=0)
    assert set(seen) == {VOCAB}
    assert not passes


def test_a_step_of_ones_own_is_given_logits(passes):
    seen = []

    class Overriding(models.LanguageModel):
        def test_step(self, *state_and_data):
            *state, (x, _) = state_and_data
            logits = self.stateless_call(*state[0][:2], x)[0] if state else self(x)
            seen.append(logits.shape[-1])
            return super().test_step(*state_and_data)

    model = build(Overriding)
    assert np.isfinite(model.evaluate(X, Y, verbose=0)[0])
    assert set(seen) == {VOCAB}


@pytest.mark.filterwarnings("ignore:train_on_batch has skipped:UserWarning")
def test_an_id_that_is_none_shows_in_the_loss_and_spares_the_weights(passes):
    model = build()
    logs = model.train_on_batch(X, np.where(Y == 1, VOCAB, Y), return_dict=True)
    assert passes
    assert np.isnan(logs["loss"])
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.jax_only
def test_rows_over_several_devices_need_no_logits(passes):
    devices = keras.distribution.list_devices("cpu")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    try:
        build().evaluate(X, Y, verbose=0)
    finally:
        keras.distribution.set_distribution(None)
    assert passes


# No chunk of a batch of 12 * 64 tokens and 500 ids, and nothing else here, is near its logits.
TOKENS, IDS = (12, 64), 500


def largest_tensor(cls):
    """Elements of the largest tensor in the graph of a train step."""
    keras.utils.set_random_seed(0)
    model = cls(keras.layers.Embedding(IDS, 4), VocabularyHead(IDS, 4, use_bias=True))
    x, y = np.ones(TOKENS, "int32"), np.ones(TOKENS, "int32")
    model(x)
    model.compile("sgd", CROSSENTROPY(PAD, 0.1), metrics=[metrics.MaskedTokenAccuracy(1, PAD)])
    model.optimizer.build(model.trainable_variables)
    if keras.backend.backend() == "jax":
        return largest_of_jax(model, (x, y))
    return largest_of_tensorflow(model, (x, y))


def largest_of_jax(model, data):
    import jax
    from jax.extend.core import jaxprs_in_params

    kinds = model.trainable_variables, model.non_trainable_variables
    kinds = (*kinds, model.optimizer.variables, model.metrics_variables)
    state = [[v.value for v in variables] for variables in kinds]
    step = jax.jit(model.train_step)
    compiled = step.lower(state, data).compile()

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    largest = max(sizes(step.trace(state, data).jaxpr.jaxpr))
    # What XLA makes of it: all its temporary buffers together, in float32.
    return max(largest, compiled.memory_analysis().temp_size_in_bytes / 4)


def largest_of_tensorflow(model, data):
    import tensorflow as tf

    step = tf.function(model.train_step)
    graph = step.get_concrete_function(tuple(map(tf.constant, data))).graph
    functions = graph.as_graph_def(add_shapes=True)
    nodes = [*functions.node, *(n for f in functions.library.function for n in f.node_def)]
    shapes = [s for n in nodes for s in n.attr["_output_shapes"].list.shape]
    assert len(shapes) > 100
    return max(int(np.prod([abs(d.size) for d in s.dim])) for s in shapes)


def test_the_logits_of_a_batch_are_nowhere():
    logits = np.prod(TOKENS) * IDS
    assert largest_tensor(WithLogits) >= logits
    assert largest_tensor(models.LanguageModel) < logits / 5
