"""The guides run, and each of their numbers is compared with one from here.

The ninth and the tenth need PyTorch, the others run with every backend.

Expected numbers are closed forms, or a float64 training in PyTorch from the guide's initial
weights. What a guide's file shows below its code is what PyTorch prints.
"""

import math
import re
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import keras_llm
from tests.models.llama import to_llama

pytestmark = pytest.mark.slow

GUIDES = Path(__file__).parent.parent / "examples" / "guides"
NAMES = sorted(path.name for path in GUIDES.glob("[0-9]*_*.py"))
TOOL = runpy.run_path(str(GUIDES / "update.py"))
LN5 = math.log(5)
ON_TORCH = keras.backend.backend() == "torch"


def source(name):
    return (GUIDES / name).read_text()


@pytest.fixture
def run(monkeypatch):
    """Runs a guide: returns its variables, and the numbers that it prints, as text."""
    for name, value in TOOL["FIXED"].items():
        if name != "KERAS_BACKEND":
            monkeypatch.setenv(name, value)

    def run(name):
        names = {"__name__": "__main__"}
        outputs = TOOL["run"](source(name), str(GUIDES / name), names)
        if ON_TORCH:
            cells = [text for marker, text in TOOL["cells"](source(name)) if marker == TOOL["CODE"]]
            for cell, output in zip(cells, outputs, strict=True):
                check_same_text(TOOL["code_and_output"](cell)[1], output)
        printed = re.findall(r"^(\S.*) = (\S+)$", "".join(outputs), flags=re.MULTILINE)
        assert len(dict(printed)) == len(printed)
        return names, dict(printed)

    return run


NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?"


def check_same_text(shown, printed):
    """The same words and, up to float32's rounding in the last digits, the same numbers."""
    # Keras numbers the models of a process, which other tests have made too.
    printed = re.sub(r"'language_model_\d+'", "'language_model'", printed)
    assert re.split(NUMBER, shown) == re.split(NUMBER, printed)
    for want, got in zip(re.findall(NUMBER, shown), re.findall(NUMBER, printed), strict=True):
        assert float(got) == pytest.approx(float(want), rel=1e-5, abs=1.01 * last_digit(want))


def last_digit(number):
    """What 1 in the last digit of a printed number is worth."""
    mantissa, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def check(printed, expected):
    """Every number that was printed is expected, to its last digit."""
    assert set(printed) == set(expected)
    for name, want in expected.items():
        tolerance = {"rel": 1e-5, "abs": 0.51 * last_digit(printed[name])}
        assert float(printed[name]) == pytest.approx(want, **tolerance), name


def trained(weights, x, y, rows, epochs, optimizer, rate=None, clip=None, token_loss=None):
    """Each epoch of training a table and a matrix: loss and perplexity per token, and the losses of
    the batches.
    """
    weights = [torch.tensor(np.array(w), dtype=torch.float64, requires_grad=True) for w in weights]
    optimizer, steps, history = optimizer(weights), 0, []
    for _ in range(epochs):
        sums, means = np.zeros(3), []
        for first in range(0, len(x), rows):
            inputs, labels = (torch.tensor(a[first : first + rows]) for a in (x, y))
            logits = weights[0][inputs] @ weights[1] + sum(weights[2:])
            log_p, counts = logits.log_softmax(-1), labels != 0
            nll = F.nll_loss(log_p.flatten(0, 1), labels.flatten(), reduction="none")
            nll = nll.view(labels.shape)
            loss = nll if token_loss is None else token_loss(nll, log_p)
            loss, nll = ((each * counts).sum() for each in (loss, nll))
            optimizer.zero_grad()
            (loss / counts.sum()).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(weights, clip)
            for group in optimizer.param_groups if rate else ():
                group["lr"] = rate(steps)
            optimizer.step()
            steps += 1
            sums += [loss.item(), nll.item(), counts.sum().item()]
            means.append((loss / counts.sum()).item())
        history.append((sums[0] / sums[2], math.exp(sums[1] / sums[2]), means))
    return history


def adamw(lr, weight_decay):
    """AdamW that decays no bias."""
    return lambda weights: torch.optim.AdamW(
        [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}],
        lr=lr,
        weight_decay=weight_decay,
    )


def test_1_what_compile_means(run):
    names, printed = run("1_what_compile_means.py")
    history = trained(names["start"], names["x"], names["y"], 1, 60, adamw(0.03, 0.01))
    floor = 4 * math.log(4) / 13
    assert floor < history[-1][0] < floor + 0.001
    check(
        printed,
        {
            "vocab_size": 9,
            "before['loss']": math.log(9),
            "before['perplexity']": 9,
            "history['loss'][0]": math.log(9),
            "history['loss'][-1]": history[-1][0],
            "history['perplexity'][-1]": history[-1][1],
            "4 * np.log(4) / 13": floor,
            "loss.item()": history[-1][0],
        },
    )


def test_2_cross_entropy_and_masking(run):
    names, printed = run("2_cross_entropy_and_masking.py")
    e = math.e
    tokens = [math.log(e**2 + e + 3) - 2, LN5, math.log(e**3 + e + 3)]
    padding = math.log(e**2 + 4) - 2
    history = trained(
        names["start"], names["x"], names["y"], 1, 3, lambda w: torch.optim.SGD(w, lr=1.0)
    )
    means = history[-1][2]
    check(
        printed,
        {
            "per_token[0]": tokens[0],
            "per_token[1]": tokens[1],
            "per_token[2]": tokens[2],
            **dict.fromkeys(("by_hand", "by_loss", "by_torch", "weighted"), sum(tokens) / 3),
            "padding_counts": (sum(tokens) + padding) / 4,
            "divided_by_all": sum(tokens) / 4,
            "sum_of_tokens": sum(tokens),
            "gradient_of_label": (1 / 5 - 1) / 3,
            "gradient_of_another": (1 / 5) / 3,
            "gradient_of_padding": 0,
            "padding_after": 0,
            "padding_before": change_by_padding_before(),
            "padding_before_masked": 0,
            "p_of_padding[-100]": p_of_trained_padding(),
            "p_of_padding[0]": 1 / 5,
            "history['loss'][0]": history[0][0],
            "history['loss'][-1]": history[-1][0],
            "means[0]": means[0],
            "means[1]": means[1],
            "total_loss / tokens": history[-1][0],
            "sum(means) / len(means)": np.mean(means),
        },
    )


def change_by_padding_before():
    """How Hugging Face's Llama, with the guide's weights, changes its logits."""
    model = keras_llm.models.CausalTransformer(5, 8, num_layers=1, num_heads=2, max_length=8)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, weight.shape) for weight in model.weights])
    llama = to_llama(model)
    with torch.no_grad():
        alone, padded = (llama(torch.tensor([ids])).logits for ids in ([1, 2, 3], [0, 0, 1, 2, 3]))
    return (padded[:, 2:] - alone).abs().max().item()


def p_of_trained_padding():
    """Of the 10 labels, 2 are the padding after token 3: gradient descent on its row of logits."""
    z = np.zeros(5)
    for _ in range(50):
        z -= 2 / 10 * (np.exp(z) / np.exp(z).sum() - np.eye(5)[0])
    return (np.exp(z) / np.exp(z).sum())[0]


def test_3_perplexity(run):
    _, printed = run("3_perplexity.py")
    hard = math.log1p(math.exp(8))
    # Seven tokens of logits [8, 0] and 19 of [0, 100], all with the label 1: nll, and lse - mean.
    smoothed = (7 * (0.9 * hard + 0.1 * (hard - 4)) + 19 * 0.1 * 50) / 26
    check(
        printed,
        {
            "no_idea": 8,
            "careful_accuracy": 0.75,
            "bold_accuracy": 0.75,
            "careful_perplexity": (0.6**3 * 0.2) ** -0.25,
            "bold_perplexity": (0.9**3 * 0.001) ** -0.25,
            "float(padding_counts.result())": 0.5,
            "float(token_accuracy.result())": 0,
            "right": math.exp(56 / 26),
            "exp_of_mean_of_means": math.exp(4),
            "mean_of_perplexities": (math.exp(8) + 1) / 2,
            "logs['loss']": 7 * hard / 26,
            "logs['perplexity']": math.exp(7 * hard / 26),
            "np.exp(logs['loss'])": math.exp(7 * hard / 26),
            "smoothed['loss']": smoothed,
            "smoothed['perplexity']": math.exp(7 * hard / 26),
            "tokens": 26,
            "perplexity": math.exp(7 * hard / 26),
        },
    )


def test_4_adamw_and_adafactor(run):
    names, printed = run("4_adamw_and_adafactor.py")
    weights = names["embedding"], names["kernel"], names["bias"]
    history = trained(
        weights,
        names["x"],
        names["y"],
        2,
        10,
        adamw(0.02, 0.1),
        rate=lambda t: 0.02 * min(t / 5, (20 - t) / 15),
    )
    update = 0.999 - 0.01
    check(
        printed,
        {
            **dict.fromkeys(("by_hand", "of_a_large_gradient", "of_a_small_gradient"), update),
            "of_a_matrix": 0.999,
            "of_a_vector": 1,
            "float(schedule(250))": 2.5e-5,
            "float(schedule(500))": 5e-5,
            "float(schedule(5_250))": 2.5e-5,
            "float(schedule(10_000))": 0,
            "bytes_of_state(optimizers.AdamW())": 8,
            "bytes_of_state(optimizers.Adafactor())": 4 * (512 + 512) / 512**2,
            "step": 0.02,
            "first_warmup_step": 2e-6,
            "history['loss'][-1]": history[-1][0],
            "total_loss / len(batches)": history[-1][0],
        },
    )


def test_5_smoothing_and_focal(run):
    names, printed = run("5_smoothing_and_focal.py")
    logits = torch.tensor([2.0, 0, 1, -1, 0.5], dtype=torch.float64)
    teacher = torch.tensor([3.0, 0, 1, 0, 0], dtype=torch.float64)
    label = torch.tensor(0)
    smoothed = F.cross_entropy(logits, label, label_smoothing=0.1).item()
    divergence = 4 * F.kl_div(
        (logits / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="sum"
    )
    easy, hard = 0.1**2 * -math.log(0.9), 0.9**2 * -math.log(0.1)
    entropy = -0.92 * math.log(0.92) - 0.08 * math.log(0.02)
    history = trained(
        (names["embedding"], names["kernel"], names["bias"]),
        names["x"],
        names["y"],
        2,
        20,
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
        token_loss=lambda nll, log_p: (
            0.25 * (1 - torch.exp(-nll)) ** 2 * (0.9 * nll - 0.1 * log_p.mean(-1))
        ),
    )
    loss, perplexity, _ = history[-1]
    check(
        printed,
        {
            "nll": F.cross_entropy(logits, label).item(),
            **dict.fromkeys(("smoothed_by_hand", "smoothed", "smoothed_by_torch"), smoothed),
            "too_sure": 8,
            "least": entropy,
            "entropy": entropy,
            "easy": easy,
            "hard": hard,
            "hard_times_alpha": hard / 4,
            "np.log(0.1) / np.log(0.9)": math.log(0.1) / math.log(0.9),
            "hard / easy": hard / easy,
            **dict.fromkeys(("divergence_by_hand", "divergence"), divergence.item()),
            "history['loss'][-1]": loss,
            "history['perplexity'][-1]": perplexity,
            "loss.item()": loss,
            "perplexity.item()": perplexity,
        },
    )


def test_6_the_training_loop(run):
    names, printed = run("6_the_training_loop.py")
    if not ON_TORCH:
        # An untrained model at first, and then a better one.
        assert set(printed) == {"of_fit[0]", "of_fit[-1]"}
        assert float(printed["of_fit[0]"]) == pytest.approx(math.log(13), abs=0.05)
        assert float(printed["of_fit[-1]"]) < math.log(13) - 0.3
        return
    model = names["new_model"]()
    inputs = {key: ids[:8] for key, ids in names["inputs"].items()}

    def mean_nll():
        log_p = model(inputs).log_softmax(-1)
        labels = torch.tensor(names["labels"][:8], device=log_p.device)
        return F.nll_loss(log_p[labels != 0], labels[labels != 0])

    loss = mean_nll()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = sum((gradient.double() ** 2).sum() for gradient in gradients).sqrt().item()
    with torch.no_grad():
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            weight -= 0.1 * gradient / norm
    # An untrained model; there is something to clip; and the update helps.
    assert loss.item() == pytest.approx(math.log(13), abs=0.05)
    assert norm > 1
    assert mean_nll() < loss - 0.05
    first, last = names["of_loop"][0], names["of_loop"][-1]
    assert last < first - 0.3
    check(
        printed,
        {
            "first_loss.item()": loss.item(),
            "norm.item()": norm,
            "norm_after.item()": 1,
            "loss_after.item()": mean_nll().item(),
            "of_fit[0]": first,
            "of_fit[-1]": last,
            "of_my_step[-1]": last,
            "of_loop[0]": first,
            "of_loop[-1]": last,
        },
    )


def test_7_swap_the_backend(run):
    names, printed = run("7_swap_the_backend.py")
    history = trained(
        (names["embedding"], names["kernel"]),
        names["x"],
        names["y"],
        2,
        8,
        lambda weights: torch.optim.AdamW(weights, lr=0.02, weight_decay=0.1),
        clip=1.0,
    )
    check(
        printed,
        {
            "log_of_v": math.log(7),
            "squared": math.log(7) ** 2,
            "history['loss'][0]": history[0][0],
            "history['loss'][-1]": history[-1][0],
            "history['perplexity'][-1]": history[-1][1],
            "total_loss / tokens": history[-1][0],
        },
    )


def test_8_why_not_plain_keras(run):
    _, printed = run("8_why_not_plain_keras.py")
    hard = math.log1p(math.exp(8))
    lone_token = ((20 / 31 - 1 / 2) - 1 / 2) / 2
    check(
        printed,
        {
            "keras_loss": LN5 / 2,
            "ours_loss": LN5 / 32,
            "keras_perplexity": math.exp(hard / 2),
            "ours_perplexity": math.exp(7 * hard / 26),
            "keras_accuracy": (100 / 128) / (100 / 128 + 10 / 16),
            "ours_accuracy": 100 / 110,
            "keras_weighted": LN5 * 3 / 8,
            "ours_weighted": LN5,
            "id_in_bfloat16": int(torch.tensor(31999.0).bfloat16()),
            "keras_bfloat16": 1,
            "ours_bfloat16": 0,
            "keras_step": lone_token,
            "ours_step": 20 / 32 - 1 / 2,
            "keras_bias": 1 - 0.1 * 0.1,
            "ours_bias": 1,
            "keras_moved": 1,
            "ours_moved": torch.tensor(0.9).bfloat16().item(),
            "keras_bytes": 4 + 4 * (512 + 512) / 512**2,
            "ours_bytes": 4 * (512 + 512) / 512**2,
            "keras_nan": 512**2,
            "ours_nan": 0,
            "loop_loss": LN5 / 32,
            "loop_perplexity": math.exp(7 * hard / 26),
            "loop_accuracy": 100 / 110,
        },
    )


@pytest.mark.torch_only
def test_9_what_trainer_does(run):
    names, printed = run("9_what_trainer_does.py")

    def rows(model, shifts):
        """The sum of each row's loss, and how many of its tokens count, in float64."""
        logits, labels = model.double()(**names["batch"]).logits, names["batch"]["labels"]
        if shifts:
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss = F.cross_entropy(logits.mT, labels, reduction="none", ignore_index=-100)
        return loss.sum(1), (labels != -100).sum(1)

    def gradient_norm(model, loss):
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        return sum((gradient**2).sum() for gradient in gradients).sqrt().item()

    t5 = names["new_t5"]()
    t5_sums, t5_counts = rows(t5, shifts=False)
    assert t5_counts.tolist() == [9, 3, 3, 5]
    right = gradient_norm(t5, t5_sums.sum() / 20)
    sums, counts = rows(names["new_llama"](), shifts=True)
    assert counts.tolist() == [8, 2, 2, 4]
    loss = (sums.sum() / 16).item()
    check(
        printed,
        {
            "trainer_in_parts": gradient_norm(t5, (t5_sums / t5_counts).sum()),
            **dict.fromkeys(("trainer_at_once", "ours_in_parts", "ours_at_once", "loop_t5"), right),
            "trainer_gpt2_parts / ours_gpt2_parts": 16 / 20,
            "trainer_gpt2_once / ours_gpt2_once": 16 / 20,
            "ours_gpt2_parts / ours_gpt2_once": 1,
            "ours_gpt2_once / loop_gpt2": 1,
            "trainer_llama_parts / ours_llama_parts": 1,
            "trainer_llama_once / ours_llama_once": 1,
            "trainer_eval[1]": (sums / counts).mean().item(),
            "trainer_eval[2]": (sums.view(2, 2).sum(1) / counts.view(2, 2).sum(1)).mean().item(),
            "trainer_eval[4]": loss,
            **{f"ours_eval[{size}]": loss for size in (1, 2, 4)},
            **{f"perplexity[{size}]": math.exp(loss) for size in (1, 2, 4)},
            "loop_eval": loss,
        },
    )


@pytest.mark.torch_only
def test_10_several_devices(run):
    names, printed = run("10_several_devices.py")
    start = names["embedding"], names["kernel"]
    x, y = names["x"], names["y"]

    def summed(rows, weights):
        """The sum of the losses of some rows, and how many tokens count."""
        logits = weights[0][torch.tensor(x[rows])] @ weights[1]
        loss = F.cross_entropy(logits.mT, torch.tensor(y[rows]), ignore_index=0, reduction="sum")
        return loss, int((y[rows] != 0).sum())

    def norm(loss, weights):
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        return sum((gradient**2).sum() for gradient in gradients).sqrt().item()

    weights = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in start]
    (loss_0, tokens_0), (loss_1, tokens_1) = (summed(rows, weights) for rows in ([0, 2], [1, 3]))
    assert (tokens_0, tokens_1) == (24, 73)
    mean, mean_of_means = (loss_0 + loss_1) / 97, (loss_0 / 24 + loss_1 / 73) / 2
    norm_of_averaged, norms = norm(mean_of_means, weights), []
    for rows in (slice(0, 4), slice(4, 5)):
        loss, tokens = summed(rows, weights)
        norms.append(norm(loss / tokens, weights))
        gradients = torch.autograd.grad(loss / tokens, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.5 * gradient
    history = trained(start, x, y, 4, 10, lambda weights: torch.optim.SGD(weights, lr=0.5))
    check(
        printed,
        {
            "tokens[0]": 24,
            "tokens[1]": 73,
            "loss_0 / tokens_0": loss_0.item() / 24,
            "loss_1 / tokens_1": loss_1.item() / 73,
            "mean_of_means": mean_of_means.item(),
            "mean": mean.item(),
            "averaged.norm().item()": norm_of_averaged,
            "gradient.norm().item()": norms[0],
            **{f"{who}['gradient_norm'][0]": np.mean(norms) for who in ("one", "two")},
            **{f"{who}['loss'][0]": history[0][0] for who in ("one", "two")},
            **{f"{who}['loss'][-1]": history[-1][0] for who in ("one", "two")},
            **{f"{who}['perplexity'][-1]": history[-1][1] for who in ("one", "two")},
            "bytes_sent": 4 * (8 * 4 + 4 * 8),
            "of_loop[0]": history[0][0],
            "of_loop[-1]": history[-1][0],
        },
    )


@pytest.mark.backend_free
def test_there_is_a_test_of_every_guide():
    assert [f"test_{name.removesuffix('.py')}" in globals() for name in NAMES] == [True] * 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.backend_free
def test_english_and_turkish_share_their_code(name):
    english, turkish = TOOL["cells"](source(name)), TOOL["cells"](source(f"tr/{name}"))
    assert [marker for marker, _ in english] == [marker for marker, _ in turkish]
    for (marker, text), (_, translated) in zip(english, turkish, strict=True):
        # Code is the same; prose is not, and all of it is there.
        assert (text == translated) == (marker == "# %%")
        assert text.strip()
        assert translated.strip()


@pytest.mark.parametrize("name", [*NAMES, *(f"tr/{name}" for name in NAMES)])
@pytest.mark.backend_free
def test_a_guide_is_prose_and_code_and_ends_with_the_loop(name):
    cells = TOOL["cells"](source(name))
    for marker, text in cells:
        assert all(line.startswith("#") for line in text.split("\n") if line) == (marker != "# %%")
    headings = [line for marker, text in cells for line in text.split("\n") if line[:5] == "# ## "]
    last = headings[-1]
    assert re.search(
        "yerini aldığı döngü$" if name[:3] == "tr/" else "The loop that .* replaced$", last
    )
    assert cells[-1][0] == "# %%"


@pytest.mark.backend_free
def test_code_is_copied_into_a_translation():
    english = "# %% [markdown]\n# Words\n\n# %%\nx = 1\n\n\n# %% [markdown]\n# End\n"
    turkish = "# %% [markdown]\n# Sözcükler\n\n# %%\n\n# %% [markdown]\n# Son\n"
    want = "# %% [markdown]\n# Sözcükler\n\n# %%\nx = 1\n\n\n# %% [markdown]\n# Son\n"
    assert TOOL["with_code_of"](english, turkish) == want
    with pytest.raises(ValueError, match="cell 1 is '# %%' in English"):
        TOOL["with_code_of"](english, turkish.replace("# %%\n\n", "# %% [markdown]\n# x\n\n"))


def test_output_is_shown_below_the_code():
    guide = "# %% [markdown]\n# # 1\n\n# %%\nx = 2\nprint(x)\n\n\n# %%\nprint('a\\n\\n b')\n"
    outputs = TOOL["run"](guide, "guide.py", {})
    assert outputs == ["2\n", "a\n\n b\n"]
    shown = TOOL["with_outputs"](guide, outputs)
    assert shown == guide.replace("print(x)\n", "print(x)\n# -> 2\n") + "# -> a\n# ->\n# ->  b\n"
    # Old lines are replaced, and can be read.
    assert TOOL["with_outputs"](TOOL["with_outputs"](guide, ["3\n4\n", ""]), outputs) == shown
    cells = [text for marker, text in TOOL["cells"](shown) if marker == "# %%"]
    assert [TOOL["code_and_output"](cell)[1] for cell in cells] == outputs
    # Versions and devices differ between machines.
    assert TOOL["run"]("# %%\nprint('  device      cpu')", "x", {}) == ["  device      ...\n"]


def test_a_guide_that_fails_says_where():
    guide = "# %% [markdown]\n# # 1\n\n# %%\nprint(1)\n1 / 0\n"
    with pytest.raises(ZeroDivisionError) as error:
        TOOL["run"](guide, "guide.py", {})
    last = error.traceback[-1]
    assert (str(last.path)[-8:], last.lineno + 1) == ("guide.py", 6)
