"""The pass over whole logits against float64 autograd, and what it keeps in memory."""

import gc

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from keras_llm import losses, metrics
from keras_llm.backend.torch import logits_pass, lse_cache, row_kernels, tensors
from keras_llm.token_statistics import reduce_batch, token_statistics
from tests import reference
from tests.backend.cases import cases

pytestmark = pytest.mark.torch_only

TOKENS, VOCAB, IGNORED = 13, 9, -100
RNG = np.random.default_rng(0)
LABELS = torch.tensor(RNG.integers(0, VOCAB, TOKENS))
# The middle chunks of two rows have nothing that counts.
LABELS[[0, *range(5, 9)]] = IGNORED
COUNTS = LABELS != IGNORED
PLAIN = losses.MaskedSparseCategoricalCrossentropy()
SMOOTH = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1, z_loss=0.01)


def make_logits(dtype=torch.float64, requires_grad=True):
    """The same numbers in every dtype: bfloat16's."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(TOKENS, VOCAB, generator=generator)
    return logits.bfloat16().to(dtype).requires_grad_(requires_grad)


def expected(logits, formula=reference.crossentropy):
    """The mean over the tokens that count."""
    return formula(logits[COUNTS], LABELS[COUNTS]).mean()


def smooth(logits, labels):
    """`SMOOTH`'s formula."""
    return reference.crossentropy(logits, labels, 0.1, 0.01)


# A few rows at a time; or a GPU's kernels, under Triton's interpreter.
WAYS = [1, 2, 100, "kernels"]


def take(way, monkeypatch):
    """Has the pass go one of the ways."""
    if way == "kernels":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("with a GPU, Triton's interpreter is off")
        monkeypatch.setattr(row_kernels, "can_launch", lambda tensor: True)
    else:
        monkeypatch.setattr(logits_pass, "chunk_rows", lambda logits: way)


@pytest.fixture(params=WAYS, ids=lambda way: f"chunks of {way}")
def chunks(request, monkeypatch):
    """Each way."""
    take(request.param, monkeypatch)


@pytest.fixture(
    params=[(way, here) for way in WAYS for here in (True, False) if way != "kernels" or not here],
    ids=lambda param: f"chunks of {param[0]} {'on the host' if param[1] else 'elsewhere'}",
)
def chunks_anywhere(request, monkeypatch):
    """Each way with its values at hand, or not, as on a GPU: its kernels do not ask."""
    way, here = request.param
    take(way, monkeypatch)
    monkeypatch.setattr(tensors, "is_on_host", lambda tensor: here)


@pytest.mark.parametrize("loss, formula", list(cases()))
@pytest.mark.quick(11)
def test_loss_and_gradient(loss, formula, chunks_anywhere):
    ours, theirs = make_logits(), make_logits()
    got, want = loss(LABELS, ours), expected(theirs, formula)
    torch.testing.assert_close(got, want)
    (3 * got).backward()
    (3 * want).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_logits_have_float32_statistics_and_a_gradient_rounded_once(dtype, chunks):
    ours, theirs = make_logits(dtype), make_logits()
    got, want = SMOOTH(LABELS, ours), expected(theirs, smooth)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)
    got.backward()
    want.backward()
    assert ours.grad.dtype == dtype
    error = (ours.grad.double() - theirs.grad).abs()
    half_a_step = torch.finfo(dtype).eps / 2
    if dtype == torch.bfloat16 and row_kernels.can_launch(ours):
        half_a_step *= 2  # the interpreter cuts the digits that bfloat16 has not
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert (error <= 1.01 * half_a_step * theirs.grad.abs() + 1e-7 + smallest).all()


def test_a_sure_model_still_learns_in_bfloat16():
    # p - 1 is -0.001 here, which is 0 once p is rounded.
    logits = torch.tensor([[6.90625, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    PLAIN(torch.tensor([0]), logits).backward()
    want = torch.tensor(-1 / (1 + np.exp(6.90625)), dtype=torch.bfloat16)
    assert logits.grad[0, 0] == want


def test_a_loss_scale_saves_small_float16_gradients():
    ours, theirs = make_logits(torch.float16), make_logits()
    (PLAIN(LABELS, ours) * 1e-9 * 2.0**24).backward()
    (expected(theirs) * 1e-9 * 2.0**24).backward()
    assert ours.grad.any()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-2, atol=1e-7)


def test_underflow_is_no_special_case():
    # The other class's share is 2e-42 in the first row, and 0 in the second.
    ours = torch.tensor([[96.0, 0.0], [200.0, 0.0]], requires_grad=True)
    theirs = ours.detach().double().requires_grad_()
    labels = torch.tensor([1, 0])
    PLAIN(labels, ours).backward()
    F.cross_entropy(theirs, labels).backward()
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=0, atol=1e-7)


def test_large_logits_cost_no_digits():
    logits = 1e4 + make_logits(torch.float32, requires_grad=False)
    want = F.cross_entropy(logits.double(), LABELS)
    torch.testing.assert_close(PLAIN(LABELS, logits).double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "view",
    [
        lambda z: z.T.contiguous().T,
        lambda z: z[:, None].expand(TOKENS, 2, VOCAB)[:, 1],
        lambda z: torch.cat([z, z], dim=1)[:, VOCAB:],
        lambda z: torch.stack([z, z])[1],
    ],
    ids=["columns first", "expanded", "half of the columns", "half of the rows"],
)
def test_logits_of_any_layout(view, chunks):
    ours, theirs = make_logits(), make_logits()
    SMOOTH(LABELS, view(ours)).backward()
    expected(view(theirs), smooth).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


def test_next_token_labels_by_shifting():
    logits = torch.randn(2, 5, VOCAB, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor(RNG.integers(0, VOCAB, (2, 5)))
    PLAIN(ids[:, 1:], logits[:, :-1]).backward()
    theirs = logits.detach().clone().requires_grad_()
    F.cross_entropy(theirs[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    torch.testing.assert_close(logits.grad, theirs.grad)


def test_no_tokens_at_all():
    logits = torch.zeros(0, VOCAB, requires_grad=True)
    loss = PLAIN(torch.zeros(0, dtype=torch.long), logits)
    loss.backward()
    assert loss == 0.0
    assert logits.grad.shape == (0, VOCAB)


def test_forbidden_classes():
    ours = make_logits().detach()
    ours[:, 3] = -torch.inf
    labels = torch.where(LABELS == 3, 4, LABELS)
    theirs = ours.clone().requires_grad_()
    ours.requires_grad_()
    focal = losses.MaskedSparseCategoricalFocalCrossentropy()
    focal(labels, ours).backward()
    reference.focal(theirs[COUNTS], labels[COUNTS], 2.0).mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_ignored_rows_may_hold_anything(chunks):
    logits = make_logits().detach()
    logits[~COUNTS] = torch.nan
    logits.requires_grad_()
    loss = PLAIN(LABELS, logits)
    loss.backward()
    torch.testing.assert_close(loss, expected(make_logits()))
    assert not logits.grad[~COUNTS].any()
    assert logits.grad.isfinite().all()


def test_weights_and_a_parameter_of_ones_own_are_differentiated_too():
    class Tempered(losses.TokenLoss):
        exponent = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

        def token_loss(self, nll, lse, mean_logit):
            return nll**self.exponent

    loss, weights = Tempered(), torch.rand(TOKENS, dtype=torch.float64, requires_grad=True)
    got = loss(LABELS, make_logits(), weights)
    nll = reference.crossentropy(make_logits()[COUNTS], LABELS[COUNTS])
    w = weights[COUNTS]
    want = (w * nll**loss.exponent).sum() / w.sum()
    for mine, theirs in zip(
        torch.autograd.grad(got, (weights, loss.exponent)),
        torch.autograd.grad(want, (weights, loss.exponent)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


class TestAutograd:
    def test_logits_may_be_used_again(self):
        ours, theirs = make_logits(), make_logits()
        (PLAIN(LABELS, ours) + SMOOTH(LABELS, ours) * ours.square().mean()).backward()
        (expected(theirs) + expected(theirs, smooth) * theirs.square().mean()).backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)

    def test_a_second_backward_gives_the_same_again(self):
        logits = make_logits()
        loss = PLAIN(LABELS, logits)
        loss.backward(retain_graph=True)
        first = logits.grad.clone()
        loss.backward()
        torch.testing.assert_close(logits.grad, 2 * first)

    def test_the_logits_are_left_as_they_were(self):
        logits = make_logits()
        PLAIN(LABELS, logits).backward()
        assert torch.equal(logits, make_logits())

    def test_logits_written_to_before_the_backward_pass_are_refused(self):
        logits = make_logits() * 1
        loss = PLAIN(LABELS, logits)
        logits += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.parametrize("loss", [PLAIN, SMOOTH], ids=["plain", "smooth"])
    def test_a_second_derivative_is_right(self, loss):
        # A gradient penalty: the norm of the gradient is part of what is minimised.
        ours, theirs = make_logits(), make_logits()
        options = (loss.label_smoothing, loss.z_loss)
        (first,) = torch.autograd.grad(loss(LABELS, ours), ours, create_graph=True)
        want = expected(theirs, lambda *a: reference.crossentropy(*a, *options))
        (wanted,) = torch.autograd.grad(want, theirs, create_graph=True)
        first.square().sum().backward()
        wanted.square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)

    @pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
    def test_function_transforms_and_compilers_take_the_other_path(self, monkeypatch):
        monkeypatch.setattr(logits_pass.LogitsPass, "apply", None)
        logits, theirs = make_logits().detach(), make_logits()
        expected(theirs).backward()

        def loss(logits):
            return PLAIN(LABELS, logits)

        torch.testing.assert_close(torch.func.grad(loss)(logits), theirs.grad)
        both = torch.func.vmap(loss)(torch.stack([logits, logits]))
        torch.testing.assert_close(both, expected(theirs).detach().expand(2))
        compiled = torch.compile(loss, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(logits), expected(theirs).detach())
        for mode in ("real", "fake"):
            graph = make_fx(lambda *batch: PLAIN(*batch), tracing_mode=mode)(LABELS, logits)
            torch.testing.assert_close(graph(LABELS, logits), expected(theirs).detach())


class CountLargeTensors(TorchDispatchMode):
    """How many new tensors are at least as large as the logits, while it lasts."""

    def __init__(self, logits):
        super().__init__()
        self.size, self.known, self.count = logits.nbytes, {logits.untyped_storage().data_ptr()}, 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        results = operation(*arguments, **(options or {}))
        for tensor in keras.tree.flatten(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.size:
                where = tensor.untyped_storage().data_ptr()
                self.count += where not in self.known
                self.known.add(where)
        return results


class TestMemory:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_gradient_is_the_one_tensor_of_the_logits_size(self, dtype, monkeypatch):
        monkeypatch.setattr(logits_pass, "chunk_rows", lambda logits: 2)
        logits = make_logits(dtype)
        for loss in (PLAIN, SMOOTH, losses.MaskedSparseCategoricalFocalCrossentropy()):
            with CountLargeTensors(logits) as large:
                loss(LABELS, logits).backward()
            assert large.count == 1
            logits.grad = None

    def test_metrics_and_evaluation_make_none(self, monkeypatch):
        monkeypatch.setattr(logits_pass, "chunk_rows", lambda logits: 2)
        logits = make_logits(torch.bfloat16)
        for alone in (True, False):
            with CountLargeTensors(logits) as large, torch.no_grad():
                if not alone:
                    assert not SMOOTH(LABELS, logits).requires_grad
                metrics.Perplexity().update_state(LABELS, logits)
                metrics.MaskedTokenAccuracy().update_state(LABELS, logits)
                metrics.MaskedTokenAccuracy(top_k=3).update_state(LABELS, logits)
            assert large.count == 0


@pytest.mark.parametrize("here", [True, False], ids=["on the host", "elsewhere"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_model_that_has_diverged_is_never_right(top_k, here, monkeypatch):
    monkeypatch.setattr(tensors, "is_on_host", lambda tensor: here)
    logits = torch.full((TOKENS, VOCAB), torch.nan)
    assert token_statistics(reduce_batch(LABELS, logits), top_k=top_k).correct == 0


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.quick(5)
def test_correct_guesses(top_k, chunks_anywhere):
    # Rounded, so that many logits are equal: then the lowest id goes first, as in a stable sort.
    logits = make_logits(torch.float32, requires_grad=False).round()
    rows = reduce_batch(LABELS, logits)
    best = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    want = (best == LABELS[:, None]).any(1)[COUNTS].sum()
    assert token_statistics(rows, top_k=top_k).correct == want


class TestSharing:
    @pytest.fixture(autouse=True)
    def count(self, monkeypatch):
        """Counts the reductions over the vocabulary."""
        self.reductions, apply = 0, logits_pass.LogitsPass.apply

        def counted(*arguments):
            self.reductions += 1
            return apply(*arguments)

        monkeypatch.setattr(logits_pass.LogitsPass, "apply", counted)

    def check(self, logits, reductions, labels=LABELS, weights=None):
        """That a metric of the logits is right, and how many reductions there were so far."""
        metric = metrics.Perplexity()
        metric.update_state(labels, logits, weights)
        weights = torch.ones(TOKENS) if weights is None else weights
        nll = F.cross_entropy(logits.detach().double(), labels, reduction="none")
        want = torch.exp((nll * weights).sum() / (weights * (labels != IGNORED)).sum())
        assert float(metric.result()) == pytest.approx(float(want), rel=1e-6)
        assert self.reductions == reductions

    def test_a_metric_finds_what_the_loss_found(self):
        logits = make_logits(torch.float32)
        PLAIN(LABELS, logits).backward()
        self.check(logits, 1)
        self.check(logits.detach(), 1)
        # Other labels of the same tokens need no other reduction.
        self.check(logits, 1, torch.where(COUNTS, (LABELS + 1) % VOCAB, IGNORED))

    def test_other_logits_are_reduced_again(self):
        logits = make_logits(torch.float32, requires_grad=False)
        PLAIN(LABELS, logits)
        logits[0] += 1
        logits[-1] *= 2
        self.check(logits, 2)
        self.check(logits.flip(1), 3)
        # The same storage, seen otherwise.
        PLAIN(LABELS, logits)
        self.check(logits.view(VOCAB, TOKENS).T, 5)

    def test_tokens_that_the_loss_left_out_are_reduced_again(self):
        logits = make_logits(torch.float32)
        PLAIN(LABELS, logits, (torch.arange(TOKENS) < 5).float())
        self.check(logits, 2)

    def test_the_loss_never_looks_and_metrics_leave_nothing(self):
        # As where a CUDA graph writes into the same tensor, again and again, unseen by PyTorch.
        logits = make_logits(torch.float32, requires_grad=False)
        for turn in range(3):
            self.check(logits, turn + 1)
            logits.data.add_(torch.randn(TOKENS, VOCAB))
        for _ in range(2):
            loss = PLAIN(LABELS, logits)
            torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS))
            logits.data.add_(torch.randn(TOKENS, VOCAB))

    def test_nothing_outlives_the_logits(self):
        gc.collect()
        before = len(lse_cache._entries)
        logits = make_logits(torch.float32)
        loss = PLAIN(LABELS, logits * 1)
        assert len(lse_cache._entries) == before + 1
        del loss
        gc.collect()
        assert len(lse_cache._entries) == before

    def test_inference_tensors_do_not_know_whether_they_were_written_to(self):
        with torch.inference_mode():
            logits = make_logits(torch.float32, requires_grad=False) * 1
            PLAIN(LABELS, logits)
            self.check(logits, 2)

    def test_a_plain_keras_model_reduces_once_a_step(self):
        model = keras.Sequential([keras.layers.Embedding(VOCAB, 4), keras.layers.Dense(VOCAB)])
        model.compile(
            optimizer="sgd",
            loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
            metrics=[metrics.Perplexity(0), metrics.MaskedTokenAccuracy(1, 0)],
        )
        x, y = RNG.integers(0, VOCAB, (2, 4, 5))
        # Before its first batch Keras tries the loss and the metrics on tensors without values.
        model.evaluate(x, y, verbose=0)
        logits = torch.tensor(keras.ops.convert_to_numpy(model(x))).double()
        self.reductions = 0
        logs = model.train_on_batch(x, y, return_dict=True)
        assert self.reductions == 1
        want = F.cross_entropy(logits.flatten(0, 1), torch.tensor(y).flatten(), ignore_index=0)
        assert logs["perplexity"] == pytest.approx(float(want.exp()), rel=1e-6)
        correct = (logits.argmax(-1).numpy() == y)[y != 0].mean()
        assert logs["masked_token_accuracy"] == pytest.approx(correct)
        model.evaluate(x, y, verbose=0)
        assert self.reductions == 2
