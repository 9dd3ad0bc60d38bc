"""The examples run, in processes of their own and on little data, and leave what they print."""

import json
import re
import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, models
from tests.programs import Program

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, cwd):
    """What an example prints."""
    program = Program(EXAMPLES / name, *arguments, folder=cwd)
    assert program.wait() == 0, program.errors[-3000:]
    assert "SanityWarning" not in program.errors
    return program.printed


@pytest.mark.torch_only
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert ended.value.code == 0
    assert f"usage: {name}" in capsys.readouterr().out


@pytest.mark.torch_only
def test_causal_lm_on_a_text_of_ones_own(tmp_path):
    text = tmp_path / "my.txt"
    text.write_text("\n\n".join(f"Line {i} of the text, and a few words more." for i in range(200)))
    sizes = ["--d-model", 16, "--num-layers", 1, "--num-heads", 2, "--seq-len", 32]
    printed = run(
        "causal_lm.py", "--text", text, "--vocab-size", 300, "--epochs", 2, *sizes, cwd=tmp_path
    )
    for key in ("loss", "perplexity", "accuracy", "val_loss", "val_perplexity", "val_accuracy"):
        assert f"{key}: " in printed
    assert "2 epochs of" in printed and "A sample:\nLine 180 of the" in printed
    saved = re.findall(r"Saved (.*)", printed)
    assert len(saved) == 4
    assert all((tmp_path / path).stat().st_size > 0 for path in saved)


@pytest.mark.torch_only
def test_seq2seq(tmp_path):
    printed = run(
        "seq2seq.py", "--words", 150, "--test-words", 20, "--d-model", 16, "--num-layers", 1,
        "--verbose", 2, cwd=tmp_path,
    )  # fmt: skip
    assert re.search(r"phoneme error rate \d+.*%, word error rate \d+.*%", printed)


@pytest.mark.torch_only
def test_plain_keras(tmp_path):
    printed = run("plain_keras.py", "--texts", 3, "--epochs", 1, cwd=tmp_path)
    assert ": perplexity " in printed


@pytest.mark.torch_only
def test_to_hugging_face(tmp_path):
    text = tmp_path / "my.txt"
    text.write_text("\n\n".join(f"The with statement number {i} ends." for i in range(200)))
    printed = run(
        "to_hugging_face.py", "--text", text, "--steps", 20, "--vocab-size", 300,
        "--output", tmp_path / "model", cwd=tmp_path,
    )  # fmt: skip
    assert "Saved config.json, generation_config.json, model.safetensors" in printed
    [ours, theirs] = re.findall(
        r"^(?:keras_llm|transformers): +('The with.*)", printed, re.MULTILINE
    )
    assert ours == theirs
    assert float(re.search(r"differ by at most (\S+)\.", printed)[1]) < 1e-4
    assert "The same tokens: True" in printed


@pytest.mark.torch_only
def test_distillation(tmp_path):
    text, numbers = tmp_path / "my.txt", ["one", "two", "three", "four", "five", "six", "seven"]
    rows = (f"{a} and {b} are numbers, {b} and {a} too." for a in numbers for b in numbers)
    text.write_text("\n\n".join(rows) * 4)
    printed = run(
        "distillation.py", "--text", text, "--vocab-size", 270, "--d-model", 32, "--seq-len", 16,
        "--epochs", 4, "--verbose", 2, cwd=tmp_path,
    )  # fmt: skip
    teacher, alone, taught = map(float, re.findall(r"perplexity ([\d.]+)\n", printed))
    assert teacher < taught < alone


@pytest.mark.torch_only
def test_preference(tmp_path):
    printed = run(
        "preference.py", "--d-model", 16, "--steps", 300, "--updates", 21, "--verbose", 0,
        cwd=tmp_path,
    )  # fmt: skip
    first, *_, last = map(float, re.findall(r"loss ([\d.]+)", printed))
    assert first == 0.693 and last < 0.65
    assert re.search(r"update 20: .* preferred 100%", printed)


@pytest.mark.torch_only
def test_updates_of_preferences_are_those_of_the_loss_by_autograd():
    example = runpy.run_path(str(EXAMPLES / "preference.py"))
    model = models.CausalTransformer(12, 16, 1, 2, max_length=16)
    summed = losses.MaskedSparseCategoricalCrossentropy(reduction="sum")
    model.compile(keras.optimizers.SGD(0.5), summed)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    prompts = np.random.default_rng(0).integers(0, 10, (6, 4))
    x, y = example["rows"](np.repeat(prompts, 2, axis=0), upwards=np.arange(12) % 2 == 0)
    # Of another model: rounding decides no sign.
    other = models.CausalTransformer(12, 16, 1, 2, max_length=16)
    reference = example["log_probabilities"](other, x, y)
    target = torch.tensor(y).clamp(min=0)
    for _ in range(4):
        made = example["preference_step"](model, x, y, reference, beta=0.7)
        each = torch.log_softmax(twin(x), -1).gather(-1, target[..., None])[..., 0]
        p = (each * torch.tensor(y >= 0)).sum(-1) - torch.tensor(reference)
        d = 0.7 * (p[::2] - p[1::2])
        loss = -torch.nn.functional.logsigmoid(d).mean()
        loss.backward()
        assert made == pytest.approx((loss.item(), (d > 0).double().mean().item()), rel=1e-5)
        with torch.no_grad():
            for variable in twin.trainable_variables:
                variable.value.sub_(0.5 * variable.value.grad)
                variable.value.grad = None
    for ours, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.torch_only
def test_keras_hub_model_without_tensorflow(tmp_path):
    """As programs run here, there is none."""
    pytest.importorskip("keras_hub")
    printed = run(
        "keras_hub_model.py", "--seq-len", 32, "--texts", 12, "--vocab-size", 300,
        "--hidden-dim", 16, "--num-layers", 1, cwd=tmp_path,
    )  # fmt: skip
    perplexities = [float(p) for p in re.findall(r" val_perplexity: ([\d.]+)", printed)]
    assert len(perplexities) == 2 and perplexities[1] < perplexities[0] < 310
    assert "A sample:\nThe with statement" in printed


@pytest.mark.torch_only
def test_finetune_transformers_and_then_adapters_of_what_it_saved(tmp_path):
    printed = run(
        "finetune_transformers.py", "--chats", 100, "--epochs", 2, "--verbose", 2, cwd=tmp_path
    )
    assert re.search(r"row 0: 10 of 38 tokens count\n.*\n.*\n«\d+ is larger than \d+.*»", printed)
    before, after = re.search(r"chats: ([\d.]+) before, ([\d.]+) after", printed).groups()
    assert float(after) < float(before)
    assert re.search(r"the model: .*\n  the data:   \d+ is larger than \d+\.", printed)
    assert (tmp_path / "runs" / "finetuned" / "model.safetensors").exists()

    messages = [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "chats.jsonl").write_text(20 * (json.dumps({"messages": messages}) + "\n"))
    for more in ([], ["--bits", 4]):
        printed = run(
            "finetune_transformers.py", "--model", "runs/finetuned", "--data", "chats.jsonl",
            "--lora", "--epochs", 1, "--output", "adapters", *more, cwd=tmp_path,
        )  # fmt: skip
        assert "Say yes.\n  the model: " in printed
        saved = {path.name for path in (tmp_path / "adapters").iterdir()}
        assert "adapter_model.safetensors" in saved and "model.safetensors" not in saved


@pytest.mark.torch_only
def test_error_rates_of_the_seq2seq_example():
    names = {}
    source = (EXAMPLES / "seq2seq.py").read_text()
    exec(compile(source.replace('__name__ == "__main__"', "False"), "seq2seq.py", "exec"), names)
    # kitten -> sitting is three edits, as every textbook has it.
    assert names["edit_distance"]("kitten", "sitting") == 3
    references = {"a": [["X", "Y"], ["X"]], "b": [["Z", "Z", "Z"]]}
    guesses = {"a": ["X"], "b": ["Z", "Q"]}
    assert names["error_rates"](guesses, references) == (2 / 4, 1 / 2)
