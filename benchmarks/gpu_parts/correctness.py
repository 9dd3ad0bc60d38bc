"""The device's numbers against float64, and what makes the host wait."""

import torch
import torch.nn.functional as F

from gpu_parts import waits

# tokens, d_model, vocabulary: one that no tile divides, a small one, a large one
SHAPES = [(2048, 768, 50_257), (777, 64, 1_003), (512, 256, 128_256)]
SMALL_SHAPES = [(40, 16, 103)]
# Relative to the reference's norm: numbers of each token, gradients.
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-2, 1e-2)}
IGNORED = -100


def run(rows):
    check(rows)
    waits.run(rows)


def check(rows):
    torch.manual_seed(0)
    for shape in SMALL_SHAPES if rows.small else SHAPES:
        for dtype in TOLERANCES:
            for name, make in cases(shape[2]).items():
                label = f"{name}, {' x '.join(map(str, shape))}, {str(dtype)[6:]}"
                with rows.side(label):
                    rows.add(label, **check_pass(shape, dtype, *make, rows.device))
    whole = SMALL_SHAPES[0] if rows.small else SHAPES[0]
    for dtype in TOLERANCES:
        for name, check in WHOLE_LOGITS.items():
            label = f"whole logits: {name}, {str(dtype)[6:]}"
            with rows.side(label):
                rows.add(label, **check(whole, dtype, rows.device))
    with rows.side("nothing counts"):
        rows.add("nothing counts", **check_nothing_counts(rows.device))


def cases(vocab):
    """Name: our loss, the same on float64 logits by PyTorch, top_k, whether there is a bias."""
    from keras_llm import losses

    class Invented(losses.TokenLoss):
        def token_loss(self, nll, lse, mean_logit):
            return nll**2 / 8 + 0.1 * lse * mean_logit

    def cross_entropy(logits, labels, smoothing=0.0):
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

    def z(logits, factor):
        return factor * logits.logsumexp(1) ** 2

    def focal(logits, labels, gamma, alpha, smoothing=0.0):
        doubt = -torch.expm1(-cross_entropy(logits, labels))
        return alpha * doubt**gamma * cross_entropy(logits, labels, smoothing)

    def invented(logits, labels):
        nll = cross_entropy(logits, labels)
        return nll**2 / 8 + 0.1 * logits.logsumexp(1) * logits.mean(1)

    class_weights = (1 + torch.arange(vocab) % 7) / 7
    ce, focal_ce = (
        losses.MaskedSparseCategoricalCrossentropy,
        losses.MaskedSparseCategoricalFocalCrossentropy,
    )
    return {
        "cross entropy": (ce(), cross_entropy, 1, False),
        "cross entropy, bias, top 5": (ce(), cross_entropy, 5, True),
        "smoothing 0.1": (
            ce(label_smoothing=0.1),
            lambda x, t: cross_entropy(x, t, 0.1),
            1,
            True,
        ),
        "z-loss 0.01": (ce(z_loss=0.01), lambda x, t: cross_entropy(x, t) + z(x, 0.01), 0, False),
        "focal 2, alpha 0.25": (
            focal_ce(2.0, 0.25),
            lambda x, t: focal(x, t, 2.0, 0.25),
            1,
            False,
        ),
        "focal 0.5, class weights, smoothing, z": (
            focal_ce(0.5, class_weights.tolist(), label_smoothing=0.1, z_loss=0.01),
            lambda x, t: focal(x, t, 0.5, class_weights.to(x)[t], 0.1) + z(x, 0.01),
            3,
            True,
        ),
        "invented": (Invented(), invented, 1, True),
    }


def check_pass(shape, dtype, loss, reference, top_k, has_bias, device):
    """Distances of all that the pass returns from float64, and whether they are small."""
    from keras_llm.backend.torch.vocabulary_pass import vocabulary_pass

    hidden, kernel, bias, labels, weights = make_inputs(*shape, dtype, device)
    inputs = [hidden, kernel, *([bias] if has_bias else [])]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    logits = wide[0] @ wide[1] + (wide[2] if has_bias else 0)
    nll = F.cross_entropy(logits, labels, reduction="none")
    counts, many = weights != 0, weights.double()
    total = (reference(logits, labels)[counts] * many[counts]).sum()
    scale = 1.0 / float(many.sum())
    # A factor from above, as of a loss scale.
    (3.0 * scale * total).backward()
    with torch.no_grad():
        rank = (logits > logits.gather(1, labels[:, None])).sum(1)
        sums = [total, (nll * many).sum(), (many * (rank < top_k)).sum(), many.sum()]
        nll = nll * counts
    expected = [x.grad for x in wide]
    del logits, wide

    objective, found_sums, found_nll = vocabulary_pass(
        hidden, kernel, bias if has_bias else None, labels, weights, loss.formula, scale, top_k,
        training=True,
    )  # fmt: skip
    (3.0 * objective).backward()
    names = ["d_hidden", "d_kernel", "d_bias"][: len(inputs)]
    gradients = {
        name: distance(x.grad, y) for name, x, y in zip(names, inputs, expected, strict=True)
    }
    numbers = {
        "loss": distance(found_sums[0], sums[0]),
        "objective": distance(objective, sums[0] * scale),
        "nll_sum": distance(found_sums[1], sums[1]),
        # A token whose nll is next to nothing counts like any other here.
        "nll": float((found_nll.double() * counts - nll).norm() / nll.norm()),
        "tokens": distance(found_sums[3], sums[3]),
    }
    hits = abs(float(found_sums[2]) - float(sums[2])) * scale
    small, smaller = TOLERANCES[dtype]
    fine = max(numbers.values()) <= small and max(gradients.values()) <= smaller
    fine = fine and hits <= (1e-3 if dtype == torch.float32 else 1e-2)
    worst = max(numbers, key=numbers.get)
    return {
        "ok": fine,
        "numbers": max(numbers.values()),
        "worst": worst,
        **{name: gradients.get(name) for name in ("d_hidden", "d_kernel", "d_bias")},
        "accuracy": hits,
    }


def distance(found, expected):
    """Norm of the difference over the norm of what is expected; NaN is never small."""
    found, expected = found.detach().double(), expected.detach().double()
    value = float((found - expected).norm() / expected.norm().clamp(min=1e-300))
    return float("inf") if value != value else value


def make_inputs(tokens, d_model, vocab, dtype, device):
    """Rows that are sure and rows that are not, a third of them of weight 0."""
    labels = torch.randint(vocab, (tokens,), device=device)
    kernel = torch.randn(d_model, vocab, device=device) / d_model**0.5
    toward = F.normalize(kernel, dim=0).T[labels]
    sure = 15 * torch.rand(tokens, 1, device=device)
    hidden = torch.randn(tokens, d_model, device=device) + sure * toward
    bias = torch.randn(vocab, device=device) / 2
    weights = (0.5 + torch.rand(tokens, device=device)) * (
        torch.rand(tokens, device=device) > 1 / 3
    )
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, kernel, bias)]
    return *leaves, labels, weights


def check_whole(loss, reference):
    def check(shape, dtype, device):
        hidden, kernel, _, labels, _ = make_inputs(*shape, dtype, device)
        logits = (hidden @ kernel).detach().requires_grad_()
        wide = logits.detach().double().requires_grad_()
        labels = labels.masked_fill(torch.rand(len(labels), device=device) < 0.3, IGNORED)
        expected = reference(wide, labels)
        found = loss()(labels, logits)
        expected.backward()
        found.backward()
        numbers = distance(found, expected)
        gradient = distance(logits.grad, wide.grad)
        small, smaller = TOLERANCES[dtype]
        return {
            "ok": numbers <= small and gradient <= smaller,
            "loss": numbers,
            "d_logits": gradient,
        }

    return check


def our_cross_entropy():
    from keras_llm.losses import MaskedSparseCategoricalCrossentropy

    return MaskedSparseCategoricalCrossentropy(IGNORED, label_smoothing=0.1)


def our_divergence():
    from keras_llm.losses import MaskedKLDivergence

    loss = MaskedKLDivergence(temperature=2.0, target_from_logits=True, ignore_index=IGNORED)
    return lambda labels, logits: loss((teacher(logits), labels), logits)


def teacher(logits):
    """Halves are exact in every dtype."""
    return logits.detach().roll(1, dims=1) / 2


def divergence(logits, labels):
    target = F.log_softmax(teacher(logits) / 2, 1)
    terms = F.kl_div(F.log_softmax(logits / 2, 1), target, reduction="none", log_target=True)
    return 4 * terms.sum(1)[labels != IGNORED].mean()


WHOLE_LOGITS = {
    "smoothing 0.1": check_whole(
        our_cross_entropy,
        lambda x, t: F.cross_entropy(x, t, ignore_index=IGNORED, label_smoothing=0.1),
    ),
    "KL divergence": check_whole(our_divergence, divergence),
}


def check_nothing_counts(device):
    """A batch of padding: a loss of 0 and gradients of 0, not NaN."""
    from keras_llm.backend.torch.vocabulary_pass import vocabulary_pass
    from keras_llm.losses import MaskedSparseCategoricalCrossentropy

    hidden, kernel, bias, labels, weights = make_inputs(64, 32, 1003, torch.bfloat16, device)
    formula = MaskedSparseCategoricalCrossentropy().formula
    objective, sums, _ = vocabulary_pass(
        hidden, kernel, bias, labels, weights * 0, formula, 1.0, 1, training=True
    )
    objective.backward()
    largest = max(
        float(x.detach().abs().max()) for x in (objective, *sums, hidden.grad, kernel.grad)
    )
    return {"ok": largest == 0.0, "largest": largest}
