"""What `explain` and `trace` say, and do, where several processes train."""

import json
from pathlib import Path

import keras
import pytest

from keras_llm import explain, models
from keras_llm.distribution import World
from keras_llm.training.torch import process_step
from tests.distribution.processes import launch
from tests.explanation.small_models import Y, compiled

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]

SCRIPT = Path(__file__).parent / "explained_by_processes.py"
NAMES = ("processes", "sent for an update", "dropout")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process has found."""
    folder = tmp_path_factory.mktemp("alone")
    launch(1, SCRIPT, folder)
    return json.loads((folder / "0.json").read_text())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes have printed, and what each has found."""
    folder = tmp_path_factory.mktemp("together")
    printed = launch(2, SCRIPT, folder)
    return printed, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_one_process_is_not_told_of(alone):
    assert not set(NAMES) & set(alone["processes"])


def test_each_process_takes_its_part_and_sends_the_gradients(alone, together):
    _, found = together
    for process in found:
        value, text, note = process["processes"]["processes"]
        assert (value, text) == (2, "2, each takes 1 of 2 rows of a batch")
        assert note == "batch_size is that of all processes together"
        # 2 (N - 1) / N is 1 here, and a float32 has 4 bytes.
        value, text, note = process["processes"]["sent for an update"]
        assert value == 4 * alone["parameters"]
        assert text == f"{value / 1000:.3g} kB by each process"
        assert "2 * 1/2" in note
        assert process["processes"]["dropout"][0] == "differs"


def test_the_effective_batch_is_of_all_processes(alone, together):
    _, found = together
    for process in found:
        assert process["effective"] == alone["effective"]
        assert process["effective"][0] == pytest.approx(int((Y != 0).sum()) / 2)


def test_the_first_process_prints(together):
    printed, _ = together
    assert printed.count("How it runs") == 1
    assert printed.count("sent for an update") == 1
    assert printed.count("One step of") == 1


def test_trace_is_of_the_whole_batch_and_changes_nothing(alone, together):
    _, found = together
    assert alone["before"] == alone["after"]
    for process in found:
        assert process["before"] == process["after"] == alone["before"]
        assert process["loss"] == alone["loss"]
        assert process["batch"] == alone["batch"]
        assert process["history"] == pytest.approx(alone["history"], rel=1e-6)


def test_before_the_model_is_built(monkeypatch):
    monkeypatch.setattr(process_step, "world", Pair)
    model = models.LanguageModel(keras.layers.Embedding(9, 8), keras.layers.Dense(9))
    section = explain(compiled(model), show=False)["How it runs"]
    assert section["processes"].value == 2
    assert section["sent for an update"].text == "known once the model is built"
    text = explain(compiled(), show=False).to_text(60)
    assert "processes" in text and max(map(len, text.splitlines())) <= 60


class Pair(World):
    """Two processes of which there is one."""

    size = 2
