"""Distillation against `torch.nn.functional.kl_div`."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import ops

from keras_llm.losses import MaskedKLDivergence

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.standard_normal((2, 4, 5, 7))
LABELS = RNG.integers(0, 7, (4, 5))
COUNTS = LABELS != 0


def expected(student, temperature):
    """T^2 * KL, averaged over the tokens that count."""
    teacher = torch.tensor(TEACHER)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.log_softmax(teacher / temperature, -1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    return temperature**2 * divergence[torch.tensor(COUNTS)].mean()


def targets(form, temperature):
    """The teacher in one of its three forms, and the arguments that name it."""
    logits = torch.tensor(TEACHER)
    if form == "logits":
        return logits, {"target_from_logits": True}
    if form == "log_probabilities":
        return F.log_softmax(logits / temperature, -1), {"log_target": True}
    return F.softmax(logits / temperature, -1), {}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("form", ["logits", "log_probabilities", "probabilities"])
@pytest.mark.sampled(3)
def test_equals_torch(form, temperature):
    teacher, arguments = targets(form, temperature)
    loss = MaskedKLDivergence(temperature=temperature, ignore_index=0, **arguments)
    teacher = teacher.numpy().astype("float32")
    student = STUDENT.astype("float32")
    want = float(expected(torch.tensor(STUDENT), temperature))
    assert float(loss((teacher, LABELS), student)) == pytest.approx(want, rel=1e-5)
    assert float(loss(teacher, student, COUNTS)) == pytest.approx(want, rel=1e-5)
    by_probabilities = MaskedKLDivergence(
        temperature=temperature, ignore_index=0, from_logits=False, **arguments
    )
    probabilities = ops.softmax(ops.convert_to_tensor(student))
    assert float(by_probabilities((teacher, LABELS), probabilities)) == pytest.approx(
        want, rel=1e-4
    )


@pytest.mark.torch_only
@pytest.mark.parametrize("form", ["logits", "log_probabilities", "probabilities"])
def test_gradient_equals_float64_autograd(form):
    teacher, arguments = targets(form, 2.0)
    ours = torch.tensor(STUDENT, requires_grad=True)
    theirs = torch.tensor(STUDENT, requires_grad=True)
    MaskedKLDivergence(temperature=2.0, ignore_index=0, **arguments)(
        (teacher, LABELS), ours
    ).backward()
    expected(theirs, 2.0).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12)


def test_classes_that_the_teacher_rules_out_add_nothing():
    teacher = np.array([[1.0, 0.0]], "float32")
    student = np.array([[0.0, 0.0]], "float32")
    assert float(MaskedKLDivergence()(teacher, student)) == pytest.approx(np.log(2))
    log_teacher = np.array([[0.0, -np.inf]], "float32")
    loss = MaskedKLDivergence(log_target=True)
    assert float(loss(log_teacher, student)) == pytest.approx(np.log(2))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="temperature must be a number in"):
        MaskedKLDivergence(temperature=0.0)
    with pytest.raises(ValueError, match="exclude each other"):
        MaskedKLDivergence(log_target=True, target_from_logits=True)
    with pytest.raises(ValueError, match=r"student's shape \(4, 5, 7\)"):
        MaskedKLDivergence()(LABELS, STUDENT)
