"""The metrics: over the epoch's tokens, whatever the batches, ids compared as integers."""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from keras_llm import metrics
from keras_llm.metrics.exact_sums import ExactSums

RNG = np.random.default_rng(0)
VOCAB = 11
LOGITS = RNG.standard_normal((6, 5, VOCAB)).astype("float32")
LABELS = RNG.integers(0, VOCAB, (6, 5))
COUNTS = LABELS != 0
BYTES = RNG.integers(0, 5, VOCAB)


def nll():
    """Per token, in float64, from torch."""
    rows = torch.tensor(LOGITS, dtype=torch.float64).reshape(-1, VOCAB)
    labels = torch.tensor(LABELS).reshape(-1)
    losses = torch.nn.functional.cross_entropy(rows, labels, reduction="none")
    return losses.reshape(LABELS.shape).numpy()


def top(k):
    """Whether the label is among torch's `k` best, per token."""
    best = torch.tensor(LOGITS).topk(k, dim=-1).indices
    return (best == torch.tensor(LABELS)[..., None]).any(-1).numpy()


def bits_per_byte():
    counts = COUNTS & (BYTES[LABELS] > 0)
    return nll()[counts].sum() / np.log(2) / BYTES[LABELS][counts].sum()


CASES = [
    (lambda: metrics.Perplexity(ignore_index=0), lambda: np.exp(nll()[COUNTS].mean())),
    (lambda: metrics.MaskedTokenAccuracy(ignore_index=0), lambda: top(1)[COUNTS].mean()),
    (lambda: metrics.MaskedTokenAccuracy(top_k=4, ignore_index=0), lambda: top(4)[COUNTS].mean()),
    (lambda: metrics.BitsPerByte(BYTES, ignore_index=0), bits_per_byte),
]


@pytest.mark.parametrize("splits", [[6], [1, 2, 3], [5, 1], [1] * 6], ids=str)
@pytest.mark.parametrize("make, expected", CASES, ids=["perplexity", "top 1", "top 4", "bytes"])
@pytest.mark.sampled(5)
def test_equals_torch_over_the_whole_epoch(make, expected, splits):
    metric, start = make(), 0
    for size in splits:
        metric.update_state(LABELS[start : start + size], LOGITS[start : start + size])
        start += size
    assert float(metric.result()) == pytest.approx(expected(), rel=1e-6)
    metric.reset_state()
    metric.update_state(LABELS, LOGITS)
    assert float(metric.result()) == pytest.approx(expected(), rel=1e-6)


def test_weights_weigh():
    weights = RNG.random(LABELS.shape)
    metric = metrics.Perplexity(ignore_index=0)
    metric.update_state(LABELS, LOGITS, weights)
    w = weights * COUNTS
    assert float(metric.result()) == pytest.approx(np.exp((nll() * w).sum() / w.sum()), rel=1e-6)


@pytest.mark.parametrize("top_k, expected", [(1, 0.2), (2, 0.4)])
def test_equal_logits_are_as_good_as_a_guess(top_k, expected):
    # A model that has learnt nothing: argmax says id 0 every time, and so scores one in five.
    metric = metrics.MaskedTokenAccuracy(top_k=top_k)
    metric.update_state(np.arange(5), np.zeros((5, 5), "float32"))
    assert float(metric.result()) == pytest.approx(expected)


def test_neighbouring_ids_in_bfloat16_are_different_ids():
    # Keras's own accuracy casts ids to the logits' dtype, in which these four pairs are equal.
    labels = np.array([31999, 30001, 29999, 28001])
    logits = np.zeros((4, 32_001), "float32")
    logits[np.arange(4), [32000, 30000, 30000, 28000]] = 5.0
    metric = metrics.MaskedTokenAccuracy()
    metric.update_state(labels, ops.convert_to_tensor(logits, "bfloat16"))
    assert float(metric.result()) == 0.0


def test_nothing_to_count():
    for metric, value in ((metrics.Perplexity(0), 1.0), (metrics.MaskedTokenAccuracy(1, 0), 0.0)):
        metric.update_state(np.zeros(3, "int32"), np.zeros((3, 4), "float32"))
        assert float(metric.result()) == value


@pytest.mark.torch_only
def test_no_gradient_graph_is_built():
    logits = torch.tensor(LOGITS, requires_grad=True)
    for make, _ in CASES:
        metric = make()
        metric.update_state(LABELS, logits)
        assert not any(variable.value.requires_grad for variable in metric.variables)


def test_counting_goes_on_after_float32_would_stop():
    metric = keras.metrics.Metric()
    sums = ExactSums(metric, 1)
    sums.total.assign(np.array([2.0**24], "float32"))
    for _ in range(1000):
        sums.add(1.0)
    parts = [ops.convert_to_numpy(v)[0].astype("float64") for v in metric.variables]
    assert sum(parts) == 2**24 + 1000


@pytest.mark.jax_only
def test_counting_goes_on_under_jit():
    import jax

    metric = keras.metrics.Metric()
    sums = ExactSums(metric, 1)

    @jax.jit
    def many(values):
        def one(_, values):
            with keras.StatelessScope(zip(metric.variables, values, strict=True)) as scope:
                sums.add(1.0)
            return [scope.get_current_value(v) for v in metric.variables]

        return jax.lax.fori_loop(0, 1000, one, values)

    start = [np.array([2.0**24], "float32"), np.array([0.0], "float32")]
    assert sum(float(v[0]) for v in many(start)) == 2**24 + 1000


@pytest.mark.backend_free
def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="top_k must be a positive integer"):
        metrics.MaskedTokenAccuracy(top_k=0)
    with pytest.raises(ValueError, match="token_bytes must be a vector"):
        metrics.BitsPerByte([0.5, 1.0])
    with pytest.raises(ValueError, match=r"11 ids of the logits. Received: 2 numbers"):
        metrics.BitsPerByte([1, 2]).update_state(LABELS, LOGITS)
