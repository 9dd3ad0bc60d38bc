"""Distillation beside the plain loop with both models' logits."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_llm
from keras_llm import layers, losses, metrics, models

ALPHA, TEMPERATURE = 0.7, 3.0


def make(d_model, soft_cap=None, use_bias=False, vocab=30, seed=1):
    keras.utils.set_random_seed(seed)
    backbone = keras.Sequential(
        [keras.layers.Embedding(vocab, d_model), keras.layers.Dense(d_model, activation="tanh")]
    )
    head = layers.VocabularyHead(vocab, d_model, use_bias=use_bias, soft_cap=soft_cap)
    model = models.LanguageModel(backbone, head)
    model(np.zeros((1, 2), "int32"))
    # Large enough for a cap to show, and for teacher and student to differ.
    for variable in model.variables:
        variable.assign(0.5 * keras.random.normal(variable.shape, seed=seed))
    return model


def batch(rows=6, length=5):
    generator = np.random.default_rng(0)
    x, y = generator.integers(1, 30, (2, rows, length))
    y[0, 2:] = 0
    y[-1] = 0
    return x, y


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def plain_loss(teacher, student, x, y):
    """The definition, in float64, from whole logits."""
    z, t = (np.asarray(ops.convert_to_numpy(m(x)), "float64") for m in (student, teacher))
    counts = y != 0
    nll = -np.log(np.take_along_axis(softmax(z), y[..., None], -1))[..., 0]
    p, q = softmax(z / TEMPERATURE), softmax(t / TEMPERATURE)
    divergence = TEMPERATURE**2 * (q * np.log(q / p)).sum(-1)
    each = (1 - ALPHA) * nll + ALPHA * divergence
    return (each * counts).sum() / counts.sum(), (nll * counts).sum() / counts.sum()


def compiled(teacher, student, optimizer=None, **kwargs):
    model = models.Distillation(teacher, student, ALPHA, TEMPERATURE)
    model.compile(
        optimizer or keras.optimizers.SGD(0.0),
        losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
        metrics=[metrics.Perplexity()],
        **kwargs,
    )
    return model


KINDS = {"plain": {}, "biased and capped": {"use_bias": True, "soft_cap": 4.0}}
EVERY = [pytest.param("plain", marks=pytest.mark.torch_only), "biased and capped"]


@pytest.mark.parametrize("kind", EVERY)
def test_the_loss_is_its_definition(kind):
    teacher, student = make(7, **KINDS[kind], seed=1), make(4, **KINDS[kind], seed=2)
    x, y = batch()
    wanted, nll = plain_loss(teacher, student, x, y)
    model = compiled(teacher, student)
    logs = model.fit(x, y, batch_size=4, verbose=0, validation_data=(x, y)).history
    for name in ("loss", "val_loss"):
        assert logs[name][0] == pytest.approx(wanted, rel=1e-5)
    assert np.log(logs["perplexity"][0]) == pytest.approx(nll, rel=1e-5)


@pytest.mark.torch_only
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_whole_logits(kind):
    import torch

    teacher, student = make(7, **KINDS[kind], seed=1), make(4, **KINDS[kind], seed=2)
    x, y = batch()
    z, t = student(x), teacher(x).detach()
    counts = torch.tensor(y != 0)
    nll = torch.nn.functional.cross_entropy(z[counts], torch.tensor(y)[counts])
    divergence = torch.nn.functional.kl_div(
        torch.log_softmax(z[counts] / TEMPERATURE, -1),
        torch.log_softmax(t[counts] / TEMPERATURE, -1),
        reduction="batchmean",
        log_target=True,
    )
    ((1 - ALPHA) * nll + ALPHA * TEMPERATURE**2 * divergence).backward()
    gradients = [variable.value.grad.clone() for variable in student.variables]
    before = [variable.value.detach().clone() for variable in student.variables]
    kept = [variable.value.detach().clone() for variable in teacher.variables]

    compiled(teacher, student, keras.optimizers.SGD(1.0)).fit(x, y, batch_size=6, verbose=0)
    for variable, old, gradient in zip(student.variables, before, gradients, strict=True):
        torch.testing.assert_close(old - variable.value.detach(), gradient, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v.value, k) for v, k in zip(teacher.variables, kept, strict=True))


@pytest.mark.parametrize(
    "kwargs",
    [pytest.param({"micro_batch_size": 2}, marks=pytest.mark.torch_only), {"accumulation": 3}],
)
def test_micro_batches_and_accumulation_are_one_batch(kwargs):
    x, y = batch()
    weights = []
    for options in ({}, dict(kwargs)):
        teacher, student = make(7, seed=1), make(4, seed=2)
        steps = options.pop("accumulation", None)
        optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=steps)
        model = compiled(teacher, student, optimizer, **options)
        model.fit(x, y, batch_size=2 if steps else 6, shuffle=False, verbose=0)
        weights.append([ops.convert_to_numpy(v) for v in student.variables])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.torch_only
def test_a_student_without_the_teachers_share_learns_from_labels_alone():
    x, y = batch()
    ways = []
    for alpha in (0.0, None):
        teacher, student = make(7, seed=1), make(4, seed=2)
        model = student if alpha is None else models.Distillation(teacher, student, alpha)
        model.compile(
            keras.optimizers.SGD(1.0), losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)
        )
        model.fit(x, y, batch_size=6, verbose=0)
        ways.append([ops.convert_to_numpy(v) for v in student.variables])
    for one, other in zip(*ways, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.torch_only
def test_only_the_student_is_trained_and_saved(tmp_path):
    teacher, student = make(7, seed=1), make(4, seed=2)
    model = compiled(teacher, student)
    assert len(model.variables) == len(student.variables)
    model.save_weights(tmp_path / "student.weights.h5")
    with pytest.raises(NotImplementedError, match=r"Save model\.student"):
        model.save(tmp_path / "model.keras")


@pytest.mark.torch_only
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"alpha": 1.5}, ValueError, r"alpha must be a number in \[0, 1\].*1.5"),
        ({"temperature": 0}, ValueError, "temperature must be a number in"),
        ({"teacher": 3}, TypeError, "teacher must be a LanguageModel.*int"),
        ({"vocab": 31}, ValueError, "the same vocabulary.*31 and 30"),
    ],
)
def test_wrong_calls(kwargs, error, message):
    teacher = make(7, vocab=kwargs.pop("vocab", 30))
    with pytest.raises(error, match=message):
        models.Distillation(**{"teacher": teacher, "student": make(4), **kwargs})


def test_what_needs_logits_is_refused():
    x, y = batch()
    model = compiled(make(7), make(4))
    with pytest.raises(ValueError, match=r"does not make logits.*weighted_metrics"):
        model.fit(x, y, sample_weight=np.ones(y.shape), verbose=0)
    with pytest.raises(ValueError, match="a loss of keras_llm for the labels"):
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))


@pytest.mark.torch_only
def test_explain_says_what_the_loss_is_mixed_with():
    model = compiled(make(7), make(4))
    mixed = keras_llm.explain(model, show=False)["Loss"]["mixed"]
    assert mixed.text.startswith("0.3 * this + 0.7 * 3^2 * sum over all tokens of q")
    with pytest.raises(ValueError, match=r"trace shows the loss of labels.*Distillation"):
        keras_llm.trace(model, batch(), show=False)


@pytest.mark.torch_only
def test_nothing_is_kept_for_a_gradient_of_the_teacher():
    import torch

    model, kept = compiled(make(7), make(4)), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        model.teacher.hidden_vectors(torch.tensor(batch()[0]))
    assert not kept
