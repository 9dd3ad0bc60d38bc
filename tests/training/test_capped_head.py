"""A head with a soft cap trains as by whole logits in float64, and as Gemma 2 does."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models
from keras_llm.backend.head_matrix import HeadMatrix
from keras_llm.layers import VocabularyHead
from keras_llm.training import Step

BACKEND = keras.backend.backend()
VOCAB, PAD, CAP = 23, 0, 1.3
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (14, 6))
Y = np.where(RNG.random(X.shape) < 0.4, PAD, RNG.integers(1, VOCAB, X.shape))


def build(seen, **arguments):
    keras.utils.set_random_seed(0)
    backbone = keras.layers.Embedding(VOCAB, 8)
    model = models.LanguageModel(backbone, VocabularyHead(VOCAB, 8, use_bias=True, soft_cap=CAP))
    model(X)
    # Logits of 2 and more, which the cap bends.
    model.set_weights([RNG.normal(size=w.shape) for w in model.get_weights()])
    loss = losses.MaskedSparseCategoricalCrossentropy(PAD, label_smoothing=0.1, z_loss=0.01)
    model.compile(loss=loss, metrics=[metrics.Perplexity(), *seen], **arguments)
    return model


def in_float64(weights, windows):
    """The weights after an update by SGD from the mean loss of each window of rows."""
    leaves = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in weights]
    for window in windows:
        logits, labels = logits_of(*leaves, X[window]), torch.tensor(Y[window]).flatten()
        smoothed = torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=PAD, label_smoothing=0.1
        )
        loss = smoothed + 0.01 * (logits.logsumexp(1)[labels != PAD] ** 2).mean()
        gradients = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf -= 0.5 * gradient
    return [leaf.detach() for leaf in leaves]


def logits_of(table, kernel, bias, ids):
    """Whole logits, a row for each token."""
    z = table[torch.tensor(ids)] @ kernel + bias
    return (CAP * torch.tanh(z / CAP)).flatten(0, 1)


def check(model, passes, steps=None, has_logits=False):
    """Fits the model on batches of 4, 4, 4 and 2 rows and evaluates it; float64 does the same."""
    starts = [slice(0, 12), slice(12, 14)] if steps else [slice(i, i + 4) for i in (0, 4, 8, 12)]
    want = in_float64(model.get_weights(), starts)
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    assert bool(passes) != has_logits
    for got, expected in zip(model.get_weights(), want, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-6)
    logs = model.evaluate(X, Y, batch_size=4, verbose=0, return_dict=True)
    nll = torch.nn.functional.cross_entropy(
        logits_of(*want, X), torch.tensor(Y).flatten(), ignore_index=PAD
    )
    assert logs["perplexity"] == pytest.approx(float(nll.exp()), rel=1e-5)


@pytest.fixture
def passes(monkeypatch):
    """How many batches took a pass without logits, or were traced to."""
    counted, pass_of = [], Step.counted
    monkeypatch.setattr(Step, "counted", lambda *a: counted.append(1) or pass_of(*a))
    return counted


@pytest.mark.parametrize(
    "steps, rows, has_logits",
    [
        (3, 1, False),
        pytest.param(None, 3, False, marks=pytest.mark.torch_only),
        pytest.param(None, None, False, marks=pytest.mark.torch_only),
        pytest.param(3, 1, True, marks=pytest.mark.torch_only),
    ],
)
def test_any_split_is_one_batch_of_whole_logits(steps, rows, has_logits, passes):
    # Two counts of guesses need whole logits.
    seen = [metrics.MaskedTokenAccuracy(k, name=f"top_{k}") for k in (1, 5)]
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=steps)
    model = build(seen if has_logits else seen[:1], optimizer=optimizer, micro_batch_size=rows)
    check(model, passes, steps, has_logits)


@pytest.mark.torch_only
def test_one_graph(passes, monkeypatch):
    from keras_llm.training.torch import compile_policy

    monkeypatch.setattr(compile_policy, "compiled", lambda module: module)
    model = build([], optimizer=keras.optimizers.SGD(0.5), jit_compile=True)
    check(model, passes)
    assert any(model.step.graphs.passes.graphs.values())


def test_the_head_hands_on_its_matrix_and_cap():
    model = build([], optimizer="sgd")
    head = model.head_matrix()
    assert isinstance(head, HeadMatrix) and head.soft_cap == CAP
    assert (tuple(head.kernel.shape), tuple(head.bias.shape)) == ((8, VOCAB), (VOCAB,))
    plain = models.LanguageModel(keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB))
    plain(X)
    assert plain.head_matrix().soft_cap is None
    again = type(model).from_config(model.get_config())
    assert again.head.soft_cap == CAP


@pytest.mark.torch_only
def test_gemma_2_has_the_same_loss_and_gradients():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from keras_llm.backend import vocabulary_pass

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    gemma = Gemma2ForCausalLM(Gemma2Config(vocab_size=61, **sizes, **heads)).eval()
    assert gemma.config.final_logit_softcapping == 30
    # On its own hidden vectors a new model would not show the cap.
    with torch.no_grad():
        gemma.lm_head.weight.normal_()
    hidden = (10 * torch.randn(3, 9, 16)).requires_grad_()
    gemma.lm_head.register_forward_pre_hook(lambda module, given: (hidden,))
    ids = torch.randint(0, 61, (3, 9))
    labels = torch.where(torch.rand(3, 9) < 0.3, -100, ids)
    want = gemma(ids, labels=labels).loss
    wanted = torch.autograd.grad(want, (hidden, gemma.lm_head.weight))

    # It compares each position with the next label.
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
    counts = (targets != -100).float()
    rows = hidden.flatten(0, 1), gemma.lm_head.weight.T, None, targets.clamp(0), counts
    formula = losses.MaskedSparseCategoricalCrossentropy().formula
    options = {"training": True, "soft_cap": 30.0}
    loss, *_ = vocabulary_pass(*rows, formula, 1 / counts.sum(), 1, **options)
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    gradients = torch.autograd.grad(loss, (hidden, gemma.lm_head.weight))
    for got, expected in zip(gradients, wanted, strict=True):
        assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()
