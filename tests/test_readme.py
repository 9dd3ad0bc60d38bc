"""README's programs run as they are written, on less data."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.slow

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
TEXT = "\n\n".join(
    f"The with statement number {i} wraps the block of line {i % 7}." for i in range(60)
)


def program(title):
    """The code under a heading."""
    section = README.split(f"## {title}", 1)[1].split("\n## ", 1)[0]
    return re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1]


def run(code, **names):
    """The names that a program leaves behind."""
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_program_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(TEXT)
    code = program("Program 1").replace('data.load("python_manual")', 'data.load_text("my.txt")')
    code = code.replace("d_model=256, num_layers=4", "d_model=32, num_layers=1")
    names = run(code)
    assert "The with statement" in capsys.readouterr().out
    logs = names["model"].evaluate(names["valid"], verbose=0, return_dict=True)
    assert logs["perplexity"] == pytest.approx(np.exp(logs["loss"]), rel=1e-5)
    # Saved, loaded and trained on.
    updates = int(names["model"].optimizer.iterations)
    (code,) = [block for block in BLOCKS if "load_model" in block]
    again = run(code, **names)
    assert again["model"] is not names["model"]
    assert int(again["model"].optimizer.iterations) == updates + len(again["train"])


@pytest.mark.torch_only
def test_program_2():
    ids = np.random.default_rng(0).integers(1, 30522, (2, 2, 5))
    names = run(program("Program 2"), input_ids=ids[0], target_ids=ids[1])
    losses = names["model"].history.history["loss"]
    # A model that knows nothing hesitates between all 30522 ids.
    assert losses[0] == pytest.approx(np.log(30522), rel=0.1)
    assert len(losses) == 3


def test_program_2_small_on_every_backend():
    ids = np.random.default_rng(0).integers(1, 50, (2, 4, 5))
    code = program("Program 2").replace("vocab_size=30522, d_model=512", "50, 16, 1, 2")
    code = code.replace("start_id=101", "start_id=1")
    names = run(code, input_ids=ids[0], target_ids=ids[1])
    assert len(names["model"].history.history["loss"]) == 3
    adafactor = re.search(r"# or (optimizers.Adafactor\(.*\))", code)[1]
    optimizer = eval(adafactor, names)
    names["model"].compile(optimizer=optimizer, loss=names["model"].loss)
    x = {"encoder_ids": ids[0], "decoder_ids": names["decoder_ids"]}
    names["model"].fit(x, names["labels"], verbose=0)


def test_program_3():
    x, y = np.random.default_rng(0).integers(0, 20, (2, 8, 6))
    names = run(program("Program 3"), x=x, y=y, V=20)
    assert names["model"].history.history["perplexity"][0] == pytest.approx(20, rel=0.2)


def test_a_loss_of_your_own():
    cls = run(program("A loss of your own"))["SquaredSurprise"]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(cls(3)))
    assert again.ignore_index == 3
