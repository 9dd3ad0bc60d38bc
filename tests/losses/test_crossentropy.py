"""Cross entropy and focal loss against torch in float64, their edges and their errors."""

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_llm import losses
from tests import reference
from tests.losses.token_losses import CROSSENTROPY, FOCAL, SquaredTemperature

ROWS, VOCAB, IGNORED = 12, 9, 0
RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.standard_normal((ROWS, VOCAB))
LABELS = RNG.integers(1, VOCAB, ROWS)
LABELS[[2, 7, 8]] = IGNORED
WEIGHTS = RNG.random(ROWS)


def expected(logits, options, weights):
    """The reference's loss, as a torch scalar that can be differentiated."""
    options = dict(options)
    reduction = options.pop("reduction", "mean")
    options["smoothing"] = options.pop("label_smoothing")
    formula = reference.focal if "gamma" in options else reference.crossentropy
    labels = torch.as_tensor(LABELS)
    weights = torch.as_tensor(weights) * (labels != IGNORED)
    return reference.reduce(formula(logits, labels, **options), weights, reduction)


def build(options):
    cls = (
        losses.MaskedSparseCategoricalFocalCrossentropy
        if "gamma" in options
        else losses.MaskedSparseCategoricalCrossentropy
    )
    return cls(ignore_index=IGNORED, **options)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("options", CROSSENTROPY + FOCAL, ids=str)
@pytest.mark.sampled(5)
def test_loss_equals_the_float64_reference(options, weights):
    want = expected(torch.as_tensor(LOGITS), options, np.ones(ROWS) if weights is None else weights)
    got = build(options)(LABELS, ops.convert_to_tensor(LOGITS, "float32"), weights)
    np.testing.assert_allclose(ops.convert_to_numpy(got), want.numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.torch_only
@pytest.mark.parametrize("options", CROSSENTROPY + FOCAL, ids=str)
def test_loss_and_gradient_equal_float64_autograd(options):
    ours = torch.tensor(LOGITS, requires_grad=True)
    theirs = torch.tensor(LOGITS, requires_grad=True)
    loss = build(options)(LABELS, ours, WEIGHTS)
    want = expected(theirs, options, WEIGHTS)
    torch.testing.assert_close(loss, want, rtol=1e-9, atol=1e-9)
    loss.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.torch_only
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_defaults_are_torchs(smoothing):
    logits = torch.tensor(LOGITS, requires_grad=True)
    ours = build({"label_smoothing": smoothing})(LABELS, logits)
    theirs = torch.nn.CrossEntropyLoss(ignore_index=IGNORED, label_smoothing=0.0)
    if smoothing:
        # torch zeroes the ignored class's rows only; its smoothing is over all classes too.
        theirs = torch.nn.CrossEntropyLoss(ignore_index=IGNORED, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs(logits, torch.as_tensor(LABELS)))


@given(
    st.lists(st.floats(-60, 60), min_size=2, max_size=6),
    st.integers(0, 5),
    st.floats(0, 5),
)
@settings(max_examples=60)
def test_one_token_in_closed_form(logits, label, gamma):
    label %= len(logits)
    z = np.array(logits)
    nll = np.log(np.exp(z - z.max()).sum()) + z.max() - z[label]
    want = (-np.expm1(-nll)) ** gamma * nll
    loss = losses.MaskedSparseCategoricalFocalCrossentropy(gamma=gamma)
    got = float(loss(np.array([label]), ops.convert_to_tensor(z[None], "float32")))
    assert got == pytest.approx(want, rel=2e-3, abs=2e-5)


def test_focal_with_gamma_0_is_crossentropy_bit_for_bit():
    logits = ops.convert_to_tensor(LOGITS, "float32")
    focal = losses.MaskedSparseCategoricalFocalCrossentropy(gamma=0.0, ignore_index=0)
    plain = losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)
    assert float(focal(LABELS, logits)) == float(plain(LABELS, logits))


@pytest.mark.torch_only
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_for_a_sure_model(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    losses.MaskedSparseCategoricalFocalCrossentropy(gamma=gamma)(
        np.array([0, 0]), logits
    ).backward()
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(logits.grad[0], torch.zeros(2))


def test_probabilities_give_the_loss_of_their_logits():
    logits = ops.convert_to_tensor(LOGITS, "float32")
    for e in (0.0, 0.1):
        make = losses.MaskedSparseCategoricalCrossentropy
        by_logits = make(ignore_index=0, label_smoothing=e)(LABELS, logits)
        by_probabilities = make(ignore_index=0, label_smoothing=e, from_logits=False)(
            LABELS, ops.softmax(logits)
        )
        assert float(by_logits) == pytest.approx(float(by_probabilities), rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_reduced_in_float32_and_labels_stay_integers(dtype):
    # 31999 is 32000 in bfloat16, which is what Keras's own losses compare with.
    vocab, label = 32_001, 31_999
    logits = np.zeros((1, vocab), "float32")
    logits[0, label] = 8.0
    loss = losses.MaskedSparseCategoricalCrossentropy()
    got = loss(np.array([label]), ops.convert_to_tensor(logits, dtype))
    assert keras.backend.standardize_dtype(got.dtype) == "float32"
    assert float(got) == pytest.approx(np.log(np.exp(8.0) + vocab - 1) - 8.0, rel=1e-6)


def test_nothing_to_count_is_zero():
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, label_smoothing=0.1)
    assert float(loss(np.zeros(3, "int32"), np.ones((3, 4), "float32"))) == 0.0


@pytest.mark.torch_only
def test_nothing_to_count_has_gradient_zero():
    for cls in (
        losses.MaskedSparseCategoricalCrossentropy,
        losses.MaskedSparseCategoricalFocalCrossentropy,
    ):
        logits = torch.randn(3, 4, requires_grad=True)
        cls(ignore_index=0)(np.zeros(3, "int32"), logits).backward()
        assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_a_forbidden_class_is_no_obstacle():
    logits = np.array([[0.0, 0.0, -np.inf]], "float32")
    loss = losses.MaskedSparseCategoricalCrossentropy()
    assert float(loss(np.array([1]), logits)) == pytest.approx(np.log(2))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
@pytest.mark.sampled(2)
def test_any_leading_shape(shape):
    logits = RNG.standard_normal((*shape, VOCAB)).astype("float32")
    labels = RNG.integers(0, VOCAB, shape)
    loss = losses.MaskedSparseCategoricalCrossentropy(reduction="none")
    want = reference.crossentropy(
        torch.tensor(logits.reshape(-1, VOCAB)), torch.tensor(labels.reshape(-1))
    ).reshape(shape)
    np.testing.assert_allclose(
        ops.convert_to_numpy(loss(labels, logits)), want, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(loss(labels[..., None], logits)), want, rtol=1e-5, atol=1e-6
    )


def test_row_weights_broadcast_to_tokens():
    logits = RNG.standard_normal((2, 3, VOCAB)).astype("float32")
    labels = RNG.integers(0, VOCAB, (2, 3))
    loss = losses.MaskedSparseCategoricalCrossentropy()
    rows = np.array([1.0, 3.0])
    tokens = np.repeat(rows[:, None], 3, axis=1)
    assert float(loss(labels, logits, rows)) == pytest.approx(float(loss(labels, logits, tokens)))


def test_keras_masks_leave_tokens_out():
    embedding = keras.layers.Embedding(5, VOCAB, mask_zero=True)
    logits = embedding(np.array([[1, 2, 0, 0]]))
    labels = np.array([[3, 4, 5, 6]])
    loss = losses.MaskedSparseCategoricalCrossentropy()
    without = losses.MaskedSparseCategoricalCrossentropy()(
        labels[:, :2], ops.convert_to_numpy(logits)[:, :2]
    )
    got = ops.convert_to_numpy(loss(labels, logits))
    assert got == pytest.approx(float(without), rel=1e-6)


def test_an_id_outside_the_vocabulary_is_named():
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=-1)
    with pytest.raises(ValueError, match=r"\[0, 9\).*Received: 9 at position \(2,\).*ignore_index"):
        loss(np.array([1, -1, 9]), LOGITS[:3].astype("float32"))
    with pytest.raises(ValueError, match="Received: -100"):
        loss(np.array([1, -1, -100]), LOGITS[:3].astype("float32"))


def test_padding_by_weight_may_hold_any_id():
    loss = losses.MaskedSparseCategoricalCrossentropy()
    got = loss(np.array([1, -1]), LOGITS[:2].astype("float32"), np.array([1.0, 0.0]))
    assert float(got) == pytest.approx(
        float(loss(np.array([1]), LOGITS[:1].astype("float32"))), rel=1e-6
    )


def test_an_id_outside_the_vocabulary_never_counts_silently_in_a_graph():
    model = keras.Sequential([keras.layers.Embedding(4, 5)])
    loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=-1)
    model.compile(loss=loss)
    x, y = np.array([[1, 2]]), np.array([[1, 5]])
    if keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="Received: 5"):
            model.evaluate(x, y, verbose=0)
    else:
        assert np.isnan(model.evaluate(x, y, verbose=0))
    assert np.isfinite(model.evaluate(x, np.array([[1, -1]]), verbose=0))


@pytest.mark.torch_only
def test_an_id_outside_the_vocabulary_is_nan_where_values_cannot_be_read(monkeypatch):
    # As on a GPU, where reading them would wait for the device and indexing them would abort it.
    monkeypatch.setattr("keras_llm.backend.ids.host_values", lambda tensor: None)
    logits = torch.randn(2, 4, requires_grad=True)
    loss = losses.MaskedSparseCategoricalCrossentropy()(torch.tensor([1, 4]), logits)
    assert loss.isnan()


def test_wrong_labels_say_what_to_pass():
    loss = losses.MaskedSparseCategoricalCrossentropy()
    logits = LOGITS.astype("float32")
    with pytest.raises(TypeError, match=r"Labels must be integers.*float32"):
        loss(LABELS.astype("float32"), logits)
    with pytest.raises(ValueError, match=r"shape \(12,\).*Received: shape \(12, 9\).*One-hot"):
        loss(np.eye(VOCAB, dtype="int32")[LABELS], logits)
    with pytest.raises(ValueError, match="sample_weight must have the labels' shape"):
        loss(LABELS, logits, np.ones((12, 2)))
    with pytest.raises(ValueError, match="one number for each of the 9 classes"):
        losses.MaskedSparseCategoricalFocalCrossentropy(alpha=[1.0, 2.0])(LABELS, logits)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(reduction="sum_over_batch_size"), "reduction must be one of"),
        (dict(ignore_index=None), "ignore_index must be an integer"),
        (dict(label_smoothing=1.0), "label_smoothing must be a number in"),
        (dict(z_loss=-1.0), "z_loss must be a number in"),
        (dict(z_loss=1.0, from_logits=False), "needs from_logits=True"),
        (dict(gamma=-1.0), "gamma must be a number in"),
        (dict(gamma=1.0, alpha=[-1.0, 0.0]), "alpha must be"),
    ],
)
@pytest.mark.backend_free
def test_wrong_arguments_are_named(options, message):
    cls = (
        losses.MaskedSparseCategoricalFocalCrossentropy
        if "gamma" in options
        else losses.MaskedSparseCategoricalCrossentropy
    )
    with pytest.raises((ValueError, TypeError), match=message):
        cls(**options)


@pytest.mark.torch_only
def test_a_loss_of_ones_own_has_the_gradient_of_its_formula():
    ours = torch.tensor(LOGITS, requires_grad=True)
    theirs = torch.tensor(LOGITS, requires_grad=True)
    SquaredTemperature(ignore_index=IGNORED)(LABELS, ours).backward()
    counts = torch.as_tensor(LABELS != IGNORED)
    nll = torch.nn.functional.cross_entropy(theirs, torch.as_tensor(LABELS), reduction="none")
    loss = nll**2 + 0.1 * (theirs.logsumexp(-1) - theirs.mean(-1))
    loss[counts].mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
