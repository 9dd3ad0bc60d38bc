"""The programs of README and the names of docs/learn.md work as they are written, on less data."""

import inspect
import json
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import transformers

import keras_llm
from tests.data.chat_tokenizer import SKY, chat_tokenizer
from tests.programs import Program
from tests.readme_programs import KEEP_WEIGHTS, TEXT, blocks, smaller

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LEARN = (ROOT / "docs" / "learn.md").read_text()


def run(code, **names):
    """The names that a program leaves behind."""
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with my.txt in it, and the current one."""
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(TEXT)
    return tmp_path


def test_the_first_program(folder, capsys):
    (code,) = blocks("keras_llm")
    names = run(smaller(code))
    assert "The with statement" in capsys.readouterr().out
    assert len(code.strip().splitlines()) < 15
    assert set(names["model"].history.history) >= {"loss", "perplexity"}


def test_program_1(folder, capsys):
    program, sample = blocks("Program 1")
    names = run(smaller(program))
    assert "The with statement" in capsys.readouterr().out
    logs = names["model"].evaluate(names["valid"], verbose=0, return_dict=True)
    assert logs["perplexity"] == pytest.approx(np.exp(logs["loss"]), rel=1e-5)
    assert {"loss", "perplexity", "masked_token_accuracy"} == set(logs)
    run(sample, **names)
    assert capsys.readouterr().out.startswith("The with statement")
    (stopped,) = blocks("A run that is stopped")
    run(stopped.replace("500", "5"), **names)
    assert run(stopped, **names)["model"].history.epoch == [0, 1, 2, 3]
    (by_steps,) = blocks("Steps instead of epochs")
    kept = run(by_steps.replace("2_000", "20").replace("500", "5"), **names)
    assert [point["step"] for point in kept["history"].steps if "val_loss" in point][-1] == 20
    assert json.loads(Path("run.jsonl").read_text().splitlines()[-1])["step"] == 20


def test_another_day(folder):
    """Two epochs, and two more of what was saved, are four epochs to the last digit."""
    save, continue_it = blocks("Another day")
    program = "import keras_llm, keras\nkeras.utils.set_random_seed(0)\n"
    # A schedule whose rate differs between the days.
    program += smaller(blocks("Program 1")[0]).replace(
        "steps=100, total_steps=2_000", "steps=10, total_steps=200"
    )

    run(program.replace("epochs=2", "epochs=4") + KEEP_WEIGHTS)
    at_once = arrays("weights.npz")
    run(program + save)
    assert json.loads(Path("train.json").read_text()) == {"seed": 0, "epoch": 2, "step": 0}
    continue_it = smaller(continue_it) + KEEP_WEIGHTS
    if keras.backend.backend() == "torch":
        (folder / "program.py").write_text(continue_it)
        program = Program(folder / "program.py")
        assert program.wait() == 0, program.errors[-3000:]
    else:
        # Another process would only import the backend again.
        run(continue_it)
    on_two_days = arrays("weights.npz")
    assert len(at_once) == len(on_two_days) > 20
    for want, got in zip(at_once, on_two_days, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.torch_only
def test_in_other_programs(folder, capsys):
    write, read = blocks("In other programs")
    names = run(smaller(blocks("Program 1")[0]) + write)
    capsys.readouterr()
    hf = run(read)
    printed = capsys.readouterr().out
    assert printed.startswith("The with statement")
    model, ids = names["model"], np.array([names["tokenizer"].encode("The with statement")])
    np.testing.assert_array_equal(hf["inputs"]["input_ids"], ids)
    logits = hf["hf_model"](**hf["inputs"]).logits.detach().numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(ids)), logits, 1e-5, 1e-5)


def arrays(path):
    """The arrays that a file holds, in order."""
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.torch_only
def test_program_2():
    ids = np.random.default_rng(0).integers(1, 30522, (2, 2, 5))
    names = run(blocks("Program 2")[0], input_ids=ids[0], target_ids=ids[1])
    losses = names["model"].history.history["loss"]
    # An untrained model: all 30522 ids are about equally likely.
    assert losses[0] == pytest.approx(np.log(30522), rel=0.1)
    assert len(losses) == 3


def test_program_2_small_on_every_backend():
    ids = np.random.default_rng(0).integers(1, 50, (2, 4, 5))
    code = blocks("Program 2")[0].replace("vocab_size=30522, d_model=512", "50, 16, 1, 2")
    code = code.replace("start_id=101", "start_id=1")
    names = run(code, input_ids=ids[0], target_ids=ids[1])
    assert len(names["model"].history.history["loss"]) == 3
    adafactor = re.search(r"# or (optimizers.Adafactor\(.*?\))", code, flags=re.DOTALL)[1]
    optimizer = eval(adafactor.replace("#", ""), names)
    names["model"].compile(optimizer=optimizer, loss=names["model"].loss)
    x = {"encoder_ids": ids[0], "decoder_ids": names["decoder_ids"]}
    names["model"].fit(x, names["labels"], verbose=0)


def test_program_3():
    x, y = np.random.default_rng(0).integers(0, 20, (2, 8, 6))
    names = run(blocks("Program 3")[0], x=x, y=y, V=20)
    assert names["model"].history.history["perplexity"][0] == pytest.approx(20, rel=0.2)


@pytest.mark.torch_only
# peft asks transformers by a name of before.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_program_4(folder):
    tokenizer = chat_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
    start = transformers.LlamaForCausalLM(config)
    start.save_pretrained("my_model")
    tokenizer.save_pretrained("my_model")
    Path("chats.jsonl").write_text(f"{json.dumps({'messages': SKY})}\n" * 3)

    program, adapters = blocks("Program 4")
    names = run(program)
    tuned = transformers.AutoModelForCausalLM.from_pretrained("tuned").lm_head.weight
    assert tuned.equal(names["hf"].lm_head.weight) and not tuned.equal(start.lm_head.weight)
    losses = names["model"].history.history["loss"]
    assert len(losses) == 3 and losses[-1] < losses[0]

    line = "model = models.from_transformers(hf)\n"
    names = run(program.replace(line, adapters).replace("tuned", "adapters"))
    assert (folder / "adapters" / "adapter_config.json").exists()
    trained = names["model"].trainable_variables
    assert trained and all("lora" in variable.path for variable in trained)


def test_a_loss_of_your_own():
    cls = run(blocks("A loss of your own")[0])["SquaredSurprise"]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(cls(3)))
    assert again.ignore_index == 3
    labels, logits = np.array([1, 3, 0]), np.zeros((3, 4), "float32")
    assert float(again(labels, logits)) == pytest.approx(math.log(4) ** 2)


def test_a_metric_of_your_own():
    cls = run(blocks("A metric of your own")[0])["BitsPerToken"]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(cls(0)))
    # One token of 4 equally likely ones, and the rest padding; then 3 of 2 bits in another batch.
    again.update_state(np.array([1, 0, 0]), np.zeros((3, 4), "float32"))
    again.update_state(np.array([1, 2, 3]), np.log([[0.5, 0.25, 0.125, 0.125]] * 3))
    assert float(again.result()) == pytest.approx((2 + 2 + 3 + 3) / 4)
    # And in a model, beside a loss that is no cross entropy.
    ids = np.array([[1, 2, 3, 0]])
    model = keras_llm.models.LanguageModel(
        keras.layers.Embedding(4, 4, "zeros"), keras.layers.Identity()
    )
    loss = keras_llm.losses.MaskedSparseCategoricalFocalCrossentropy(ignore_index=0)
    model.compile(loss=loss, metrics=[cls(ignore_index=0, name="bits")])
    logs = model.evaluate(ids, ids, verbose=0, return_dict=True)
    assert logs["bits"] == pytest.approx(2, rel=1e-5)


def test_a_metric_of_each_token():
    cls = run(blocks("A metric of your own")[1])["ShareOfSurprises"]
    metric = cls(ignore_index=0)
    # Probabilities of about 0.5 %, 50 % and 50 %, and padding.
    logits = np.log([[0.99, 0.005, 0.005]] + [[0.25, 0.5, 0.25]] * 3)
    metric.update_state(np.array([1, 1, 1, 0]), logits)
    assert float(metric.result()) == pytest.approx(1 / 3)


def test_no_line_of_code_is_wider_than_the_page():
    for name in ("README.md", "CONTRIBUTING.md", "docs/learn.md", "docs/outside_models.md"):
        for block in re.findall(r"```\w*\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL):
            assert max(map(len, block.splitlines())) <= 100, name


@pytest.mark.torch_only
def test_the_names_of_the_learners_page():
    """Each call in its tables is one that exists, with arguments that it takes."""
    places = {"keras": keras} | {
        name: getattr(keras_llm, name)
        for name in ("data", "losses", "metrics", "models", "optimizers", "schedules")
    }
    calls = re.findall(rf"`((?:{'|'.join(places)})\.[\w.]+)(?:\((.*?)\))?`", LEARN)
    assert len(calls) > 15
    for path, arguments in calls:
        thing = eval(path, places)
        known = set()
        for cls in getattr(thing, "__mro__", [thing]):
            known |= set(inspect.signature(cls).parameters)
        assert set(re.findall(r"(\w+)=", arguments)) <= known, path


@pytest.mark.torch_only
def test_the_lessons_concepts_are_on_the_learners_page():
    table = LEARN.split("## What PyTorch calls it")[1].split("\n## ")[0]
    lessons = "\n".join(line.split(" | ")[0] for line in table.splitlines())
    for concept in (
        *("AdamW", "Adafactor", "`Adam`", "`SGD`", "betas", "eps1", "clip_threshold"),
        *("CrossEntropyLoss", "ignore_index", "smoothing", "focal", "KLDivLoss", "reduction"),
        *("masking", "flatten", "perplexity", "accuracy", "get_linear_schedule_with_warmup"),
        *("teacher forcing", "mini-batches", "device", "forward", "backward", "zero_grad"),
        *("clipping", "epoch", "total_loss", "loss.item()", "MySeq2SeqModel"),
    ):
        assert concept in lessons, concept
